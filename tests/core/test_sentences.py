# ruff: noqa: RUF001 - the marks of other scripts are meant
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.core.sentences import FIRST_CLAUSE_CHARS, LONGEST_PIECE_CHARS, PieceCutter

SNIPPETS = (
    'Dr.|e.g.|U.S.|No. 5|3.14|...|…|1. |\n|\n\n|- |```|~~~|`|**|."| |. |! |?! |, | - |—|。|、|」'
    "|https://a.b/c. |```py\nx. Y\n```|word "
)
TEXTS = st.lists(
    st.sampled_from(SNIPPETS.split("|")) | st.text(max_size=8) | st.integers(1, 400).map("ab ".__mul__), max_size=24
).map("".join)


def cut(text: str, border: int | None = None) -> list[str]:
    """Cut a text that comes in deltas of `border` characters, or at once."""
    cutter = PieceCutter()
    size = border or max(1, len(text))
    pieces = [piece for at in range(0, len(text), size) for piece in cutter.feed(text[at : at + size])]
    return pieces + cutter.flush()


def sentences(text: str) -> list[str]:
    """Cut a text whose first piece is out already."""
    return cut("So.\n" + text)[1:]


@given(TEXTS, st.lists(st.integers(0, 30), max_size=40))
def test_pieces_are_the_text_wherever_the_deltas_are_cut(text: str, sizes: list[int]) -> None:
    whole = cut(text)
    assert "".join(whole) == text
    assert all(whole)
    cutter, pieces, rest = PieceCutter(), [], text
    for size in sizes:
        pieces += cutter.feed(rest[:size])
        rest = rest[size:]
    pieces += cutter.feed(rest) + cutter.flush()
    assert pieces == whole


@given(st.text(alphabet="ab ,.!\n、", max_size=900))
def test_no_piece_of_prose_is_longer_than_the_limit(text: str) -> None:
    assert max(map(len, cut(text)), default=0) <= LONGEST_PIECE_CHARS + 20  # marks may follow the last word


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Yes. No! Why?", ["Yes. ", "No! ", "Why?"]),
        ("Dr. Smith and Mrs. Jones came. They sat.", ["Dr. Smith and Mrs. Jones came. ", "They sat."]),
        ("Use fruit, e.g. Apples. Or pears.", ["Use fruit, e.g. Apples. ", "Or pears."]),
        ("The U.S. Army left. J. R. Tolkien wrote.", ["The U.S. Army left. ", "J. R. Tolkien wrote."]),
        ("It is No. 5 here. No. I see.", ["It is No. 5 here. ", "No. ", "I see."]),
        ("Pi is 3.14 or 3.1416. Good.", ["Pi is 3.14 or 3.1416. ", "Good."]),
        ("Well... maybe. Wait… Yes.", ["Well... maybe. ", "Wait… ", "Yes."]),
        ("Version 2.0.1 is out. Take v3.", ["Version 2.0.1 is out. ", "Take v3."]),
        ("See https://a.example/b.c?d=e.f. Then go.", ["See https://a.example/b.c?d=e.f. ", "Then go."]),
        ("It is 5 p.m. The bus left at 4 p.m. today.", ["It is 5 p.m. ", "The bus left at 4 p.m. today."]),
        ("You and I. Then he.", ["You and I. ", "Then he."]),
        ("In 1999. Then in 2000.", ["In 1999. ", "Then in 2000."]),
        ('He said "Go." Then (she left.) **Done.** So.', ['He said "Go." ', "Then (she left.) ", "**Done.** ", "So."]),
        ('"Really?" he asked. Yes.', ['"Really?" he asked. ', "Yes."]),
        ("What?! No!!! Oh.", ["What?! ", "No!!! ", "Oh."]),
        ("今日は。元気？「はい。」よし", ["今日は。", "元気？", "「はい。」", "よし"]),
        (
            "One:\n1. Wash it.\n2. Dry it.\n- Eat\n\nEnd",
            ["One:\n", "1. Wash it.\n", "2. Dry it.\n", "- Eat\n", "\nEnd"],
        ),
        ("Run `a. B` now. Then `c", ["Run `a. B` now. ", "Then `c"]),
        ("Look:\n```py\na = 1. \n\nb. C\n```\nThat. Is", ["Look:\n", "```py\na = 1. \n\nb. C\n```\n", "That. ", "Is"]),
        ("Use ``` to open. Then close.", ["Use ``` to open. ", "Then close."]),
        ("~~~\nnever. Closed", ["~~~\nnever. Closed"]),
        ("", []),
        (" \n ", [" \n "]),
    ],
)
def test_sentences(text: str, pieces: list[str]) -> None:
    assert sentences(text) == pieces


@pytest.mark.parametrize("text", ["Well, ", "Yes. "])
def test_a_sentence_is_out_once_the_next_word_begins(text: str) -> None:
    cutter = PieceCutter()
    out = cutter.feed("It is 3.")
    assert out == []
    assert cutter.feed("14") == []
    assert cutter.feed(". ") == []
    assert cutter.feed("G") == ["It is 3.14. "]
    assert cutter.feed("o.\n") == ["Go.\n"]


def test_the_first_piece_may_end_at_a_clause_that_is_long_enough() -> None:
    text = "Of course, the capital of France is Paris, which lies on the Seine, in the north."
    assert cut(text) == [
        "Of course, the capital of France is Paris, ",
        "which lies on the Seine, in the north.",
    ]
    assert len("Of course,") < FIRST_CLAUSE_CHARS
    assert cut("東京は日本の首都です、そして大きい。") == ["東京は日本の首都です、", "そして大きい。"]
    assert cut("A well-known state-of-the-art thing - it works.")[0] == "A well-known state-of-the-art thing - "
    assert cut("They paid him 1,000,000 dollars at 10:30 today.") == ["They paid him 1,000,000 dollars at 10:30 today."]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (
            "The capital of the United States, Washington, D.C., is old.",
            "The capital of the United States, Washington, D.C., ",
        ),
        ("It was signed on the fourth of July, 1776, in a hall.", "It was signed on the fourth of July, 1776, "),
        ("The flag of Germany is black, red, and gold in order.", "The flag of Germany is black, red, "),
        ("Notwithstanding Internationalization, he went on.", "Notwithstanding Internationalization, he went on."),
        ("Steps:\n1. Wash the apples.\n2. Cut.", "Steps:\n1. Wash the apples.\n"),
        ("# Plan\nGo home. Sleep.", "# Plan\nGo home. "),
        ("Sure!\nHere it is.", "Sure!\n"),
        ("\U0001f642\nPlan:\nGo home. Sleep.", "\U0001f642\n"),
        ("Plan", "Plan"),
    ],
)
def test_the_first_piece_does_not_sound_chopped(text: str, first: str) -> None:
    assert cut(text)[0] == first


@given(st.lists(st.sampled_from(["word", "words ", ", ", "\n", "- ", "longer"]), max_size=60).map("".join))
def test_the_first_piece_of_prose_has_three_words_if_any_follow(text: str) -> None:
    first, *rest = [piece for piece in cut(text) if any(map(str.isalnum, piece))] or [""]
    assert not rest or len(first.split()) > 2 or len(first) >= FIRST_CLAUSE_CHARS


def test_text_without_punctuation_is_cut_at_a_space_or_better_at_a_clause() -> None:
    assert {len(piece) % 5 for piece in sentences("word " * 200)} == {0}
    assert sentences("b" * 500)[0] == "b" * LONGEST_PIECE_CHARS
    text = "word " * 30 + "end, " + "word " * 40
    assert sentences(text)[0].endswith("end, ")


def test_a_cutter_begins_anew_after_a_flush() -> None:
    cutter = PieceCutter()
    assert cutter.feed("One. ") + cutter.flush() == ["One. "]
    assert cutter.feed("1. Two. ") + cutter.flush() == ["1. Two. "]


def test_a_large_text_is_cut() -> None:  # in a second; a cutter that grows with the square needs minutes
    for text in ("a. " * 100_000, "`" * 100_000, "```\n" + "x\n" * 100_000, "." * 100_000, "*" * 100_000):
        assert "".join(cut(text)) == text
