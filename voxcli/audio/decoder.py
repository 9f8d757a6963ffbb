"""Decodes recordings ahead of whoever uses the sound, and gives up on those that never end.

FFmpeg, in `voxcli.audio.ffmpeg`, does the decoding. This module knows nothing of clips, limits, target rates or
where the bytes come from.
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

__all__ = ["PROBE_BYTES", "Block", "Decoding", "check_format", "decode", "decode_raw"]

BLOCK_SAMPLES = 1 << 14  # in a block, all channels together; fewer cost time, more cost memory
BLOCKS_AHEAD = 8  # decoded before they are asked for

STALL_SECONDS = 10.0  # without a new byte or a new block; the first sound of a large film comes after about 1 s
TICK_SECONDS = 0.2  # between looks at the progress; on Windows Ctrl-C waits for one
LEAVE_SECONDS = 0.5  # for the decoding thread to end; one that does not is left behind


def check_format(head: bytes, name: str) -> None:
    """Raise AudioInputError if a file that begins with `head` is in no format that FFmpeg knows.

    Args:
        head: the whole file, or its first PROBE_BYTES.
    """
    if not head:
        raise AudioInputError(f"{name} is empty", hint="nothing was recorded into it")
    if not is_recognised(io.BytesIO(head)):
        raise unknown_format(name)


@contextmanager
def decode(file: BinaryIO, name: str, *, stall_seconds: float = STALL_SECONDS) -> Iterator["Decoding"]:
    """Decode a seekable file from its start; the blocks are to be read within the context.

    Args:
        name: what messages call the file.
        stall_seconds: how long decoding may go without progress.
    """
    decoding = Decoding(file, name, stall_seconds)
    try:
        yield decoding
    finally:
        decoding.close()


def decode_raw(file: BinaryIO, sample_rate: int) -> Iterator[Block]:
    """Yield bare samples as blocks: 16 bit, signed, little-endian, mono, to the end of the file."""
    odd = b""
    while data := file.read(2 * BLOCK_SAMPLES):
        data = odd + data
        whole = len(data) // 2 * 2
        odd = data[whole:]
        yield Block(as_float(np.frombuffer(data[:whole], "<i2"))[:, np.newaxis], sample_rate)


class Decoding:
    """A recording that a thread decodes while the blocks before are used; iterate over it once.

    FFmpeg holds no promise to return from a damaged file. The thread is what makes waiting for it
    interruptible: one that makes no progress is left behind.
    """

    def __init__(self, file: BinaryIO, name: str, stall_seconds: float) -> None:
        self._name, self._stall_seconds = name, stall_seconds
        self._source = ByteSource(file)
        self._reader = SoundReader(self._source, name)
        self._decoded: SimpleQueue[Block | Exception | None] = SimpleQueue()
        self._room = threading.Semaphore(BLOCKS_AHEAD)
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks.

        Raises:
            AudioInputError: it is empty, not audio, has no sound, or nothing of it can be decoded; or there was
                no progress for some seconds.
            OSError: the file can't be read.
        """
        while (found := self._next()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
            self._room.release()

    @property
    def damaged_seconds(self) -> float:
        """What could not be decoded, and is missing from the blocks; final after the last of them."""
        return self._reader.damaged_seconds

    def close(self) -> None:
        """End the decoding. May be called again."""
        self._source.close()
        self._room.release()
        self._thread.join(LEAVE_SECONDS)

    def _next(self) -> Block | Exception | None:
        stalled_seconds, furthest = 0.0, -1
        while stalled_seconds < self._stall_seconds:
            try:
                return self._decoded.get(timeout=TICK_SECONDS)
            except Empty:
                stalled_seconds = stalled_seconds + TICK_SECONDS if self._source.furthest == furthest else 0.0
                furthest = self._source.furthest
        return AudioInputError(
            f"{self._name} can't be decoded: no progress for {self._stall_seconds:g} s", hint=CONVERT_HINT
        )

    def _run(self) -> None:
        """Decode all of it, on the thread."""
        try:
            for block in _joined(self._reader.blocks()):
                self._decoded.put(block)
                self._room.acquire()
                if self._source.is_closed:
                    return
            self._decoded.put(self._source.failure)
        except AudioInputError as error:
            self._decoded.put(self._source.failure or error)
        except Exception as error:  # noqa: BLE001 - damage shows in many ways; raised where the blocks are read
            damage = undecodable(self._name)
            damage.__cause__ = error
            self._decoded.put(self._source.failure or damage)


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Join short blocks of one rate and channel count: frames of a codec have some hundred samples."""
    parts: list[Samples] = []
    samples, form = 0, (0, 0)
    for block in blocks:
        its_form = block.sample_rate, block.samples.shape[1]
        if parts and (its_form != form or samples >= BLOCK_SAMPLES):
            yield Block(np.concatenate(parts), form[0])
            parts, samples = [], 0
        parts.append(block.samples)
        samples, form = samples + block.samples.size, its_form
    if parts:
        yield Block(np.concatenate(parts), form[0])
