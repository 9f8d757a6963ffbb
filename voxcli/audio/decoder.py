"""Decodes recordings on a thread, ahead of the reader, and abandons those that stall.

`voxcli.audio.ffmpeg` does the decoding.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import BinaryIO

import numpy as np

from voxcli.audio.ffmpeg import (
    CONVERT_HINT,
    PROBE_BYTES,
    Block,
    ByteSource,
    Samples,
    SoundReader,
    as_float,
    is_recognised,
    undecodable,
    unknown_format,
)
from voxcli.errors import AudioInputError

__all__ = ["PROBE_BYTES", "Block", "Decoding", "check_format", "decode", "decode_raw", "undecodable"]

BLOCK_SAMPLES = 1 << 14  # A block's samples, all channels together; fewer cost time, more cost memory.
BLOCKS_AHEAD = 8  # Blocks that are decoded ahead.

STALL_SECONDS = 10.0  # Without progress; the first sound of a large film comes after about 1 s.
MUTE_BYTES = 1 << 28  # Reading more than this without finding sound is no progress: gigabytes of zeros are searched.
TICK_SECONDS = 0.2  # The interval of progress checks; on Windows, Ctrl-C waits for one.
LEAVE_SECONDS = 0.5  # The wait for the decoding thread to end; after it, the thread is abandoned.


def check_format(head: bytes, name: str) -> None:
    """Raise AudioInputError if FFmpeg does not recognise the format of a file.

    Args:
        head: the whole file, or its first PROBE_BYTES.
    """
    if not head:
        raise AudioInputError(f"{name} is empty", hint="nothing was recorded into it")
    if not is_recognised(io.BytesIO(head)):
        raise unknown_format(name)


@contextmanager
def decode(
    file: BinaryIO, name: str, *, stall_seconds: float = STALL_SECONDS, mute_bytes: int = MUTE_BYTES
) -> Iterator["Decoding"]:
    """Decode a seekable file from its start; the blocks have to be read within the context.

    Args:
        name: the file's name in messages.
        stall_seconds: how long decoding may make no progress.
        mute_bytes: how many bytes without sound count as progress.
    """
    decoding = Decoding(file, name, stall_seconds, mute_bytes)
    try:
        yield decoding
    finally:
        decoding.close()


def decode_raw(file: BinaryIO, sample_rate: int) -> Iterator[Block]:
    """Yield a file of bare samples (16-bit, signed, little-endian, mono) as blocks."""
    odd = b""
    while data := file.read(2 * BLOCK_SAMPLES):
        data = odd + data
        whole = len(data) // 2 * 2
        odd = data[whole:]
        yield Block(as_float(np.frombuffer(data[:whole], "<i2"))[:, np.newaxis], sample_rate)


class Decoding:
    """A recording that a thread decodes ahead of its reader; iterate over it once.

    FFmpeg may never return from a damaged file. Because it runs on a thread, waiting for it can be interrupted, and a
    thread that makes no progress is abandoned.
    """

    def __init__(self, file: BinaryIO, name: str, stall_seconds: float, mute_bytes: int) -> None:
        self._name, self._stall_seconds, self._mute_bytes = name, stall_seconds, mute_bytes
        self._source = ByteSource(file)
        self._reader = SoundReader(self._source, name)
        self._decoded: SimpleQueue[Block | Exception | None] = SimpleQueue()
        self._room = threading.Semaphore(BLOCKS_AHEAD)
        self._thread = threading.Thread(target=self._decode, name="decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks.

        Raises:
            AudioInputError: the file is empty, not audio, has no audio track, can't be decoded, or made no progress
                for `stall_seconds`.
            OSError: the file can't be read.
        """
        while (decoded := self._next()) is not None:
            if isinstance(decoded, Exception):
                raise decoded
            yield decoded
            self._room.release()

    @property
    def damaged_seconds(self) -> float:
        """Audio missing from the blocks, because it could not be decoded; final after the last block."""
        return self._reader.damaged_seconds

    def close(self) -> None:
        """Stop decoding. May be called again."""
        self._source.close()
        self._room.release()
        self._thread.join(LEAVE_SECONDS)

    def _next(self) -> Block | Exception | None:
        """Return the next block, the error that ended decoding, or None at the end."""
        stalled_seconds, furthest, start = 0.0, -1, self._source.furthest
        while stalled_seconds < self._stall_seconds:
            try:
                return self._decoded.get(timeout=TICK_SECONDS)
            except Empty:
                before, furthest = furthest, self._source.furthest
                has_progress = before < furthest <= start + self._mute_bytes
                stalled_seconds = 0.0 if has_progress else stalled_seconds + TICK_SECONDS
        return AudioInputError(
            f"{self._name} can't be decoded: no progress for {self._stall_seconds:g} s", hint=CONVERT_HINT
        )

    def _decode(self) -> None:
        """Decode the whole file; runs on the thread."""
        try:
            for block in _joined(self._reader.blocks()):
                self._decoded.put(block)
                self._room.acquire()
                if self._source.is_closed:
                    return
            self._decoded.put(self._source.failure)
        except AudioInputError as error:
            self._decoded.put(self._source.failure or error)
        except Exception as error:  # noqa: BLE001 - damage causes many errors; the reader of the blocks gets it
            damage = undecodable(self._name)
            damage.__cause__ = error
            self._decoded.put(self._source.failure or damage)


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Join short blocks of equal rate and channel count; a codec's frames have only some hundred samples."""
    parts: list[Samples] = []
    samples, joined_format = 0, (0, 0)
    for block in blocks:
        block_format = block.sample_rate, block.samples.shape[1]
        if parts and (block_format != joined_format or samples >= BLOCK_SAMPLES):
            yield Block(np.concatenate(parts), joined_format[0])
            parts, samples = [], 0
        parts.append(block.samples)
        samples, joined_format = samples + block.samples.size, block_format
    if parts:
        yield Block(np.concatenate(parts), joined_format[0])
