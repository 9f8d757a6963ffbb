"""Tests of the stream resampler against soxr at its best quality, block by block."""

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.resample import StreamResampler


def noise(count: int) -> Samples:
    return np.random.default_rng(1).standard_normal(count).astype(np.float32) / np.float32(4)


def band_limited(rate: int) -> Samples:
    """Return a second of noise that both rates can hold."""
    spectrum = np.fft.rfft(noise(rate))
    spectrum[int(min(rate, SAMPLE_RATE) * 0.42) :] = 0
    return np.asarray(np.fft.irfft(spectrum, rate), np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_matches_soxr(rate: int) -> None:
    sound = band_limited(rate)
    resampler = StreamResampler(rate)
    given = np.concatenate([resampler.push(part) for part in np.array_split(sound, 100)])
    wanted = soxr.resample(sound, rate, SAMPLE_RATE, "VHQ")[: len(given)]
    middle = slice(200, -200)  # The ends differ: soxr treats the surrounding silence differently.
    error = np.std((given - wanted)[middle]) / np.std(wanted[middle])
    assert error < 0.002
    assert SAMPLE_RATE - len(given) <= SAMPLE_RATE * 0.006


def test_suppresses_aliases() -> None:
    tone = np.sin(2 * np.pi * 9_000 * np.arange(48_000) / 48_000).astype(np.float32)
    given = StreamResampler(48_000).push(tone)
    assert np.abs(given[200:]).max() < 0.001


def test_does_not_shift() -> None:
    click = np.zeros(44_100, np.float32)
    click[22_050] = 1
    given = StreamResampler(44_100).push(click)
    assert int(np.argmax(given)) == SAMPLE_RATE // 2


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    cuts=st.lists(st.integers(0, 4_000), max_size=20),
)
def test_block_sizes_change_nothing(rate: int, cuts: list[int]) -> None:
    sound = noise(4_000)
    whole, parted = StreamResampler(rate), StreamResampler(rate)
    parts = [parted.push(part) for part in np.split(sound, sorted(cuts))]
    assert np.allclose(np.concatenate(parts), whole.push(sound), atol=1e-6)
    assert 0 <= parted.lag_seconds < 0.006 or rate == SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_silence_between_sounds_changes_nothing(rate: int) -> None:
    sound = np.concatenate(
        [noise(1_000), np.zeros(rate // 2, np.float32), noise(1_000), np.zeros(rate // 10, np.float32)]
    )
    parted = StreamResampler(rate)
    parts = [parted.push(part) for part in np.array_split(sound, 60)]
    assert np.allclose(np.concatenate(parts), StreamResampler(rate).push(sound), atol=1e-6)


def test_the_same_rate_passes_through() -> None:
    sound = noise(1_000)
    assert StreamResampler(SAMPLE_RATE).push(sound) is sound
