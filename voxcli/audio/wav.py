"""Encodes mono WAV files with 16-bit integer samples, or with 32-bit float samples where no bit may be lost."""

import struct
from typing import Literal

import numpy as np

from voxcli.audio.clip import AudioClip, Samples

Encoding = Literal["pcm16", "float32"]

# The headers RIFF, "fmt " and "data", as in Microsoft's "Multimedia Programming Interface and Data Specifications 1.0".
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
HEADER_BYTES = _HEADER.size
LARGEST_DATA_BYTES = 0xFFFF_FFFF - HEADER_BYTES  # Sizes are 32-bit numbers.
PCM16_BYTES = 2  # Bytes per sample.
# Format tag, bytes per sample.
_FORMATS: dict[Encoding, tuple[int, int]] = {"pcm16": (1, PCM16_BYTES), "float32": (3, 4)}


def encode_wav(clip: AudioClip, encoding: Encoding = "pcm16") -> bytes:
    """Return a clip as a WAV file at the clip's own rate."""
    data = pcm16(clip.samples) if encoding == "pcm16" else clip.samples.astype("<f4").tobytes()
    return wav_header(clip.sample_rate, len(data), encoding) + data


def wav_header(sample_rate: int, data_bytes: int, encoding: Encoding = "pcm16", *, tail_bytes: int = 0) -> bytes:
    """Return the header of a WAV file, HEADER_BYTES long; the samples follow it, and then chunks of `tail_bytes`."""
    tag, sample_bytes = _FORMATS[encoding]
    return _HEADER.pack(
        *(b"RIFF", HEADER_BYTES - 8 + data_bytes + tail_bytes, b"WAVE"),
        *(b"fmt ", 16, tag, 1, sample_rate, sample_rate * sample_bytes, sample_bytes, 8 * sample_bytes),
        *(b"data", data_bytes),
    )


def pcm16(samples: Samples) -> bytes:
    """Return samples as 16-bit little-endian integers, clipped to [-1, 1]; NaN becomes 0."""
    return (np.clip(np.nan_to_num(samples), -1, 1) * 0x7FFF).round().astype("<i2").tobytes()
