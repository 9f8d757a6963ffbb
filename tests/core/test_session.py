"""Sessions as values: placeholders, turns, the budget, names."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.core.session import NAME_LENGTH, Session, Turn, audio_placeholder, session_name
from voxcli.errors import ConfigError

turns = st.builds(Turn, user=st.text(), reply=st.text(), interrupted=st.booleans(), prompt=st.text())
conversations = st.builds(Session, instructions=st.text(), turns=st.lists(turns, max_size=12).map(tuple))


def length(turn: Turn) -> int:
    """Stand in for a count of tokens."""
    return len(turn.user_text) + len(turn.reply)


@pytest.mark.parametrize(
    ("samples", "placeholder"),
    [
        (35_200, "[User audio input - 35200 samples, 2.20s]"),
        (16_000, "[User audio input - 16000 samples, 1.00s]"),
        (28_800_000, "[User audio input - 28800000 samples, 1800.00s]"),
        (1_600, "[User audio input - 1600 samples, 0.10s]"),
    ],
)
def test_placeholder_gives_samples_and_seconds(samples: int, placeholder: str) -> None:
    assert audio_placeholder(samples, 16_000) == placeholder


def test_text_given_with_the_audio_stands_after_the_placeholder() -> None:
    placeholder = audio_placeholder(16_000, 16_000)
    assert Turn(placeholder, "yes", prompt="Is this a dog?").user_text == f"{placeholder}\nIs this a dog?"
    assert Turn(placeholder, "yes").user_text == placeholder


def test_adding_a_turn_leaves_the_old_session_as_it_was() -> None:
    before = Session("kitchen", "be short")
    after = before.add(Turn("a", "b"))
    assert before.turns == ()
    assert after == Session("kitchen", "be short", (Turn("a", "b"),))


@given(conversations, st.integers(0, 15))
def test_last_keeps_the_newest_turns(session: Session, count: int) -> None:
    kept = session.last(count)
    assert kept.turns == session.turns[max(0, len(session.turns) - count) :]
    assert kept.instructions == session.instructions


@given(conversations, st.integers(0, 60))
def test_budget_drops_whole_oldest_turns_and_no_more_than_needed(session: Session, budget: int) -> None:
    kept = session.within(budget, length)
    dropped = len(session.turns) - len(kept.turns)
    assert kept.turns == session.turns[dropped:]
    assert sum(map(length, kept.turns)) <= budget
    if dropped:
        assert sum(map(length, session.turns[dropped - 1 :])) > budget
    assert kept.instructions == session.instructions


def test_a_newest_turn_beyond_the_budget_hides_the_older_ones_too() -> None:
    session = Session(instructions="be short", turns=(Turn("a", "b"), Turn("c", "d" * 100)))
    assert session.within(50, length) == Session(instructions="be short")


def test_budget_does_not_look_at_turns_that_are_out_of_reach() -> None:
    asked: list[Turn] = []

    def cost(turn: Turn) -> int:
        asked.append(turn)
        return 10

    session = Session(turns=tuple(Turn(str(number), "") for number in range(500)))
    assert len(session.within(30, cost).turns) == 3
    assert len(asked) == 4


@pytest.mark.parametrize("name", ["kitchen", "Küche 2", "日本語", "-x", "..", "a" * NAME_LENGTH, "क्\u200dष"])
def test_names_may_be_in_any_script(name: str) -> None:
    assert session_name(f"  {name} ") == unicodedata.normalize("NFC", name)


def test_one_name_typed_in_two_ways_is_one_name() -> None:
    assert session_name("Ku\u0308che") == session_name("K\u00fcche")


@pytest.mark.parametrize(
    "name", ["", "  ", "a" * 101, "a/b", "a\\b", "a\nb", "\x1b[2J", "a\0b", "a\u2028b", "a\udcffb"]
)
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        session_name(name)
