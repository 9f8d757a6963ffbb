"""Tests of reading speech while it arrives: however it is divided, and whatever it is."""

import io
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from voxcli.audio.clip import AudioClip
from voxcli.tts.audio_stream import AudioStreamError, read_pcm, read_wav


def wav(samples: np.ndarray, rate: int, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAVEX" if samples.ndim > 1 else "WAV", subtype=subtype)
    return buffer.getvalue()


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def joined(clips: Iterator[AudioClip]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(clip.samples for clip in clips)])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
@settings(max_examples=20)
@given(size=st.integers(1, 5000))
def test_a_wav_file_is_the_same_however_it_is_divided(subtype: str, channels: int, size: int) -> None:
    mono = np.sin(np.arange(2500, dtype=np.float32) / 10) / 2
    data = wav(np.stack([mono] * channels, axis=1) if channels > 1 else mono, 16_000, subtype)
    trailing = struct.pack("<4sI", b"LIST", 100) + b"\x7f" * 100  # It is no sound.
    np.testing.assert_allclose(joined(read_wav(blocks(data + trailing, size))), mono, atol=1e-4)


@pytest.mark.parametrize("declared", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_length_that_was_not_known_is_that_of_the_stream(declared: int) -> None:
    data = bytearray(wav(np.full(3000, 0.5), 16_000, "PCM_16"))
    data[40:44] = struct.pack("<I", declared)
    assert len(joined(read_wav(blocks(bytes(data), 700)))) == 3000


@given(size=st.integers(1, 3000))
def test_samples_are_the_same_however_they_are_divided(size: int) -> None:
    values = np.arange(-2000, 2000, dtype="<i2")
    np.testing.assert_array_equal(joined(read_pcm(blocks(values.tobytes() + b"\x01", size))), values / 32768)


@given(head=st.sampled_from([b"", b"RIFF", b"RIFF....WAVE", b"RIFF....WAVEfmt "]), rest=st.binary(max_size=200))
def test_anything_else_is_refused_or_is_sound(head: bytes, rest: bytes) -> None:
    try:
        samples = joined(read_wav(iter([head, rest])))
    except AudioStreamError:
        return
    assert np.abs(samples).max(initial=0) <= 1


def test_numbers_that_are_none_do_not_come_out() -> None:
    data = bytearray(wav(np.zeros(1000, np.float32), 16_000, "FLOAT"))
    data[-12:] = np.array([np.nan, np.inf, -np.inf], "<f4").tobytes()
    np.testing.assert_array_equal(joined(read_wav(iter([bytes(data)])))[-3:], [0, 1, -1])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "ULAW"])
def test_a_format_that_is_not_played_is_named(subtype: str) -> None:
    with pytest.raises(AudioStreamError, match="a format that can't be played"):
        joined(read_wav(iter([wav(np.zeros(100), 16_000, subtype)])))
