"""The cues: when they are played, that no detector takes them for speech, and that playback doesn't notice them."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.support.live_doubles import clip_of
from tests.support.virtual_audio import RATE, SoundCard, missing_program, sound_card
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.audio.vad import FRAME_SAMPLES, Detector
from voxcli.chat.cues import ERROR, PEAK, READY, UTTERANCE_OVER, Cues, tones
from voxcli.chat.devices.portaudio import find_device, refresh_devices
from voxcli.chat.devices.speaker import OutputSpeaker
from voxcli.chat.events import LiveEvent, Notice, StateChanged, TurnFailed, TurnStarted
from voxcli.core.protocols import Utterance
from voxcli.errors import VoxError

SOUNDS = [READY, UTTERANCE_OVER, ERROR]
needs_sound_card = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")


class CueRecorder:
    """Implements `voxcli.chat.cues.CueSpeaker`."""

    def __init__(self) -> None:
        self.clips: list[AudioClip] = []

    def play_cue(self, clip: AudioClip) -> None:
        self.clips.append(clip)


def test_each_event_has_its_cue_and_ready_comes_once() -> None:
    recorder = CueRecorder()
    cues = Cues(recorder)
    spoken, typed = TurnStarted(Utterance(clip_of(100))), TurnStarted(Utterance(None, "Where?"))
    events: list[LiveEvent] = [StateChanged("listening"), spoken, typed, StateChanged("listening"), Notice("hm")]
    for event in [*events, TurnFailed(VoxError("it failed"))]:
        cues.show(event)
    assert [len(clip.samples) for clip in recorder.clips] == [len(tones(sound).samples) for sound in SOUNDS]


def test_the_cue_of_readiness_comes_each_time_the_chat_wakes() -> None:
    recorder = CueRecorder()
    cues = Cues(recorder)
    for state in ("asleep", "hearing", "thinking", "speaking", "listening", "asleep", "muted", "listening"):
        cues.show(StateChanged(state))
    assert [len(clip.samples) for clip in recorder.clips] == [len(tones(READY).samples)] * 2


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("gain", [0.1, 1, 10])
def test_a_cue_is_short_and_no_speech(sound: tuple[tuple[float, float], ...], gain: float) -> None:
    clip = tones(sound)
    assert clip.seconds <= 0.25
    assert np.abs(clip.samples).max() <= PEAK
    pause = np.random.default_rng(1).normal(0, 1e-4, SAMPLE_RATE // 2)
    samples = np.concatenate([pause, gain * clip.samples, pause]).astype(np.float32)
    detector = Detector()
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    assert max(detector.probability(frame) for frame in frames) < 0.35


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundCard]:
    with sound_card() as card:
        for name, value in card.environment.items():
            monkeypatch.setenv(name, value)
        refresh_devices()
        yield card
    monkeypatch.undo()
    refresh_devices()


@needs_sound_card
def test_playback_does_not_notice_a_cue(card: SoundCard) -> None:
    speaker = OutputSpeaker(replace(find_device("output"), sample_rate=RATE))
    cue, reply = tones(READY), clip_of(SAMPLE_RATE // 2, 0.0)
    with card.recording() as recording:
        recording.wait_for(0.3)
        speaker.play_cue(cue)
        assert not speaker.is_playing  # Half-duplex keeps the microphone open.
        end = speaker.play(reply, threading.Event())
        speaker.wait(end, threading.Event())
        recording.wait_for(0.3)
    assert end == pytest.approx(reply.seconds, abs=0.001)  # it waited for no cue
    assert speaker.position == pytest.approx(end, abs=0.001)
    speaker.close()
    loud = np.flatnonzero(np.abs(recording.samples) > PEAK / 10)
    assert np.abs(recording.samples).max() == pytest.approx(PEAK, rel=0.1)
    assert (loud[-1] - loud[0]) / RATE == pytest.approx(cue.seconds, abs=0.02)
