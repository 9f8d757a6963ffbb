"""Contracts of the speaker and the microphone, kept by the doubles and by the real devices alike."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import numpy as np
import pytest

from tests.support.listener_harness import FakeMicrophone
from tests.support.live_doubles import HeldSpeaker
from tests.support.turns import LoudSpeaker
from tests.support.virtual_audio import SoundCard, missing_program
from tests.support.virtual_microphone import say, studio
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.chat.devices.failsafe import FailsafeSpeaker
from voxcli.chat.devices.microphone import Microphone
from voxcli.chat.devices.portaudio import find_device
from voxcli.chat.devices.speaker import OutputSpeaker, open_speaker
from voxcli.chat.listener import MicrophoneSource
from voxcli.core.protocols import Speaker
from voxcli.core.testing import FakeSpeaker

REAL = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")
Capture = Callable[[Samples], None]
Opened = tuple[MicrophoneSource, Capture]


@pytest.fixture(scope="module")
def card() -> Iterator[SoundCard]:
    with studio() as card:
        yield card


def sound(seconds: float) -> AudioClip:
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return AudioClip((0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32))


# The speaker.


def held_speaker() -> HeldSpeaker:
    speaker = HeldSpeaker()
    speaker.finish.set()
    return speaker


@pytest.fixture(
    params=["fake", "held", "loud", "failsafe", pytest.param("real", marks=REAL)],
)
def speaker(request: pytest.FixtureRequest) -> Iterator[Speaker]:
    doubles: dict[str, Callable[[], Speaker]] = {
        "fake": FakeSpeaker,
        "held": held_speaker,
        "loud": LoudSpeaker,
        "failsafe": lambda: FailsafeSpeaker(FakeSpeaker()),
    }
    if request.param == "real":
        request.getfixturevalue("card")
        with open_speaker() as real:
            assert isinstance(real, OutputSpeaker)
            yield real
    else:
        with closing(doubles[request.param]()) as double:
            yield double


def test_clips_are_played_one_after_another(speaker: Speaker) -> None:
    go_on = threading.Event()
    assert speaker.position == 0
    ends = [speaker.play(sound(seconds), go_on) for seconds in (0.2, 0.1)]
    assert ends == [pytest.approx(0.2, abs=0.001), pytest.approx(0.3, abs=0.001)]
    speaker.wait(ends[-1], go_on)
    assert speaker.position == pytest.approx(ends[-1])


def test_a_clip_of_an_interrupted_turn_is_not_played(speaker: Speaker) -> None:
    interrupt = threading.Event()
    interrupt.set()
    speaker.wait(speaker.play(sound(0.2), interrupt), interrupt)
    assert speaker.position == 0


def test_the_next_turn_is_played_after_an_interrupt(speaker: Speaker) -> None:
    interrupt, go_on = threading.Event(), threading.Event()
    speaker.wait(speaker.play(sound(0.1), interrupt), interrupt)
    interrupt.set()
    speaker.play(sound(0.3), interrupt)
    end = speaker.play(sound(0.1), go_on)
    assert end == pytest.approx(0.2, abs=0.001)
    speaker.wait(end, go_on)
    assert speaker.position == pytest.approx(end)


# The microphone.


@contextmanager
def fake_microphone(_: pytest.FixtureRequest) -> Iterator[Opened]:
    microphone = FakeMicrophone()
    yield microphone, microphone.capture


@contextmanager
def real_microphone(request: pytest.FixtureRequest) -> Iterator[Opened]:
    card: SoundCard = request.getfixturevalue("card")
    with closing(Microphone(find_device("input"))) as microphone:
        yield microphone, lambda samples: say(card, AudioClip(samples))


@pytest.fixture(params=[fake_microphone, pytest.param(real_microphone, marks=REAL)])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    open_microphone: Callable[[pytest.FixtureRequest], AbstractContextManager[Opened]] = request.param
    with open_microphone(request) as opened:
        yield opened


def test_blocks_follow_one_another_in_position_and_time(opened: Opened) -> None:
    microphone, capture = opened
    first = microphone.read(0)  # Every later sample is kept.
    position = first.position + len(first.samples) if first else 0
    clip = sound(0.4)
    capture(clip.samples)
    loud, ahead = 0, []
    while loud < 0.8 * len(clip.samples):  # a sine is louder than 0.1 for 87 % of the time
        block = microphone.read(0.1)
        if block is None:
            continue
        assert block.position == position
        assert block.samples.dtype == np.float32
        position += len(block.samples)
        ahead.append(block.captured_at - position / SAMPLE_RATE)
        loud += int(np.count_nonzero(np.abs(block.samples) > 0.1))
    assert microphone.overruns == 0
    assert np.median(np.abs(np.array(ahead) - ahead[0])) < 0.1  # a sound server dates single blocks less exactly
