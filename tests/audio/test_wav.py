"""Tests of WAV files, as read by another library."""

import io

import numpy as np
import pytest
import soundfile

from voxcli.audio.clip import AudioClip
from voxcli.audio.wav import HEADER_BYTES, encode_wav

CLIP = AudioClip(np.random.default_rng(0).uniform(-1, 1, 999).astype(np.float32), 22_050)


def test_sixteen_bits() -> None:
    samples, sample_rate = soundfile.read(io.BytesIO(encode_wav(CLIP)), dtype="float32")
    assert sample_rate == 22_050
    np.testing.assert_allclose(samples, CLIP.samples, atol=1 / 16384)


def test_floats_lose_no_bit() -> None:
    samples, sample_rate = soundfile.read(io.BytesIO(encode_wav(CLIP, "float32")), dtype="float32")
    assert sample_rate == 22_050
    np.testing.assert_array_equal(samples, CLIP.samples)


@pytest.mark.parametrize(("sample", "written"), [(2.0, 0x7FFF), (-2.0, -0x7FFF), (np.inf, 0x7FFF), (np.nan, 0)])
def test_samples_outside_sixteen_bits_are_clipped(sample: float, written: int) -> None:
    data = encode_wav(AudioClip(np.array([sample], np.float32)))[HEADER_BYTES:]
    assert np.frombuffer(data, "<i2").tolist() == [written]
