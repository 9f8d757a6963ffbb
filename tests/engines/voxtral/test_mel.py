"""Mel spectrograms: the bits of transformers' extractor over whole windows, whatever was left out on the way."""

from typing import Any

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from voxcli.audio.clip import AudioClip  # noqa: E402
from voxcli.engines.voxtral.mel import FrontEnd  # noqa: E402

WINDOW = 480_000  # samples
EXTRACTOR = transformers.WhisperFeatureExtractor(feature_size=128)


def front_end(positions: int = 1500) -> FrontEnd:
    return FrontEnd(
        EXTRACTOR, transformers.VoxtralConfig(audio_config={"max_source_positions": positions}).audio_config
    )


def whole(samples: np.ndarray, window: int) -> Any:
    found = EXTRACTOR(
        samples,
        sampling_rate=16_000,
        padding=True,
        truncation=False,
        pad_to_multiple_of=window,
        return_tensors="pt",
    )["input_features"]
    return found.reshape(128, -1, window // 160).transpose(0, 1)


def noise(count: int, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(count).normal(0.0, level, count).astype(np.float32)


@pytest.mark.parametrize(
    "count",
    [1, 160, 700, 7_640, 7_641, 35_200, 80_000, 471_640, 471_641, 479_999, WINDOW, WINDOW + 1, 2 * WINDOW - 300],
)
@pytest.mark.parametrize("level", [1e-6, 0.1, 1.0])
def test_bits_are_those_of_whole_windows(count: int, level: float) -> None:
    samples = noise(count, level)
    found = front_end().features(AudioClip(samples))
    assert found.shape == (-(-count // WINDOW), 128, 3000)
    assert torch.equal(found, whole(samples, WINDOW))


def test_silence_and_a_clip_that_ends_in_silence_are_no_exception() -> None:
    fading = np.concatenate([noise(9_000), np.zeros(30_000, np.float32)])
    for samples in (np.zeros(16_000, np.float32), fading):
        assert torch.equal(front_end().features(AudioClip(samples)), whole(samples, WINDOW))


def test_windows_shorter_than_what_is_computed_at_once_stay_whole() -> None:
    samples = noise(5_000)
    found = front_end(positions=10).features(AudioClip(samples))
    assert found.shape == (2, 128, 20)
    assert torch.equal(found, whole(samples, 3_200))


def test_most_of_a_short_clip_s_window_is_not_computed() -> None:
    class Counting:
        computed = 0

        def __getattr__(self, name: str) -> object:
            return getattr(EXTRACTOR, name)

        def __call__(self, samples: np.ndarray, **options: object) -> object:
            Counting.computed += len(samples)
            return EXTRACTOR(samples, **options)

    one = FrontEnd(Counting(), transformers.VoxtralConfig(audio_config={"max_source_positions": 1500}).audio_config)
    one.features(AudioClip(noise(35_200)))
    assert 35_200 < Counting.computed <= 48_000
