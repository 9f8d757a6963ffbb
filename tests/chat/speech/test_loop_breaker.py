"""Tests that echoes of a reply are told from turns of people; the reply is recorded questions."""

import numpy as np
import pytest

from tests.support import room
from tests.support.room import SECOND, echo
from voxcli.audio.clip import Samples
from voxcli.chat.speech.echo import EchoCanceller, Timeline
from voxcli.chat.speech.loop_breaker import LOOP_TURNS, LoopBreaker


@pytest.fixture(scope="module", name="reply")
def _reply() -> Samples:
    return room.reply()


@pytest.fixture(scope="module", name="person")
def _person() -> Samples:
    return room.person()


@pytest.fixture
def timeline(reply: Samples) -> Timeline:
    """Return a timeline on which the reply was played from second 10 on."""
    played = Timeline(40)
    played.write(10 * SECOND, reply)
    return played


def turns(timeline: Timeline, *clips: tuple[Samples, float]) -> list[bool]:
    """Pass turns to a loop breaker: clips, and the seconds at which they start."""
    breaker = LoopBreaker()
    return [breaker.answers_itself(clip, round(seconds * SECOND), timeline) for clip, seconds in clips]


def own_turn(reply: Samples, seconds: float, length: float = 2.0) -> tuple[Samples, float]:
    """Return a turn that is the echo of the reply."""
    start = round((seconds - 10) * SECOND)
    return echo(reply, delay_ms=150)[start : start + round(length * SECOND)], seconds


def test_three_echoes_in_a_row_are_a_loop_reported_once(timeline: Timeline, reply: Samples) -> None:
    own = [own_turn(reply, seconds) for seconds in (10.5, 13, 15, 17, 19, 20)]
    assert turns(timeline, *own) == [False] * (LOOP_TURNS - 1) + [True, False, False, False]


def test_the_end_of_a_reply_counts(timeline: Timeline, reply: Samples) -> None:
    end = 10 + len(reply) / SECOND
    captured = echo(np.pad(reply, (0, SECOND)), delay_ms=400)[round((end - 10 - 0.5) * SECOND) :]
    assert turns(timeline, *[(captured, end - 0.5)] * 3) == [False, False, True]


def test_what_a_failing_canceller_lets_through_is_a_loop(timeline: Timeline, reply: Samples) -> None:
    captured = echo(reply, delay_ms=100)
    wrong = Timeline(20)
    wrong.write(4800, reply)  # 0.3 s late: the canceller expects each echo too late.
    canceller = EchoCanceller(wrong)
    residue = np.concatenate([canceller.clean(captured[first : first + 320]) for first in range(0, 8 * SECOND, 320)])
    clips = [(residue[s * SECOND : (s + 2) * SECOND], 10.0 + s) for s in (1, 3, 5)]
    assert turns(timeline, *clips)[-1]


def test_a_person_in_between_resets_the_count(timeline: Timeline, reply: Samples, person: Samples) -> None:
    own = [own_turn(reply, seconds) for seconds in (10.5, 13, 15, 17)]
    assert turns(timeline, own[0], own[1], (person, 14.0), own[2], own[3]) == [False] * 5


def test_people_who_interrupt_are_no_loop(timeline: Timeline, reply: Samples, person: Samples) -> None:
    captured = echo(reply, delay_ms=150)
    clips = []
    for seconds in (10.5, 13.0, 15.0, 17.0):
        start = round((seconds - 10) * SECOND)
        clips.append((captured[start : start + len(person)] + person, seconds))
    assert not any(turns(timeline, *clips))


def test_long_after_playback_the_same_words_are_no_loop(timeline: Timeline, reply: Samples) -> None:
    later = 10 + len(reply) / SECOND + 1.5
    assert not any(turns(timeline, *[(reply[: 2 * SECOND], later)] * 4))


@pytest.mark.parametrize("clip", [np.zeros(0, np.float32), np.zeros(SECOND, np.float32)], ids=["empty", "silent"])
def test_silence_matches_nothing(timeline: Timeline, clip: Samples) -> None:
    assert not any(turns(timeline, *[(clip, 11.0)] * 4))
