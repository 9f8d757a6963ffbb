"""Bytes into blocks of sound: which decoder reads which format, and what a damaged file still gives.

libsndfile reads WAV, FLAC, OGG, MP3, AIFF, AU and CAF; FFmpeg (through PyAV, an extra) reads the sound
of M4A, AAC, MP4, WebM and Matroska. The first bytes choose, never a file's name, and neither library
is left to guess: some of the formats that they would find name other files, or are heuristics.

A file that breaks off or is damaged half-way gives what could be decoded up to there: recorders get
killed. It is an error only where that is nothing.

This module knows nothing of clips, limits, rates that are wanted or where the bytes come from.
"""

import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from voxcli.errors import AudioInputError, missing_extra

HEAD_BYTES = 64  # enough to tell any of the formats
FORMATS = "WAV, FLAC, OGG, MP3, AIFF, M4A, MP4 and WebM"

BLOCK_SAMPLES = 8192  # in a block, all channels together; what a damaged file may lose before the damage
PCM16_SCALE = 1 / 32768  # so that -32768 becomes -1.0, as in libsndfile

WAV_CHUNKS = 64  # how many to look through for the samples
WAV_HEAD_BYTES = 1 << 20  # where the samples have to start

Block = NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """Sound that is being decoded.

    sample_rate: Hertz
    blocks: float32, shape (frames, channels), the nominal range is [-1, 1]
    frames: the total, only where the header can't be wrong about it
    """

    sample_rate: int
    blocks: Iterator[Block]
    frames: int | None = None


def check_format(head: bytes, name: str) -> None:
    """Raise AudioInputError unless the first HEAD_BYTES of a file show a format that can be decoded."""
    if not head:
        raise AudioInputError(f"{name} is empty", hint="nothing was recorded into it")
    if not (_is_plain(head) or _ffmpeg_format(head)):
        raise AudioInputError(
            f"{name} is not audio in a known format", hint=f"{FORMATS} can be read; bare samples need --raw-rate HZ"
        )


def decode(file: BinaryIO, name: str) -> AbstractContextManager[Sound]:
    """Return the sound of a seekable file, to be read within the context.

    Raises:
        AudioInputError: here, on entering or while reading blocks.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    check_format(head, name)
    if ffmpeg_format := _ffmpeg_format(head):
        return _decode_container(file, name, ffmpeg_format)
    return _decode_plain(file, name, head)


def decode_raw(file: BinaryIO, sample_rate: int) -> Sound:
    """Return the sound of bare samples: 16 bit, signed, little-endian, mono, to the end of the file."""
    return Sound(sample_rate, _raw_blocks(file))


def _raw_blocks(file: BinaryIO) -> Iterator[Block]:
    odd = b""
    while data := file.read(2 * BLOCK_SAMPLES):
        data = odd + data
        whole = len(data) // 2 * 2
        odd = data[whole:]
        yield (np.frombuffer(data[:whole], "<i2").astype(np.float32) * np.float32(PCM16_SCALE))[:, np.newaxis]


def _is_plain(head: bytes) -> bool:
    """Say whether libsndfile is the one to ask."""
    if head[:4] in {b"RIFF", b"RIFX", b"RF64"}:
        return head[8:12] == b"WAVE"
    if head[:4] in {b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff"}:
        return True
    return _is_mp3(head)


def _is_mp3(head: bytes) -> bool:
    """Say whether a tag or an MPEG frame of layer I to III comes first (ISO 11172-3, 2.4.1.3)."""
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0)


def _ffmpeg_format(head: bytes) -> str | None:
    """Return the name of FFmpeg's demuxer for a container, None for anything else."""
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # ADTS: layer 0
        return "aac"
    return None


def _undecodable(name: str) -> AudioInputError:
    return AudioInputError(
        f"{name} can't be decoded: it is damaged, or in an encoding that is not known",
        hint="where other programs play it: ffmpeg -i FILE -ac 1 -ar 16000 question.wav",
    )


# libsndfile


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no annotations
    """A sound file that is read once, from start to end.

    soundfile seeks after each read of a seekable file, which leaves seams in MP3, and fails before the
    damage in FLAC is reached.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _decode_plain(file: BinaryIO, name: str, head: bytes) -> Iterator[Sound]:
    noisy = _is_mp3(head)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    source = _source(file, size)
    try:
        with _open_plain(source, name, noisy) as opened:
            # A sample takes a byte or more in uncompressed files, and libsndfile corrects their header
            # by the file's size; in other files the header may claim anything.
            honest = opened.frames * opened.channels <= size
            frames = opened.frames if honest else None
            yield Sound(opened.samplerate, _plain_blocks(opened, name, noisy), frames)
    finally:
        source.check()  # a failing disk explains any other error


def _open_plain(source: "_Source", name: str, noisy: bool) -> soundfile.SoundFile:
    try:
        with _muted(noisy):
            return _ForwardFile(source)
    except soundfile.LibsndfileError as error:
        raise _undecodable(name) from error


def _plain_blocks(opened: soundfile.SoundFile, name: str, noisy: bool) -> Iterator[Block]:
    frames = max(1, BLOCK_SAMPLES // opened.channels)
    decoded = False
    try:
        while True:
            with _muted(noisy):
                block = opened.read(frames, dtype="float32", always_2d=True)
            if not len(block):
                return
            yield block
            decoded = True
    except soundfile.LibsndfileError as error:
        if not decoded:
            raise _undecodable(name) from error


_stderr_lock = threading.Lock()  # two threads that swap the descriptor at once could lose it


@contextmanager
def _muted(noisy: bool) -> Iterator[None]:
    """Keep what libmpg123 writes to file descriptor 2 off the terminal.

    It warns about damaged files there, past Python, and can't be told not to through libsndfile.
    """
    if not noisy or sys.__stderr__ is None:  # closed at the start: descriptor 2 is someone else's file
        yield
        return
    with _stderr_lock, Path(os.devnull).open("wb") as null:
        kept = os.dup(2)
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _source(file: BinaryIO, size: int) -> "_Source":
    """Return the file; a WAV file whose header was never finished, as one whose samples reach to its end.

    Recorders and pipes that can't go back leave 0 as the length; libsndfile understands all other
    lengths that are wrong.
    """
    start = _unfinished_wav(file, size)
    file.seek(0)
    if start is None:
        return _Source(file)
    head = file.read(start - 4) + b"\xff\xff\xff\xff"
    file.seek(0)
    return _Source(file, head)


def _unfinished_wav(file: BinaryIO, size: int) -> int | None:
    """Return where the samples start, in bytes, if the header says that there are none though there are."""
    form, form_bytes, kind = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if form != b"RIFF" or kind != b"WAVE" or form_bytes == size - 8:
        return None
    start = 12
    for _ in range(WAV_CHUNKS):
        header = file.read(8)
        start += 8
        if len(header) < 8 or start > WAV_HEAD_BYTES:
            return None
        chunk, chunk_bytes = struct.unpack("<4sI", header)
        if chunk == b"data":
            return start if chunk_bytes == 0 else None
        start += chunk_bytes + chunk_bytes % 2
        file.seek(start)
    return None


class _Source:
    """A file with, perhaps, other first bytes, as far as soundfile asks for a file.

    libsndfile calls these; it has no way to pass an exception on, so it would be printed and lost.
    """

    def __init__(self, file: BinaryIO, head: bytes = b"") -> None:
        self._file = file
        self._head = head
        self._failure: OSError | None = None
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        patch = self._head[self.tell() :]
        try:
            data = self._file.read(count)
        except OSError as error:
            self._failure = error
            return b""
        return patch[: len(data)] + data[len(patch) :]

    def seek(self, offset: int, whence: int) -> int:
        with suppress(ValueError, OSError):  # to before the start: a damaged header; libsndfile asks tell() next
            self._file.seek(offset, whence)
        return self.tell()

    def check(self) -> None:
        """Raise the OSError that reading ended with, if there was one."""
        if self._failure:
            raise self._failure


# FFmpeg


@contextmanager
def _decode_container(file: BinaryIO, name: str, ffmpeg_format: str) -> Iterator[Sound]:
    try:
        import av
    except ImportError as error:
        raise missing_extra(AudioInputError, f"{name}: reading M4A, AAC, MP4 and WebM", "containers") from error
    try:
        container = av.open(file, format=ffmpeg_format, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _undecodable(name) from error
    with container:
        if not container.streams.audio:
            raise AudioInputError(f"{name} has no sound in it", hint="it is a film or a picture without a sound track")
        frames = _container_frames(container, name)
        first = next(frames, None)
        if first is None:
            raise _undecodable(name)
        yield Sound(first.sample_rate, _container_blocks(first, frames))


def _container_frames(container: Any, name: str) -> Iterator[Any]:
    """Yield `av.AudioFrame`s of planar float32, all with the rate and channels of the first."""
    import av

    planar = av.AudioResampler(format="fltp")
    decoded = False
    try:
        for frame in container.decode(audio=0):
            for converted in planar.resample(frame):
                yield converted
                decoded = True
    except (av.FFmpegError, ValueError) as error:  # ValueError: a frame of another rate or layout
        if not decoded:
            raise _undecodable(name) from error


def _container_blocks(first: Any, rest: Iterator[Any]) -> Iterator[Block]:
    yield np.ascontiguousarray(first.to_ndarray().T)
    for frame in rest:
        yield np.ascontiguousarray(frame.to_ndarray().T)
