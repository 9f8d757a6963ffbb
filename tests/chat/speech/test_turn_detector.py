"""Tests of the end-of-turn model on whole questions and on fragments."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.chat.speech.turn_detector import INSTALL, MODEL, features, load
from voxcli.errors import ModelError

QUESTIONS = sorted((Path(__file__).parent.parent.parent.parent / "examples" / "questions").glob("*.flac"))
noise = np.random.default_rng(0).normal(0, 0.1, 12 * SAMPLE_RATE).astype(np.float32)


@pytest.fixture(scope="module")
def is_complete() -> Callable[[AudioClip], bool]:
    return load()


def broken_off(samples: Samples, share: float) -> AudioClip:
    """Return the first part of a question, given as a share of its voice."""
    first, last = np.flatnonzero(np.abs(samples) > 0.02)[[0, -1]]
    return AudioClip(samples[: first + round(share * (last - first))])


def test_whole_questions_are_complete_and_broken_ones_are_not(is_complete: Callable[[AudioClip], bool]) -> None:
    clips = [read_audio(path) for path in QUESTIONS]
    whole = [is_complete(clip) for clip in clips]
    broken = [is_complete(broken_off(clip.samples, share)) for clip in clips for share in (0.5, 0.7)]
    assert whole.count(True) > 0.6 * len(whole)
    assert broken.count(False) > 0.6 * len(broken)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 2.5, 8.0, 12.0])
def test_the_features_are_those_of_the_model_training(seconds: float) -> None:
    from transformers import WhisperFeatureExtractor

    clip = AudioClip(noise[: round(seconds * SAMPLE_RATE)])
    window = np.zeros(8 * SAMPLE_RATE, np.float32)
    heard = clip.samples[-len(window) :]
    window[len(window) - len(heard) :] = heard
    extractor: Any = WhisperFeatureExtractor(chunk_length=8)  # type: ignore[no-untyped-call]
    (expected,) = extractor(window, sampling_rate=SAMPLE_RATE, do_normalize=True, return_tensors="np")["input_features"]
    assert features(clip).dtype == np.float32
    np.testing.assert_allclose(features(clip), expected, atol=1e-4)


def test_only_the_last_eight_seconds_count() -> None:
    question = read_audio(QUESTIONS[0]).samples
    end = np.concatenate([np.zeros(8 * SAMPLE_RATE - len(question), np.float32), question])
    assert np.array_equal(features(AudioClip(np.concatenate([noise, end]))), features(AudioClip(question)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silence(value: float) -> None:
    silent, damaged = noise[:SAMPLE_RATE].copy(), noise[:SAMPLE_RATE].copy()
    silent[100:200], damaged[100:200] = 0, value
    assert np.array_equal(features(AudioClip(damaged)), features(AudioClip(silent)))


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(SAMPLE_RATE), np.ones(SAMPLE_RATE)], ids=len)
def test_a_clip_without_sound_gets_a_verdict(samples: Samples, is_complete: Callable[[AudioClip], bool]) -> None:
    assert is_complete(AudioClip(samples.astype(np.float32))) in (True, False)


@pytest.mark.parametrize("clip", [AudioClip(noise, 8_000), AudioClip(noise.reshape(2, -1))], ids=["rate", "shape"])
def test_another_rate_or_shape_is_refused(clip: AudioClip, is_complete: Callable[[AudioClip], bool]) -> None:
    with pytest.raises(ValueError, match="mono clip at 16000 Hz"):
        is_complete(clip)


def test_without_the_package_the_extra_is_named() -> None:
    with pytest.raises(ModelError, match="needs packages") as caught:
        load(find=lambda _: None)
    assert caught.value.hint == "pip install 'voxcli[smart-turn]'"


def test_without_the_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="needs packages") as caught:
        load()
    assert caught.value.hint == "pip install 'voxcli[smart-turn]'"


@pytest.mark.parametrize("content", [None, b"", b"\x80 not a model"])
def test_a_package_without_this_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / MODEL).parent.mkdir(parents=True)
        (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        load(find=lambda _: tmp_path)
    assert caught.value.hint == INSTALL
    assert "\n" not in caught.value.message


def test_loading_imports_no_package_and_prints_nothing() -> None:
    code = "import sys; from voxcli.chat.speech.turn_detector import load; load(); assert 'pipecat' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
