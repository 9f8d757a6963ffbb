"""What a voice is given: the table of texts in English, markup, other languages, and what no text may do."""

# ruff: noqa: RUF001 - the marks of other scripts are meant
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.misheard_words import texts
from tests.core.test_sentences import TEXTS
from voxcli.core.sentences import PieceCutter
from voxcli.core.speakable import speakable, spoken_share
from voxcli.core.speakable.numbers import MOST_DIGITS, cardinal, number, ordinal, year

TABLE = list(texts())
NUMBERS_AND_SIGNS = st.text(alphabet="0123456789.,:;/-–−+$€%°x×^²⁻½()@#~'\"\\_ \nKkmGBVIsthapCFeE`", max_size=60)


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def test_the_table_is_spoken_as_a_person_would_read_it() -> None:
    assert len(TABLE) >= 150
    spoken = [(text, words(speakable(text, "en"))) for text, _ in TABLE]
    assert spoken == [(text, words(expected)) for text, expected in TABLE]


def test_pieces_of_the_table_are_spoken_as_the_whole() -> None:
    for text, expected in TABLE:
        cutter = PieceCutter()
        pieces = [*cutter.feed(text), *cutter.flush()]
        assert words(" ".join(speakable(piece, "en") for piece in pieces)) == words(expected)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("At 5pm. Then", "At five p.m. Then"),
        (
            "$5-$10 or $1,234.56",
            "five to ten dollars or one thousand two hundred thirty-four dollars and fifty-six cents",
        ),
        (
            "He scored 98/100, 7/10 and 1/10.",
            "He scored ninety-eight out of one hundred, seven out of ten and one tenth.",
        ),
        ("44 BC, 476 AD", "forty-four BC, four hundred seventy-six AD"),
        ("2 * 3, 2*3 and snake_case", "two times three, two times three and snake case"),
        ("1,000,000,000,000,000,000", "one" + 18 * " zero"),
        ("Charles III met Malcolm X and Mary I.", "Charles the third met Malcolm X and Mary the first."),
        ("123 Main St. at noon", "one hundred twenty-three Main Street at noon"),
        ("v1.10 and Version 2", "version one point ten and Version two"),
        ("4K, 5G, 7B", "four K, five G, seven B"),
        ("5 km/h, km/h, 5\u00a0km", "five kilometers per hour, kilometers per hour, five kilometers"),
        ("mc^2 and 2^10", "mc squared and two to the power of ten"),
        ("ISBN 978-3-16-148410-0", "ISBN nine seven eight, three, one six, one four eight four one zero, zero"),
        ("31.12.1999, 31/12/1999", 2 * ", December thirty-first, nineteen ninety-nine"),
        ("See <https://www.example.com:80/a/b?c=d>.", "See example dot com."),
        ("It (http://user:pw@a.example/b), too.", "It (a dot example), too."),
        ("At https://a.example/x.y. Then", "At a dot example. Then"),
        ("a < b and c > d -> e", "a less than b and c greater than d, e"),
        ("R&amp;D costs $5.00 &lt;now&gt;", "R and D costs five dollars"),
    ],
)
def test_english(text: str, spoken: str) -> None:
    assert speakable(text, "en-US") == spoken.removeprefix(", ")


@pytest.mark.parametrize(
    "text",
    [
        "Es sind 5 km bis Berlin, und 20 °C.",
        "Die Band The Beatles hatte 4 Mitglieder.",
        "Il est né le 14 juillet 1789.",
        "Cuesta 5 € y pesa 3 kg.",
        "Het is 5 uur en 20 graden.",
        "Sono le 10:30.",
        "São 25 % do total.",
        "東京まで 30 km です。",
        "Москва, 1147.",
        "5 km",
        "1999",
    ],
)
def test_numbers_of_other_and_of_unknown_languages_are_left_to_the_voice(text: str) -> None:
    assert speakable(text) == text
    assert speakable(text, "de") == text


def test_english_is_recognised_by_its_frequent_words() -> None:
    assert speakable("It is 5 km from here.") == "It is five kilometers from here."
    assert speakable("The Café de Flore is 5 km from here.") == "The Café de Flore is five kilometers from here."
    assert speakable("It is 5 km.", "fr") == "It is 5 km."


@pytest.mark.parametrize("digits", [0, 7, 11, 20, 21, 99, 100, 101, 110, 999, 1000, 1001, 12_345, 1_000_000, 2**49])
def test_number_words_count(digits: int) -> None:
    """Read the words back with another algorithm."""
    total = group = 0
    for word in re.split("[ -]", cardinal(digits)):
        scale = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}.get(word)
        if scale:
            total, group = total + group * scale, 0
        elif word == "hundred":
            group *= 100
        else:
            group += next(n for n in [*range(20), *range(20, 100, 10)] if cardinal(n) == word)
    assert total + group == digits


def test_ordinals_years_and_long_numbers() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 12, 20, 101)] == [
        *("first", "second", "third", "twelfth", "twentieth", "one hundred first"),
    ]
    assert [year(n) for n in (1066, 1900, 1905, 2000, 2009, 2026)] == [
        *("ten sixty-six", "nineteen hundred", "nineteen oh five", "two thousand", "two thousand nine"),
        "twenty twenty-six",
    ]
    assert number("1" * (MOST_DIGITS + 1)) == " ".join(["one"] * (MOST_DIGITS + 1))


@pytest.mark.parametrize(
    ("piece", "spoken"),
    [
        ("**Bold**, *it*, __b__, _i_, ~~no~~ and ***all***.", "Bold, it, b, i, no and all."),
        ("**Half of", "Half of"),
        ("## Heading", "Heading"),
        ("- item\n", "item"),
        ("  * [x] done", "done"),
        ("> quoted", "quoted"),
        ("1. Wash", "1. Wash"),
        ("- one\n- two!\n- three", "one. two! three"),
        ("2 * 3, 2*3 and snake_case", "2 * 3, 2*3 and snake case"),
        ("| a | b |", "a, b"),
        ("|---|:-:|", ""),
        ("---", ""),
        ("[the docs](https://x.example/y) and ![a cat](c.png)[^1]", "the docs and a cat"),
        ("See <https://www.example.com:80/a/b?c=d>.", "See example.com."),
        ("It (http://user:pw@a.example/b), too.", "It (a.example), too."),
        ("At https://a.example/x.y. Then", "At a.example. Then"),
        ("run `ls -l` now", "run ls -l now"),
        ("```py\nimport os\n```", "Code block."),
        ("Here: ```\nnever closed", "Here: Code block."),
        ("Hi 😀👍🏽🇫🇷 there 1️⃣ 20°C 👨‍👩‍👧", "Hi there 1 20°C"),
        ("\u202eevil\u200b\x1b[31m\x00", "evil 31m"),
        ("Wow!!! What?!?! So.... Yes", "Wow! What? So... Yes"),
        ("a < b > c -> d", "a b c, d"),
        ("R&amp;D costs $5.00 &lt;now&gt;", "R&D costs $5.00"),
        ("Café naïve — 東京、はい。", "Café naïve — 東京、はい。"),
        ("***", ""),
        ("?!", ""),
        ("", ""),
    ],
)
def test_markup(piece: str, spoken: str) -> None:
    assert speakable(piece, "und") == spoken


@pytest.mark.parametrize(
    "hostile",
    [
        "<speak><break time='99s'/>hi</speak>",
        "&lt;speak&gt;hi",
        "<audio src='file:///etc/passwd'/>hi",
        "[[rate 900]]hi",
        "[ [ rate 900]]hi [[inpt PHON]]",
        "[\u200b[_^_EN]]hi",
        "<<b>audio src='x'>hi",
    ],
)
def test_nothing_that_a_voice_takes_for_a_command_is_left(hostile: str) -> None:
    for language in ("en", "fr", None):
        spoken = speakable(hostile, language)
        assert not set("<>[]{}") & set(spoken)
        assert "hi" in spoken


@given(TEXTS | NUMBERS_AND_SIGNS, st.sampled_from(["en", "und", None]))
@example("x⁻ 5²⁻ 1,000,000,000,000,000,000th 24:59:59pm 2⁻¹ -−5% 0/0 99/99/9999", "en")
def test_what_is_spoken_is_one_harmless_line(text: str, language: str | None) -> None:
    spoken = speakable(text, language)
    assert spoken == " ".join(spoken.split())
    assert all(char.isprintable() or char == "\u200c" for char in spoken)
    assert not set("<>[]{}\\`^|_#") & set(spoken)
    assert not spoken or any(char.isalnum() for char in spoken)
    assert language != "en" or not re.search("[0-9]", spoken)


@given(st.text(alphabet=st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=30))
def test_letters_and_digits_are_always_spoken(text: str) -> None:
    assert speakable(text, "en")
    assert speakable(text)


@pytest.mark.parametrize("part", ["1,", "\\a", "½", "a@b.", "1 1/2 ", "`a"])
def test_a_hostile_text_is_spoken(part: str) -> None:  # In a second; a rule of quadratic time needs minutes.
    text = part * ((100_000 if part == "1," else 20_000) // len(part))
    assert speakable(text, "en")


def test_the_share_of_speech_follows_what_the_voice_says() -> None:
    piece = "It costs $1,234,567.89 in the big city. "
    ends = [match.end() for match in re.finditer(r"\S+\s", piece)]
    shares = [spoken_share(piece, end) for end in ends]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[2] - shares[1] > 0.5, "most of the time goes into the number"
    assert spoken_share("🙂", 1) == 1.0
