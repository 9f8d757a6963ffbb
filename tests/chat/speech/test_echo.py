"""Tests of the echo canceller in a synthetic room, and of the timeline."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.support import room
from tests.support.room import SECOND, echo, level, voiced_frames
from voxcli.audio.clip import Samples
from voxcli.chat.speech.echo import (
    AHEAD_SAMPLES,
    CATCH_UP_SAMPLES,
    FRAME_SAMPLES,
    LAG_SAMPLES,
    REST_SAMPLES,
    SUPPRESSION_SAMPLES,
    EchoCanceller,
    Timeline,
    open_canceller,
)
from voxcli.errors import AudioDeviceError

BLOCK_SAMPLES = 320  # 20 ms, as devices deliver


@pytest.fixture(scope="module", name="reply")
def _reply() -> Samples:
    return room.reply()


@pytest.fixture(scope="module", name="person")
def _person() -> Samples:
    return room.person()


def clean(canceller: EchoCanceller, timeline: Timeline, played: Samples, captured: Samples, start: int = 0) -> Samples:
    """Run the canceller as the listener does, block by block from a position; return its output."""
    blocks = []
    for first in range(0, len(captured), BLOCK_SAMPLES):
        timeline.write(start + first, played[first : first + BLOCK_SAMPLES])
        blocks.append(canceller.clean(captured[first : first + BLOCK_SAMPLES]))
    return np.concatenate(blocks)


def cancelled(played: Samples, captured: Samples) -> Samples:
    timeline = Timeline(8)
    return clean(EchoCanceller(timeline), timeline, played, captured)


# The canceller.


def test_an_echo_falls_by_25_db_and_is_no_speech(reply: Samples) -> None:
    captured = echo(reply, delay_ms=60)
    assert voiced_frames(captured[SECOND:]) > 100
    residue = cancelled(reply, captured)
    assert level(residue[SECOND:]) < level(captured[SECOND:]) - 25
    assert voiced_frames(residue[SECOND:]) == 0


def test_a_talker_over_the_echo_stays(reply: Samples, person: Samples) -> None:
    captured = echo(reply, delay_ms=60)
    start = 6 * SECOND
    captured[start:][: len(person)] += person
    talker = cancelled(reply, captured)[start:][: len(person)]
    assert level(talker) == pytest.approx(level(person), abs=3)
    assert voiced_frames(talker) > 0.7 * voiced_frames(person)


@pytest.mark.parametrize("seed", range(4))
def test_other_rooms(reply: Samples, seed: int) -> None:
    captured = echo(reply, delay_ms=40 + 60 * seed, level_db=-8 - 4 * seed, seed=seed + 1)
    assert level(cancelled(reply, captured)[SECOND:]) < level(captured[SECOND:]) - 25


@pytest.mark.parametrize("bypassed", [False, True])
@pytest.mark.parametrize(
    ("suppressed", "controlled", "lag"),
    [
        (False, False, LAG_SAMPLES),
        (True, False, LAG_SAMPLES + SUPPRESSION_SAMPLES),
        (False, True, LAG_SAMPLES),
    ],
)
def test_each_sample_comes_out_at_its_own_position(
    suppressed: bool, controlled: bool, lag: int, bypassed: bool
) -> None:
    """Playback that returns no echo makes the canceller step aside, which moves nothing."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 4 * SECOND).astype(np.float32)
    noise[: 2 * SECOND] = 0
    timeline = Timeline(8)
    if bypassed:
        timeline.write(0, rng.normal(0, 0.1, 2 * SECOND).astype(np.float32))
    out = EchoCanceller(timeline, noise_suppression=suppressed, gain_control=controlled).clean(noise)
    assert len(out) == len(noise) - lag
    spectrum = np.fft.rfft(out) * np.fft.rfft(noise[: len(out)]).conj()
    assert np.argmax(np.fft.irfft(spectrum, len(out))) == 0


def test_blocks_of_any_length_give_the_same_stream(reply: Samples) -> None:
    captured = echo(reply, delay_ms=60)[: 3 * SECOND + 77]
    streams = []
    for seed in (0, 1):
        timeline, rng, blocks = Timeline(8), np.random.default_rng(seed), []
        timeline.write(0, reply[: len(captured)])
        canceller, rest = EchoCanceller(timeline), captured
        while len(rest):
            count = int(rng.integers(0, 700))
            blocks.append(canceller.clean(rest[:count]))
            rest = rest[count:]
        streams.append(np.concatenate(blocks))
    assert len(streams[0]) == len(captured) // FRAME_SAMPLES * FRAME_SAMPLES - LAG_SAMPLES
    np.testing.assert_array_equal(streams[0], streams[1])


def test_one_block_longer_than_what_is_kept(reply: Samples) -> None:
    timeline = Timeline(20)
    timeline.write(0, reply)
    out = EchoCanceller(timeline).clean(echo(reply, delay_ms=60))
    assert level(out[SECOND:]) < -60


def test_noise_suppression_lowers_a_steady_noise_and_leaves_speech(person: Samples) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 4 * SECOND + len(person)).astype(np.float32)
    captured = noise.copy()
    captured[4 * SECOND :] += person
    out = EchoCanceller(Timeline(8), noise_suppression=True).clean(captured)
    assert level(out[2 * SECOND : 4 * SECOND]) < level(noise) - 10
    assert level(out[4 * SECOND :]) == pytest.approx(level(person), abs=3)


def test_gain_control_raises_a_faint_voice(person: Samples) -> None:
    faint = np.tile(person / np.float32(30), 3)
    out = EchoCanceller(Timeline(8), gain_control=True).clean(faint)
    assert level(out[-len(person) :]) > level(faint) + 6


def test_samples_that_are_no_numbers_or_too_large() -> None:
    block = np.full(SECOND, np.nan, np.float32)
    block[::3], block[1::3] = np.inf, -7
    out = EchoCanceller(Timeline(8)).clean(block)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1


# The delay.


def test_a_delay_beyond_its_own_search_is_measured_and_taken_out(reply: Samples) -> None:
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    captured = echo(reply, delay_ms=800)
    residue = clean(canceller, timeline, reply, captured)
    assert canceller.delay is not None
    assert canceller.delay.delay_ms == pytest.approx(800, abs=5)
    assert len(residue) == len(captured) // FRAME_SAMPLES * FRAME_SAMPLES - LAG_SAMPLES
    assert level(residue[6 * SECOND :]) < level(captured[6 * SECOND :]) - 25


def test_an_echo_before_its_time(reply: Samples) -> None:
    """The device reports wrong times; the playback is known ahead."""
    timeline = Timeline(20)
    timeline.write(800, reply)  # 50 ms late
    canceller = EchoCanceller(timeline)
    residue = canceller.clean(captured := echo(reply, delay_ms=0))
    assert canceller.delay is not None
    assert canceller.delay.delay_ms == pytest.approx(-50, abs=5)
    assert level(residue[6 * SECOND :]) < level(captured[6 * SECOND :]) - 20


def test_a_delay_that_is_set_holds_from_the_first_word(reply: Samples) -> None:
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    canceller.set_delay(0.8)
    residue = clean(canceller, timeline, reply, captured := echo(reply, delay_ms=800))
    assert level(residue[SECOND : 3 * SECOND]) < level(captured[SECOND : 3 * SECOND]) - 20


def test_a_new_canceller_has_converged_when_it_takes_over(reply: Samples) -> None:
    """The switch leaves no gap in the stream and lets no echo through."""
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    captured = echo(reply, delay_ms=800)
    moved_at = 30_400  # Shortly before the canceller would measure the delay itself.
    clean(canceller, timeline, reply[:moved_at], captured[:moved_at])
    canceller.set_delay(0.8)
    residue = clean(canceller, timeline, reply[moved_at:], captured[moved_at:], start=moved_at)
    assert level(residue[:SECOND]) < level(captured[moved_at:][:SECOND]) - 25
    assert residue[:LAG_SAMPLES].any()


def test_headphones_keep_the_measured_delay(reply: Samples, person: Samples) -> None:
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    clean(canceller, timeline, reply, echo(reply, delay_ms=120))
    measured = canceller.delay
    quiet = echo(reply, delay_ms=0, level_db=-200)
    quiet[SECOND:][: len(person)] += person
    clean(canceller, timeline, reply, quiet, start=len(reply))
    assert measured is not None
    assert canceller.delay is not None
    assert canceller.delay.delay_ms == pytest.approx(120, abs=5)


def test_without_an_echo_a_person_is_not_attenuated(reply: Samples, person: Samples) -> None:
    """With headphones, a person who talks over a reply is not taken for its echo."""
    captured = np.random.default_rng(1).normal(0, 10 ** (-70 / 20), len(reply)).astype(np.float32)
    start = 2 * SECOND
    captured[start:][: len(person)] += person
    talker = cancelled(reply, captured)[start:]
    first_word = slice(0, SECOND // 2)
    assert level(talker[first_word]) == pytest.approx(level(captured[start:][first_word]), abs=0.5)


def test_an_echo_that_appears_is_cancelled_again(reply: Samples) -> None:
    """The headphones are taken off."""
    played = np.tile(reply, 2)
    captured = echo(played, delay_ms=60)
    captured[: 4 * SECOND] = 0
    residue = cancelled(played, captured)
    assert level(residue[-6 * SECOND :]) < level(captured[-6 * SECOND :]) - 20


def test_nothing_is_measured_while_nothing_plays(person: Samples) -> None:
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    out = clean(canceller, timeline, np.zeros_like(person), person)
    assert canceller.delay is None
    assert level(out) == pytest.approx(level(person), abs=1)


class Counting:
    """A module that changes nothing and counts its frames."""

    def __init__(self) -> None:
        self.frames = 0

    def process_reverse_stream(self, frame: object) -> None:
        pass

    def process_stream(self, frame: object) -> None:
        self.frames += 1


def test_the_canceller_rests_while_nothing_plays() -> None:
    counting, timeline = Counting(), Timeline(20)

    def new_module() -> Any:
        return counting

    canceller = EchoCanceller(timeline, new_module)
    silence = np.zeros(5 * SECOND, np.float32)
    clean(canceller, timeline, silence, silence)
    assert counting.frames == 0
    clean(canceller, timeline, np.ones(SECOND, np.float32), silence[:SECOND], start=5 * SECOND)
    assert counting.frames == (SECOND + CATCH_UP_SAMPLES) // FRAME_SAMPLES
    clean(canceller, timeline, silence, silence, start=6 * SECOND)
    assert counting.frames == (CATCH_UP_SAMPLES + SECOND + REST_SAMPLES) // FRAME_SAMPLES


def test_after_a_rest_it_cancels_as_before(reply: Samples) -> None:
    """What the canceller has learned from one reply holds for the first word of the next."""
    rest = np.zeros(5 * SECOND, np.float32)
    again = reply[np.argmax(np.abs(reply) > 0.1) :][: 4 * SECOND]
    played = np.concatenate((reply[: 6 * SECOND], rest, again))
    captured = echo(played, delay_ms=120)
    first_word = slice(len(played) - len(again), len(played) - len(again) + SECOND // 2)
    residue = cancelled(played, captured)
    assert level(residue[first_word]) < level(captured[first_word]) - 20
    assert voiced_frames(residue[first_word.start :]) == 0


def test_the_stream_has_no_step_where_it_rests_and_resumes(person: Samples) -> None:
    """A hum below the range of speech is removed whether something plays or not."""
    hum = 0.05 * np.sin(2 * np.pi * 50 * np.arange(8 * SECOND) / SECOND).astype(np.float32)
    played = np.zeros_like(hum)
    played[3 * SECOND : 4 * SECOND] = person[:SECOND] / 100
    residue = cancelled(played, hum)
    assert np.abs(residue[SECOND // 2 :]).max() < 0.002


# The timeline.


def test_timeline_gives_back_what_was_written() -> None:
    timeline = Timeline(100 / SECOND)
    timeline.write(10, np.arange(1, 6, dtype=np.float32))
    timeline.write(20, np.array([9, 9], np.float32))
    timeline.write(12, np.array([7], np.float32))
    assert timeline.read(8, 24).tolist() == [0, 0, 1, 2, 7, 4, 5, 0, 0, 0, 0, 0, 9, 9, 0, 0]


def test_timeline_forgets_what_is_old() -> None:
    timeline = Timeline(4 / SECOND)
    timeline.write(-3, np.array([5, 5, 5, 5], np.float32))
    timeline.write(0, np.arange(1, 11, dtype=np.float32))
    timeline.write(2, np.array([8, 8], np.float32))  # too late
    assert timeline.read(0, 12).tolist() == [0, 0, 0, 0, 0, 0, 7, 8, 9, 10, 0, 0]
    timeline.write(50, np.array([1], np.float32))
    assert timeline.read(46, 52).tolist() == [0, 0, 0, 0, 1, 0]
    assert timeline.read(5, 5).tolist() == []


def test_a_device_that_asks_in_bursts(reply: Samples) -> None:
    """Sound is handed over 0 to 80 ms at a time and captured 150 ms later."""
    rng = np.random.default_rng(3)
    timeline = Timeline(8)
    canceller = EchoCanceller(timeline)
    captured, handed, residue = echo(reply, delay_ms=150), 0, []
    for position in range(0, len(captured), BLOCK_SAMPLES):
        until = max(handed, position + BLOCK_SAMPLES - int(rng.integers(0, 4)) * BLOCK_SAMPLES)
        timeline.append_playback(position, reply[handed:until])
        handed = until
        residue.append(canceller.clean(captured[position : position + BLOCK_SAMPLES]))
    cleaned = np.concatenate(residue)
    assert level(cleaned[3 * SECOND :]) < level(captured[3 * SECOND :]) - 25
    assert voiced_frames(cleaned[3 * SECOND :]) == 0


def test_pieces_that_follow_are_joined_without_holes(reply: Samples) -> None:
    timeline = Timeline(8)
    for position, first, last in ((0, 0, 700), (320, 700, 700), (640, 700, 1200), (960, 1200, 1500)):
        timeline.append_playback(position, reply[first:last])
    np.testing.assert_array_equal(timeline.read(AHEAD_SAMPLES, AHEAD_SAMPLES + 1500), reply[:1500])


def test_a_device_that_paused_leaves_silence() -> None:
    timeline = Timeline(8)
    ones = np.ones(320, np.float32)
    timeline.append_playback(0, ones)
    timeline.append_playback(5000, ones)
    played = timeline.read(0, 5000 + AHEAD_SAMPLES + 320)
    assert np.flatnonzero(played).tolist() == [
        *range(AHEAD_SAMPLES, AHEAD_SAMPLES + 320),
        *range(5000 + AHEAD_SAMPLES, 5000 + AHEAD_SAMPLES + 320),
    ]


def test_after_the_microphone_paused_later_playback_is_dropped() -> None:
    timeline = Timeline(8)
    timeline.append_playback(0, np.ones(3 * SECOND, np.float32))
    timeline.append_playback(320, np.full(320, 2, np.float32))
    start = 320 + AHEAD_SAMPLES
    assert np.flatnonzero(timeline.read(0, 4 * SECOND)).tolist() == list(range(start, start + 320))
    assert timeline.read(start, start + 1).tolist() == [2]


# Without a canceller.


def test_choice_of_the_canceller() -> None:
    timeline = Timeline(8)
    assert open_canceller("off", timeline) == (None, "")
    for setting in ("auto", "on"):
        canceller, notice = open_canceller(setting, timeline)
        assert isinstance(canceller, EchoCanceller)
        assert notice == ""


WITHOUT_LIVEKIT = """
import sys
sys.modules["livekit"] = None
from voxcli.errors import AudioDeviceError
from voxcli.chat.speech.echo import Timeline, open_canceller
print(open_canceller("auto", Timeline(8)))
try:
    open_canceller("on", Timeline(8))
except AudioDeviceError as error:
    print(error.message, "|", error.hint)
"""


def test_without_the_extra() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_LIVEKIT], capture_output=True, text=True, check=True)
    auto, on = run.stdout.splitlines()
    assert auto.startswith("(None, ")
    assert "microphone is ignored while a reply plays: pip install 'voxcli[echo]'" in auto
    assert on == "Echo cancellation needs packages that are not installed | pip install 'voxcli[echo]'"


def test_importing_it_loads_no_canceller() -> None:
    code = "import sys, voxcli.chat.speech.echo; sys.exit('livekit' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_canceller_that_fails_is_an_error_of_the_device(reply: Samples) -> None:
    class Failing:
        def process_reverse_stream(self, frame: object) -> None:
            raise RuntimeError("an RtcError occurred")

    timeline = Timeline(8)
    timeline.write(0, reply)
    canceller = EchoCanceller(timeline, Failing)  # type: ignore[arg-type]
    with pytest.raises(AudioDeviceError, match="the echo canceller fails: an RtcError occurred"):
        canceller.clean(reply[:BLOCK_SAMPLES])
