"""Reads speech from a stream of bytes while it arrives: WAV, or bare samples."""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import AudioClip

PCM_RATE = 24_000  # Hz; what OpenAI's speech protocol says about `pcm`: 16-bit little-endian mono at this rate.
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # Format tags of WAV.
SAMPLE_TYPES = {(PCM, 16): "<i2", (PCM, 32): "<i4", (FLOAT, 32): "<f4"}
LEAST_RATE, MOST_RATE = 8_000, 192_000  # Hz
MOST_CHANNELS = 8
CLIP_SECONDS = 0.02  # Blocks that are shorter wait for the next one.
UNKNOWN_BYTES = 0x7FFF_0000  # A declared length from here on stands for a stream whose length was not known.
CHUNK_BYTES = 1 << 16  # The longest chunk before the samples.


class AudioStreamError(ValueError):
    """The stream is no speech that can be read; the text says what it is."""


class _Bytes:
    """Takes exact numbers of bytes from a stream of blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""

    def take(self, count: int) -> bytes:
        """Return `count` bytes, or fewer where the stream ends."""
        while len(self._held) < count and (block := next(self._blocks, None)) is not None:
            self._held += block
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def __iter__(self) -> Iterator[bytes]:
        if self._held:
            yield self._held
        yield from self._blocks


def read_wav(blocks: Iterator[bytes]) -> Iterator[AudioClip]:
    """Yield the clips of a WAV file as it arrives; what follows its samples is left out.

    Raises:
        AudioStreamError: it is no WAV file, is in a format other than 16 or 32 bits, or broke off.
    """
    source = _Bytes(blocks)
    head = source.take(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise AudioStreamError("it sent no audio" if not head else "it sent something else than a WAV file")
    layout: tuple[str, int, int] | None = None
    while len(chunk := source.take(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            if layout is None:
                break
            length = size if 0 < size < UNKNOWN_BYTES else None
            yield from _clips(source, *layout, length=length)
            return
        if size > CHUNK_BYTES:
            break
        content = source.take(size + size % 2)
        layout = _layout(content) if name == b"fmt " else layout
    raise AudioStreamError("its WAV file is broken")


def read_pcm(blocks: Iterator[bytes], sample_rate: int = PCM_RATE) -> Iterator[AudioClip]:
    """Yield the clips of a stream of samples, 16-bit little-endian mono."""
    return _clips(blocks, "<i2", 1, sample_rate, length=None)


def _layout(content: bytes) -> tuple[str, int, int]:
    """Return the type of the samples, the number of channels and the rate in Hertz."""
    if len(content) < 16:
        raise AudioStreamError("its WAV file is broken")
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
    if tag == EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack("<H", content[24:26])
    kind = SAMPLE_TYPES.get((tag, bits))
    if kind is None or not 1 <= channels <= MOST_CHANNELS or not LEAST_RATE <= rate <= MOST_RATE:
        raise AudioStreamError(f"its WAV file has a format that can't be played: {tag}, {bits} bits, {rate} Hz")
    return kind, channels, rate


def _clips(
    blocks: "Iterator[bytes] | _Bytes", kind: str, channels: int, rate: int, *, length: int | None
) -> Iterator[AudioClip]:
    width = np.dtype(kind).itemsize * channels
    least = max(1, round(CLIP_SECONDS * rate)) * width
    held, left = b"", length
    for block in blocks:
        held += block if left is None else block[:left]
        left = None if left is None else left - len(block)
        if len(held) >= least:
            whole = len(held) - len(held) % width
            yield AudioClip(_samples(held[:whole], kind, channels), rate)
            held = held[whole:]
        if left is not None and left <= 0:
            break
    if left is not None and left > 0:
        raise AudioStreamError("its WAV file ends too early")
    if whole := len(held) - len(held) % width:
        yield AudioClip(_samples(held[:whole], kind, channels), rate)


def _samples(data: bytes, kind: str, channels: int) -> NDArray[np.float32]:
    values = np.frombuffer(data, kind)
    scale = 1.0 if kind == "<f4" else float(np.iinfo(kind).max) + 1
    samples = np.nan_to_num(values.astype(np.float32) / np.float32(scale), posinf=1, neginf=-1)
    mono: NDArray[np.float32] = np.clip(samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), -1, 1)
    return mono
