"""Tests of the end-of-turn model on whole questions and on fragments."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.chat.speech import turn_model
from voxcli.chat.speech.turn_detector import Setting, TurnDetector, normalized_window, open_detector
from voxcli.engines.embedded.log_mel import open_log_mel
from voxcli.errors import ModelError

QUESTIONS = sorted((Path(__file__).parent.parent.parent.parent / "examples" / "questions").glob("*.flac"))
noise = np.random.default_rng(0).normal(0, 0.1, 12 * SAMPLE_RATE).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Path:
    path = turn_model.packaged()
    assert path, "the set-up for tests installs pipecat-ai"
    return path


@pytest.fixture(scope="module")
def detector(model: Path) -> TurnDetector:
    return TurnDetector(model)


@pytest.fixture
def cache(model: Path, tmp_path: Path) -> Path:
    """A cache folder into which the model was fetched."""
    turn_model.fetch(tmp_path)
    return tmp_path


def broken_off(samples: Samples, share: float) -> AudioClip:
    """Return the first part of a question, given as a share of its voice."""
    first, last = np.flatnonzero(np.abs(samples) > 0.02)[[0, -1]]
    return AudioClip(samples[: first + round(share * (last - first))])


def test_whole_questions_are_complete_and_broken_ones_are_not(detector: TurnDetector) -> None:
    clips = [read_audio(path) for path in QUESTIONS[::2]]
    whole = [detector.is_complete(clip) for clip in clips]
    broken = [detector.is_complete(broken_off(clip.samples, 0.6)) for clip in clips]
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
    np.testing.assert_allclose(open_log_mel()(normalized_window(clip)), expected, atol=1e-4)


def test_only_the_last_eight_seconds_count() -> None:
    question = read_audio(QUESTIONS[0]).samples
    end = np.concatenate([np.zeros(8 * SAMPLE_RATE - len(question), np.float32), question])
    window = normalized_window(AudioClip(np.concatenate([noise, end])))
    assert np.array_equal(window, normalized_window(AudioClip(question)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silence(value: float) -> None:
    silent, damaged = noise[:SAMPLE_RATE].copy(), noise[:SAMPLE_RATE].copy()
    silent[100:200], damaged[100:200] = 0, value
    assert np.array_equal(normalized_window(AudioClip(damaged)), normalized_window(AudioClip(silent)))


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(SAMPLE_RATE), np.ones(SAMPLE_RATE)], ids=len)
def test_a_clip_without_sound_gets_a_verdict(samples: Samples, detector: TurnDetector) -> None:
    assert 0 <= detector.probability(AudioClip(samples.astype(np.float32))) <= 1


@pytest.mark.parametrize("clip", [AudioClip(noise, 8_000), AudioClip(noise.reshape(2, -1))], ids=["rate", "shape"])
def test_another_rate_or_shape_is_refused(clip: AudioClip, detector: TurnDetector) -> None:
    with pytest.raises(ValueError, match="mono clip at 16000 Hz"):
        detector.is_complete(clip)


@pytest.mark.parametrize("package", ["onnxruntime", "faster_whisper.feature_extractor"])
def test_without_the_packages_the_extra_is_named(package: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match="needs packages") as caught:
        TurnDetector(model)
    assert caught.value.hint == "pip install 'voxcli[smart-turn]'"


def test_a_model_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\x80 not a model")
    with pytest.raises(ModelError, match="damaged"):
        TurnDetector(tmp_path / "model")


def test_the_package_is_not_imported_and_nothing_is_printed(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from voxcli.chat.speech.turn_detector import TurnDetector\n"
        "TurnDetector(Path(sys.argv[1])); assert 'pipecat' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The setting.


def test_auto_uses_only_a_model_that_was_fetched(cache: Path, tmp_path: Path) -> None:
    is_complete, notice = open_detector("auto", cache)
    assert is_complete
    assert not notice
    assert open_detector("auto", tmp_path / "empty") == (None, "")


def test_silence_uses_no_model(cache: Path) -> None:
    assert open_detector("silence", cache) == (None, "")


def test_smart_turn_is_content_with_an_installed_package(tmp_path: Path) -> None:
    assert open_detector("smart-turn", tmp_path)[0]


@pytest.mark.parametrize("setting", ["auto", "smart-turn"])
def test_a_damaged_model_is_an_error_only_where_it_was_asked_for(setting: Setting, cache: Path) -> None:
    path = turn_model.fetched(cache)
    assert path
    path.write_bytes(b"")
    if setting == "auto":
        is_complete, notice = open_detector(setting, cache)
        assert is_complete is None
        assert "silence alone ends a turn" in notice
    else:
        with pytest.raises(ModelError, match="damaged"):
            open_detector(setting, cache)
