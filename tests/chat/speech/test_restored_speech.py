"""Speech that a new canceller takes for echo: it is restored where no echo came back, and nowhere else."""

import numpy as np
import pytest

from tests.support import room
from tests.support.room import SECOND, echo, level
from voxcli.audio.clip import Samples
from voxcli.chat.devices.echo_path import EARLIEST_SAMPLES, LATEST_SAMPLES
from voxcli.chat.speech.double_talk import LOUD_SAMPLES, MOST_SAMPLES, is_loud_person
from voxcli.chat.speech.echo import (
    LAG_SAMPLES,
    REST_SAMPLES,
    SUPPRESSION_SAMPLES,
    EchoCanceller,
    Timeline,
)

BLOCK_SAMPLES = 320
ALL = 60 * SECOND
SPOKEN = SECOND * 4 // 10  # From the person's first sample until somebody asks.
BEGUN = SECOND * 3 // 10  # From the playback's first sample to the person's.


@pytest.fixture(scope="module", name="reply")
def _reply() -> Samples:
    said = room.reply()
    return said[np.argmax(np.abs(said) > 0.02) :]


@pytest.fixture(scope="module", name="person")
def _person() -> Samples:
    return room.person()


class Talk:
    """A canceller, and the positions up to which it has processed the microphone's signal."""

    def __init__(self, *, noise_suppression: bool = False, gain_control: bool = False) -> None:
        self.timeline = Timeline(20)
        self.canceller = EchoCanceller(self.timeline, noise_suppression=noise_suppression, gain_control=gain_control)
        self.position = 0
        self.output = np.zeros(0, np.float32)

    def hear(self, captured: Samples, played: Samples | None = None) -> None:
        """Process a stretch of the microphone's signal, of whole blocks, while something plays or nothing."""
        for first in range(0, len(captured), BLOCK_SAMPLES):
            if played is not None:
                self.timeline.write(self.position, played[first : first + BLOCK_SAMPLES])
            block = captured[first : first + BLOCK_SAMPLES]
            self.output = np.concatenate((self.output, self.canceller.clean(block)))
            self.position += len(block)


def spoken_over(
    reply: Samples, person: Samples, level_db: float = -200, delay_ms: int = 120
) -> tuple[Samples, Samples]:
    """Return the beginning of a reply, and a microphone that picks up its echo and, a little later, a person."""
    played = reply[: BEGUN + SPOKEN]
    captured = echo(played, delay_ms=delay_ms, level_db=level_db)
    captured[BEGUN:] += person[:SPOKEN]
    return played, captured


def quiet(seconds: float) -> Samples:
    return np.random.default_rng(7).normal(0, 10 ** (-70 / 20), round(seconds * SECOND)).astype(np.float32)


def test_without_an_echo_speech_over_the_first_reply_is_restored_exactly(reply: Samples, person: Samples) -> None:
    """What is returned, and what follows, is the stream of a canceller for which nothing ever played."""
    played, captured = spoken_over(reply, person)
    more = np.concatenate((person[SPOKEN : 2 * SECOND], quiet(1)))
    talk, undisturbed = Talk(), Talk()
    talk.hear(quiet(2))
    talk.hear(captured, played)
    first_word = talk.output[-SPOKEN : -SPOKEN // 2]
    restored = talk.canceller.restore_speech(ALL)
    talk.hear(more)
    undisturbed.hear(np.concatenate((quiet(2), captured, more)))
    assert restored is not None
    end = 2 * SECOND + len(captured) - LAG_SAMPLES
    np.testing.assert_allclose(restored, undisturbed.output[end - len(restored) : end], atol=1e-6)
    np.testing.assert_allclose(talk.output[end:], undisturbed.output[end:], atol=1e-6)
    assert len(restored) >= len(played)
    assert level(first_word) < level(person[: SPOKEN // 2]) - 3


@pytest.mark.parametrize("most", [0, 1, 500, 5000])
def test_no_more_is_returned_than_was_asked_for(reply: Samples, person: Samples, most: int) -> None:
    played, captured = spoken_over(reply, person)
    wanted, whole = Talk(), Talk()
    for talk in (wanted, whole):
        talk.hear(captured, played)
    restored, everything = wanted.canceller.restore_speech(most), whole.canceller.restore_speech(ALL)
    assert restored is not None
    assert everything is not None
    np.testing.assert_array_equal(restored, everything[len(everything) - most :])


def test_at_most_three_seconds_are_returned(person: Samples) -> None:
    """A faint playback tells nothing of the echo, however long it lasts."""
    played = np.random.default_rng(0).normal(0, 0.005, 6 * SECOND).astype(np.float32)
    talk = Talk()
    talk.hear(np.tile(person, 2), played)
    restored = talk.canceller.restore_speech(ALL)
    assert restored is not None
    assert len(restored) == MOST_SAMPLES


@pytest.mark.parametrize("suppressed", [False, True])
def test_noise_suppression_and_gain_control_move_nothing(reply: Samples, person: Samples, suppressed: bool) -> None:
    played, captured = spoken_over(reply, person)
    talk = Talk(noise_suppression=suppressed, gain_control=not suppressed)
    talk.hear(captured, played)
    restored = talk.canceller.restore_speech(SPOKEN)
    lag = LAG_SAMPLES + (SUPPRESSION_SAMPLES if suppressed else 0)
    assert restored is not None
    assert len(restored) == SPOKEN
    reference = captured[len(captured) - lag - SPOKEN : len(captured) - lag]
    spectrum = np.fft.rfft(np.diff(restored)) * np.fft.rfft(np.diff(reference)).conj()
    assert abs((np.argmax(np.fft.irfft(spectrum, SPOKEN - 1)) + 20) % (SPOKEN - 1) - 20) <= 2
    assert level(restored[-SPOKEN // 2 :]) > level(reference[-SPOKEN // 2 :]) - 6


@pytest.mark.parametrize("suppressed", [False, True])
def test_restored_speech_does_not_begin_with_what_was_said_long_before(
    reply: Samples, person: Samples, suppressed: bool
) -> None:
    played, captured = spoken_over(reply, person)
    talk, undisturbed = (Talk(noise_suppression=suppressed, gain_control=not suppressed) for _ in range(2))
    for each, meanwhile in ((talk, played), (undisturbed, None)):
        each.hear(person[SECOND : 2 * SECOND])
        each.hear(captured, meanwhile)
    restored = talk.canceller.restore_speech(ALL)
    assert restored is not None
    beginning = undisturbed.output[-len(restored) :][:SUPPRESSION_SAMPLES]
    assert level(restored[:SUPPRESSION_SAMPLES] - beginning) < level(beginning) - 6


# An echo stays cancelled.


@pytest.mark.parametrize("delay_ms", [20, 150, 450, 800])
@pytest.mark.parametrize("level_db", [0, -20, -30])
@pytest.mark.parametrize("seconds", [1.3, 1.9])
def test_an_echo_is_not_taken_for_a_person(reply: Samples, level_db: int, delay_ms: int, seconds: float) -> None:
    """The canceller may fail for so long that its output holds the reply's words."""
    for seed in range(3):
        talk = Talk()
        captured = echo(reply, delay_ms=delay_ms, level_db=level_db, seed=seed)[: round(seconds * SECOND)]
        talk.hear(captured, reply)
        assert talk.canceller.restore_speech(ALL) is None


def test_where_an_echo_was_measured_nothing_is_restored(reply: Samples, person: Samples) -> None:
    talk = Talk()
    talk.hear(echo(reply, delay_ms=120)[: 8 * SECOND], reply)
    assert talk.canceller.delay is not None
    talk.hear(quiet(3))
    played, captured = spoken_over(reply, person, level_db=-40)
    talk.hear(captured, played)
    assert talk.canceller.restore_speech(ALL) is None


@pytest.mark.parametrize("pause", [0.5, 2 + REST_SAMPLES / SECOND])
def test_the_canceller_steps_aside_only_for_one_reply(reply: Samples, person: Samples, pause: float) -> None:
    """A wrong decision lasts no longer than the reply that the person has interrupted, with or without a rest."""
    talk = Talk()
    played, captured = spoken_over(reply, person)
    talk.hear(captured, played)
    assert talk.canceller.restore_speech(ALL) is not None
    talk.hear(quiet(pause))
    start = talk.position
    captured = echo(reply, delay_ms=60)
    talk.hear(captured, reply)
    assert level(talk.output[start + SECOND :]) < level(captured[SECOND:]) - 25


# Only what was cancelled can be restored.


def test_while_nothing_plays_there_is_nothing_to_restore(person: Samples) -> None:
    talk = Talk()
    assert talk.canceller.restore_speech(ALL) is None
    talk.hear(person)
    assert talk.canceller.restore_speech(ALL) is None


def test_where_the_canceller_is_bypassed_there_is_nothing_to_restore(reply: Samples, person: Samples) -> None:
    talk = Talk()
    talk.hear(np.concatenate((quiet(2), person)), reply)
    assert talk.canceller.restore_speech(ALL) is None


def test_who_asks_again_gets_the_same(reply: Samples, person: Samples) -> None:
    talk = Talk()
    played, captured = spoken_over(reply, person)
    talk.hear(captured, played)
    first, second = talk.canceller.restore_speech(ALL), talk.canceller.restore_speech(ALL)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)


# A loud person, before a detector finds speech.


def test_a_loud_person_is_heard_over_the_first_reply(reply: Samples, person: Samples) -> None:
    """The canceller hides a voice from the detector for a second or more; it steps aside sooner, on its own."""
    captured = echo(reply, delay_ms=0, level_db=-200)[: len(person)]
    captured[BEGUN:] += person[: len(person) - BEGUN]
    played = reply[: len(person)].copy()
    played[BEGUN + SECOND * 6 // 10 :] = 0  # Ducked a little later.
    talk = Talk()
    talk.hear(captured, played)
    heard = slice(BEGUN + SECOND * 6 // 10, BEGUN + SECOND * 12 // 10)
    assert level(talk.output[heard]) == pytest.approx(level(captured[heard]), abs=0.5)


def around(played: Samples, captured: Samples) -> tuple[Samples, Samples]:
    """Return the playback as `double_talk` needs it, and what the microphone picked up."""
    return np.pad(played[: len(captured)], (LATEST_SAMPLES, EARLIEST_SAMPLES)), captured


@pytest.mark.parametrize("delay_ms", [20, 150, 450])
@pytest.mark.parametrize("level_db", [6, 0, -8, -20])
def test_no_echo_is_a_loud_person(reply: Samples, level_db: int, delay_ms: int) -> None:
    for seed in range(3):
        captured = echo(reply, delay_ms=delay_ms, level_db=level_db, seed=seed)
        ends = range(SECOND // 2, 2 * SECOND, SECOND // 10)
        assert not any(is_loud_person(*around(reply, captured[:end])) for end in ends)


def test_the_playback_is_compared_in_whole_stretches() -> None:
    assert LATEST_SAMPLES % LOUD_SAMPLES == 0


def test_a_voice_as_faint_as_an_echo_is_not_taken_for_a_person(reply: Samples, person: Samples) -> None:
    loud, faint = person[:SECOND], person[:SECOND] * np.float32(1 / 30)
    assert is_loud_person(*around(reply, loud))
    assert not is_loud_person(*around(reply, faint))
    assert not is_loud_person(*around(reply, np.zeros(SECOND, np.float32)))


def test_after_a_bang_an_echo_is_cancelled_again(reply: Samples) -> None:
    captured = echo(reply, delay_ms=120)
    captured[SECOND // 10 : SECOND // 2] += np.random.default_rng(1).normal(0, 0.3, SECOND * 4 // 10)
    talk = Talk()
    talk.hear(captured, reply)
    assert level(talk.output[4 * SECOND :]) < level(captured[4 * SECOND :]) - 25
