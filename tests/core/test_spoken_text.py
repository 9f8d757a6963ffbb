"""The spoken text of a reply: which pieces were played, with and without sound."""

import math
from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st

from voxcli.core.spoken_text import SpokenText

words = st.text("abc", min_size=1, max_size=5)
texts = st.lists(words, min_size=1, max_size=4).map(lambda each: "".join(f"{word} " for word in each))
seconds = st.just(0.0) | st.floats(0.05, 20)
pieces = st.lists(st.tuples(texts, seconds), max_size=8)
positions = st.floats(0, 100)


def spoken(pieces: list[tuple[str, float]], start: float = 0.0) -> SpokenText:
    recorded = SpokenText()
    for text, seconds in pieces:
        recorded.finish(recorded.begin(text, start) + seconds)
    return recorded


@given(pieces, positions, positions)
@example([("It rains. ", 1.0), ("🙂\n", 0.0)], 0.0, 0.5)
@example([("🙂\n", 0.0)], 1.0, 0.5)
def test_text_is_what_was_played_and_nothing_of_what_was_not(
    pieces: list[tuple[str, float]], start: float, position: float
) -> None:
    text = spoken(pieces, start).text(position)
    ends = list(accumulate((seconds for _, seconds in pieces), initial=start))[1:]
    over = sum(end <= position for end in ends)
    near = sum(end <= position + 0.002 for end in ends)  # a speaker that resamples rounds
    whole = "".join(piece for piece, _ in pieces)
    assert whole.startswith(text)
    assert len(text) >= len("".join(piece for piece, _ in pieces[:over]))
    if near < len(pieces):  # of the piece that is being played, at least its last word is not over
        rest = pieces[near][0]
        assert len(text) < len("".join(piece for piece, _ in pieces[:near]) + rest)
        assert pieces[near][1] > 0 or text == "".join(piece for piece, _ in pieces[:near])


@given(pieces, st.lists(positions, max_size=8).map(sorted), positions)
def test_each_piece_is_announced_once_and_only_what_is_remembered(
    pieces: list[tuple[str, float]], looks: list[float], stopped: float
) -> None:
    recorded = spoken(pieces)
    before = [text for look in looks if look <= stopped for text in recorded.newly_played(look)]
    remembered = recorded.text(stopped)
    announced = before + [text for look in looks for text in recorded.newly_played(look)]
    assert announced == [text for text, _ in pieces][: len(announced)]
    assert remembered.startswith("".join(announced))


def test_a_piece_whose_length_is_not_known_was_not_played() -> None:
    recorded = SpokenText()
    assert recorded.end is None
    recorded.begin("It rains. ", 3.0)
    assert recorded.newly_played(1000.0) == []
    assert recorded.text(1000.0) == ""


def test_nothing_counts_as_played_beyond_the_position_at_which_the_speech_failed() -> None:
    recorded = spoken([("One. ", 1.0), ("Two. ", 1.0)])
    recorded.stop(1.5)
    assert recorded.newly_played(9.0) == ["One. "]


def test_a_number_takes_the_time_that_its_words_take() -> None:
    recorded = spoken([("It costs $1,234,567.89 in the big city. ", 10.0)])
    assert recorded.text(5.0) == "It costs ", "the number is being spoken"
    assert spoken([("It costs $1,234,567.89 in the big city. ", 10.0)]).text(9.0).startswith("It costs $1,234,567.89 ")


def test_the_time_until_the_next_piece_was_played_is_known_once_its_end_is() -> None:
    spoken = SpokenText()
    assert spoken.seconds_to_next(0.0) == math.inf
    spoken.begin("One. ", 1.0)
    assert spoken.seconds_to_next(1.0) == math.inf
    spoken.finish(3.0)
    assert spoken.seconds_to_next(1.5) == 1.5
    assert spoken.newly_played(3.0) == ["One. "]
    assert spoken.seconds_to_next(3.0) == math.inf
