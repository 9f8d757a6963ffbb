"""`python -m benchmarks.wake_word`: what the real model finds in a few clips, and how its hits are counted."""

import shutil

import numpy as np
import pytest

from benchmarks.wake_word import BLOCK_SAMPLES, QUESTIONS, espeak, found_in, in_a_room, other_speech
from voxcli.audio.clip import SAMPLE_RATE, read_audio
from voxcli.chat.speech.wake_word import load
from voxcli.errors import ConfigError

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@needs_espeak
@pytest.mark.parametrize("level_dbfs", [-6.0, -20.0])
def test_the_wake_word_is_found_before_a_question(level_dbfs: float) -> None:
    clip = espeak("en-us+f3")("Hey Jarvis, what time is it?")
    assert found_in(load("hey_jarvis")(), in_a_room(clip.samples, level_dbfs)).times == 1


@needs_espeak
def test_a_spotter_is_fresh_each_time() -> None:
    new_spotter = load("hey_jarvis")
    room = in_a_room(espeak("en-us+f3")("Hey Jarvis").samples, -12.0)
    assert [found_in(new_spotter(), room).times for _ in range(2)] == [1, 1]


def test_questions_wake_nothing() -> None:
    spot = load("hey_jarvis")()
    clips = [read_audio(path) for path in sorted(QUESTIONS.glob("*.flac"))[:6]]
    assert [found_in(spot, in_a_room(clip.samples, -6.0)).times for clip in clips] == [0] * 6


def test_samples_that_are_no_numbers_wake_nothing() -> None:
    assert found_in(load("hey_jarvis")(), np.full(SAMPLE_RATE, np.nan, np.float32)).times == 0


def test_hits_that_follow_one_another_count_once() -> None:
    sound = np.zeros(SAMPLE_RATE * 4, np.float32)
    sound[: 20 * BLOCK_SAMPLES] = sound[3 * SAMPLE_RATE :][: 20 * BLOCK_SAMPLES] = 1
    assert found_in(lambda samples: bool(samples.any()), sound).times == 2


def test_a_folder_without_recordings_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no recordings"):
        next(other_speech([QUESTIONS.parent / "none"], {}))
