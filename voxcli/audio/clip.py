"""Audio clips, and reading them from files, pipes and standard input.

All audio is converted to 16 kHz mono. This module enforces limits and rejects unusable audio. `voxcli.audio.decoder`
handles formats; it is imported, with FFmpeg, on the first read.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.mono import MonoMix
from voxcli.audio.pipe import buffered_pipe
from voxcli.errors import AudioInputError, ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.audio.decoder import Block

SAMPLE_RATE = 16_000  # Hz; the input rate of Voxtral's and Whisper's feature extractors and of Silero.
STDIN = "-"

MAX_SECONDS = 1800.0  # 22,500 of Voxtral's 32k tokens, at 12.5 tokens per second.
MIN_SECONDS = 0.1  # Shorter audio holds no word.
MENTIONED_DAMAGE_SECONDS = 0.01  # Less is a few samples; the shortest frames of a codec have 20 ms.
MENTIONED_CANCELLED_SECONDS = 0.1
MENTIONED_DB = 0.5  # Decoders of loud music exceed full scale by less.
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; a lower rate holds no speech, a higher one is not produced by any converter.

PIPE_READ_BYTES = 1 << 16
PIPE_MEMORY_BYTES = 1 << 24  # Larger input from a pipe goes to a temporary file.
PIPE_BYTES_PER_SECOND = 48_000 * 2 * 4  # Stereo float samples at 48 kHz, or a film at 3 Mbit/s.
PIPE_SPARE_BYTES = 1 << 26  # An allowance for cover pictures and other tags.

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AudioClip:
    """A stretch of mono audio.

    samples: float32 in [-1, 1], shape (n,)
    sample_rate: Hertz
    damaged_seconds: length of the parts that could not be decoded and are left out
    cancelled_seconds: length of the parts whose channels cancel each other, where the strongest channel was taken
    gain: factor by which floating-point audio beyond full scale was scaled down; 1 for all other audio
    """

    samples: Samples
    sample_rate: int = SAMPLE_RATE
    damaged_seconds: float = 0.0
    cancelled_seconds: float = 0.0
    gain: float = 1.0

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def gain_db(self) -> float:
        """The gain in dB: 0 or less."""
        return 20 * log10(self.gain)

    def remarks(self) -> list[str]:
        """Return a sentence about each thing that was amiss with the recording."""
        remarks = []
        if self.damaged_seconds >= MENTIONED_DAMAGE_SECONDS:
            remarks.append(
                f"{self.damaged_seconds:.2f} s of the recording could not be decoded; the reply is based on the rest"
            )
        if self.cancelled_seconds >= MENTIONED_CANCELLED_SECONDS:
            remarks.append(
                f"the channels cancel each other in {self.cancelled_seconds:.1f} s of the recording; "
                "there, only the strongest one is used"
            )
        if -self.gain_db >= MENTIONED_DB:
            remarks.append(
                f"the recording is {-self.gain_db:.1f} dB beyond full scale; it was scaled down, and nothing is clipped"
            )
        return remarks

    def resampled(self, sample_rate: int) -> "AudioClip":
        """Return the clip at another rate, in Hertz."""
        if sample_rate == self.sample_rate:
            return self
        import soxr

        samples = soxr.resample(self.samples, self.sample_rate, sample_rate)
        return replace(self, samples=np.clip(samples, -1, 1, out=samples), sample_rate=sample_rate)


def read_audio(
    source: str | Path,
    *,
    max_seconds: float = MAX_SECONDS,
    raw_rate: int | None = None,
    stdin: BinaryIO | None = None,
) -> AudioClip:
    """Read a recording in any known format, rate and channel count as a clip at SAMPLE_RATE.

    The default track is read. Channels are averaged, except where they cancel each other. Floating-point audio beyond
    [-1, 1] is scaled down as a whole. Damaged parts are left out and counted. `max_seconds` bounds the memory, whatever
    length the source declares.

    Args:
        source: a file, a named pipe, or "-" for standard input.
        max_seconds: longer audio is refused.
        raw_rate: the source is bare samples, 16-bit little-endian mono, at this many Hertz.
        stdin: the stream that "-" reads; by default, the process's standard input.

    Raises:
        AudioInputError: missing, unreadable, not audio, empty, silent (all samples equal), shorter than MIN_SECONDS,
            longer than `max_seconds`, for the greater part not finite, so damaged that decoding makes no progress, or
            a pipe that sends nothing for a minute.
        ConfigError: standard input is a terminal, or `raw_rate` is out of range.
    """
    from voxcli.audio.decoder import decode_raw

    if raw_rate is not None and not MIN_RATE <= raw_rate <= MAX_RATE:
        raise ConfigError(
            f"a raw rate of {raw_rate} Hz can't be right", hint=f"give {MIN_RATE} to {MAX_RATE}, in Hertz"
        )
    name = _printable_name(source)
    try:
        with _open_source(source, name, stdin) as file:
            if raw_rate is not None:
                return _checked_clip(_mixed(decode_raw(file, raw_rate), name, max_seconds), name)
            with _seekable(file, name, max_seconds) as whole:
                return _decoded(whole, name, max_seconds)
    except FileNotFoundError as error:
        raise AudioInputError(f"{name} does not exist", hint="check the name and the folder") from error
    except PermissionError as error:
        raise AudioInputError(f"{name} may not be read", hint="chmod u+r FILE, or ask its owner") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AudioInputError(f"{name} can't be read: {reason}", hint="check the name and the disk") from error


def read_stream(file: BinaryIO, name: str, *, max_seconds: float = MAX_SECONDS) -> AudioClip:
    """Read a recording from a stream as `read_audio` does; messages call it `name`.

    At most the bytes that `max_seconds` of audio may take are fetched.

    Raises:
        AudioInputError: as in `read_audio`.
        OSError: the stream can't be read to its end.
    """
    with _spooled(file, name, max_seconds) as whole:
        return _decoded(whole, name, max_seconds)


def read_unchanged(path: Path) -> AudioClip:
    """Read a file that a program has just written, at its own rate and of any length or level.

    Raises:
        AudioInputError: it can't be decoded.
        OSError: it can't be read.
    """
    from voxcli.audio.decoder import decode

    with path.open("rb") as file, decode(file, path.name) as decoding:
        blocks = list(decoding)
    if not blocks:
        return AudioClip(np.empty(0, np.float32))
    samples = np.concatenate([block.samples.mean(axis=1) for block in blocks])
    return AudioClip(samples, blocks[0].sample_rate)


def _printable_name(source: str | Path) -> str:
    """Return a source's name for messages, in one line that any terminal can print."""
    if str(source) == STDIN:
        return "standard input"
    return printable(str(source)) or "''"


def _open_source(source: str | Path, name: str, stdin: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
    """Open the source as a context manager, which leaves standard input open."""
    if str(source) == STDIN:
        return nullcontext(_usable_stdin(stdin))
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # A null byte, or another character that file names can't have.
        raise AudioInputError(f"{name} can't be a file's name", hint="check the name") from error
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # Raises if it can't be read.
        raise AudioInputError(f"{name} is a folder", hint="name a file in it, or: voxcli batch FOLDER")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise AudioInputError(f"{name} is a device, not a recording", hint="record it first: arecord -d 5 question.wav")
    if stat.S_ISFIFO(mode):
        return buffered_pipe(path, name)
    return path.open("rb", buffering=0)  # Closing a buffered file would wait for a thread that still reads it.


def standard_input() -> BinaryIO | None:
    """Return a reader of the process's standard input, which waits a bounded time if it is a pipe; None if closed."""
    stdin = sys.stdin.buffer if sys.stdin is not None else None
    try:
        if stdin is not None and stat.S_ISFIFO(os.fstat(stdin.fileno()).st_mode):
            return buffered_pipe(stdin.fileno(), "standard input")
    except OSError:  # It is replaced by a stream without a file.
        pass
    return stdin


def _usable_stdin(stdin: BinaryIO | None) -> BinaryIO:
    stdin = standard_input() if stdin is None else stdin
    if stdin is None:
        raise AudioInputError("standard input is closed", hint="voxcli once - < question.wav")
    if stdin.isatty():
        raise ConfigError("standard input is a terminal: no audio comes from it", hint="voxcli once - < question.wav")
    return stdin


@contextmanager
def _seekable(file: BinaryIO, name: str, max_seconds: float) -> Iterator[BinaryIO]:
    """Yield the file itself, or a pipe's whole content as a file."""
    if file.seekable() and file.tell() == 0:
        yield file
        return
    with _spooled(file, name, max_seconds) as whole:
        yield whole


@contextmanager
def _spooled(file: BinaryIO, name: str, max_seconds: float) -> Iterator[BinaryIO]:
    with SpooledTemporaryFile(PIPE_MEMORY_BYTES) as spool:
        whole = cast("BinaryIO", spool)
        _spool(file, whole, name, max_seconds)
        yield whole


def _spool(pipe: BinaryIO, spool: BinaryIO, name: str, max_seconds: float) -> None:
    from voxcli.audio.decoder import PROBE_BYTES, check_format

    limit = int(max_seconds * PIPE_BYTES_PER_SECOND) + PIPE_SPARE_BYTES
    head = b""
    while data := pipe.read(PIPE_READ_BYTES):
        if len(head) < PROBE_BYTES:
            head += data
            if len(head) >= PROBE_BYTES:
                check_format(head, name)  # Checked now, or an endless pipe would be read up to the limit.
        spool.write(data)
        if spool.tell() > limit:
            raise AudioInputError(
                f"{name} gave more than {limit >> 20} MB, too much for {max_seconds:g} s of audio",
                hint="write it to a file first, or raise audio.max_seconds in the settings",
            )
    spool.seek(0)


def _decoded(file: BinaryIO, name: str, max_seconds: float) -> AudioClip:
    from voxcli.audio.decoder import decode, undecodable

    with decode(file, name) as decoding:
        mix = _mixed(decoding, name, max_seconds)
        lost_seconds = decoding.damaged_seconds
    if mix.seconds < MIN_SECONDS <= mix.seconds + lost_seconds:
        raise undecodable(name)
    clip = _checked_clip(mix, name)
    return replace(clip, damaged_seconds=clip.damaged_seconds + lost_seconds)


def _mixed(blocks: Iterable["Block"], name: str, max_seconds: float) -> MonoMix:
    """Join decoded blocks; raises AudioInputError if there are too many, or at an impossible rate."""
    mix = MonoMix(SAMPLE_RATE)
    for block in blocks:
        if not MIN_RATE <= block.sample_rate <= MAX_RATE:
            raise AudioInputError(
                f"{name} has a sample rate of {block.sample_rate} Hz", hint=f"{MIN_RATE} to {MAX_RATE} Hz can be read"
            )
        mix.add(block)
        if mix.seconds > max_seconds:
            raise _too_long(name, max_seconds)
    return mix


def _checked_clip(mix: MonoMix, name: str) -> AudioClip:
    """Return the mix as a clip; raises AudioInputError if it is unusable."""
    if mix.damaged_seconds > mix.seconds / 2:
        raise AudioInputError(
            f"{name} has samples that are not numbers (NaN or infinite), or far beyond full scale",
            hint="export it again, as 16-bit WAV",
        )
    _check_usable(mix.seconds, mix.varies, name)
    samples, gain = mix.finish()
    return AudioClip(samples, damaged_seconds=mix.damaged_seconds, cancelled_seconds=mix.cancelled_seconds, gain=gain)


def _too_long(name: str, max_seconds: float) -> AudioInputError:
    return AudioInputError(
        f"{name} is longer than the limit of {max_seconds:g} s",
        hint="cut it into pieces, or raise audio.max_seconds in the settings",
    )


def _check_usable(seconds: float, varies: bool, name: str) -> None:
    """Raise AudioInputError if the audio is too short, or if its samples do not vary."""
    if seconds < MIN_SECONDS:
        raise AudioInputError(
            f"{name} is too short: {seconds:.3f} s of audio", hint=f"at least {MIN_SECONDS:g} s is needed"
        )
    if not varies:
        raise AudioInputError(
            f"{name} is silent: all its samples are the same",
            hint="check that the microphone was on",
        )
