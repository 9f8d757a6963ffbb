"""Tests of speech detection in clips, on real voices and on other sounds."""

from pathlib import Path

import numpy as np
import pytest

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, read_audio
from voxcli.audio.vad import has_speech

QUESTIONS = sorted((Path(__file__).parent.parent.parent / "examples").rglob("*.flac"))
ALSA = Path("/usr/share/sounds/alsa")
people = pytest.mark.skipif(not ALSA.is_dir(), reason="the recordings of alsa-utils are not installed")


def noise(seconds: float, level: float) -> np.ndarray:
    samples = np.random.default_rng(0).normal(0, level, round(seconds * SAMPLE_RATE))
    return samples.astype(np.float32)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda path: path.stem)
def test_spoken_questions_have_speech(question: Path) -> None:
    assert has_speech(read_audio(question))


@people
@pytest.mark.parametrize("side", ["Front_Left", "Front_Center", "Rear_Right", "Side_Left"])
def test_people_have_speech(side: str) -> None:
    assert has_speech(read_audio(ALSA / f"{side}.wav"))


@people
def test_recorded_noise_has_none() -> None:
    assert not has_speech(read_audio(ALSA / "Noise.wav"))


@pytest.mark.parametrize("level", [0.001, 0.1])
def test_noise_has_none(level: float) -> None:
    assert not has_speech(AudioClip(noise(2, level)))


def test_tone_has_none() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    assert not has_speech(AudioClip(tone.astype(np.float32)))


def test_a_clip_shorter_than_a_frame_has_none() -> None:
    assert not has_speech(AudioClip(noise(0.02, 0.1)))


def test_one_sentence_is_found_in_a_long_recording() -> None:
    long = noise(120, 0.001)
    question = read_audio(QUESTIONS[0]).samples
    long[100 * SAMPLE_RATE :][: len(question)] += question
    assert has_speech(AudioClip(long))


def test_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="16000 Hz"):
        has_speech(AudioClip(noise(1, 0.1), 8_000))
