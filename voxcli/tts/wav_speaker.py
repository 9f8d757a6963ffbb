"""A speaker that writes a WAV file."""

import os
import secrets
import stat
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from voxcli.audio.clip import AudioClip
from voxcli.audio.wav import LARGEST_DATA_BYTES, PCM16_BYTES, pcm16, wav_header
from voxcli.config.paths import owner_only
from voxcli.core.protocols import Speaker
from voxcli.errors import ConfigError, VoxError

# The chunk at the end of each file: the software that wrote it, as the RIFF specification of INFO lists has it.
TAIL = struct.pack("<4sI4s4sI8s", b"LIST", 20, b"INFO", b"ISFT", 7, b"voxcli\0")


def is_own_sound(path: Path) -> bool:
    """Return whether a file was written by a `WavSpeaker`."""
    try:
        with path.open("rb") as file:
            file.seek(-len(TAIL), os.SEEK_END)
            return file.read() == TAIL
    except (OSError, ValueError):
        return False


class WavSpeaker:
    """Implements `voxcli.core.protocols.Speaker` by writing mono PCM16; a context manager.

    The sound goes to a hidden file beside the target, which `close` renames to the target. So neither an error nor a
    killed run leaves an incomplete file under the target's name. If nothing was played, no file is written and an older
    file stays. Only the owner can read the file.
    """

    def __init__(self, path: Path, then: Speaker | None = None) -> None:
        """Create the hidden file.

        Args:
            path: the target, ending in .wav; an older file is replaced.
            then: a speaker that plays every clip too and sets the position; its owner closes it.

        Raises:
            ConfigError: the target is no .wav file, or can't be written.
        """
        self._path = path.expanduser()
        self._then = then
        self._sample_rate = 0  # The first clip's rate.
        self._samples = 0
        self._part, self._file = _create_part(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error:
            self._discard()
        self.close()

    @property
    def path(self) -> Path | None:
        """The target, or None while nothing was played."""
        return self._path if self._samples else None

    @property
    def position(self) -> float:
        """Seconds played by the other speaker, if there is one; otherwise, seconds written."""
        if self._then:
            return self._then.position
        return self._samples / self._sample_rate if self._sample_rate else 0.0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Write a clip, resampled if its rate is not the first clip's, unless `interrupt` is set.

        Raises:
            VoxError: writing failed, for example because the disk is full; the file is deleted.
        """
        if len(clip.samples) and not interrupt.is_set():
            self._sample_rate = self._sample_rate or clip.sample_rate
            self._write(clip.resampled(self._sample_rate))
        return self._then.play(clip, interrupt) if self._then else self.position

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait for the other speaker, if there is one; a file needs no wait."""
        if self._then:
            self._then.wait(position, interrupt)

    def close(self) -> None:
        """Rename the file to the target; raises VoxError if that fails. May be called again."""
        if self._file.closed:
            return
        if not self._samples:
            self._discard()
            return
        try:
            self._file.write(TAIL)
            self._file.seek(0)
            self._file.write(self._header())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, clip: AudioClip) -> None:
        data = pcm16(clip.samples)
        try:
            if self._file.closed:
                raise OSError(None, "it is closed")
            if self._samples * PCM16_BYTES + len(data) + len(TAIL) > LARGEST_DATA_BYTES:
                raise OSError(None, "a WAV file holds at most 4 GiB")
            self._file.write(data if self._samples else self._header() + data)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._samples += len(clip.samples)

    def _header(self) -> bytes:
        return wav_header(self._sample_rate, self._samples * PCM16_BYTES, tail_bytes=len(TAIL))

    def _failed(self, error: OSError) -> VoxError:
        self._discard()
        return VoxError(f"can't write {self._path}: {error.strerror}", hint="free some space, or choose another folder")

    def _discard(self) -> None:
        """Delete the hidden file."""
        self._samples = 0
        try:
            self._file.close()
        except OSError:  # The buffer's rest can't be written either, and is not needed.
            self._file.close()
        self._part.unlink(missing_ok=True)


def _create_part(path: Path) -> tuple[Path, BinaryIO]:
    """Create the hidden file beside a target; raises ConfigError if the target can't be written."""
    try:
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise ConfigError(f"{path} is a folder", hint=f"write to {path / 'reply.wav'}")
            if not stat.S_ISREG(mode):  # Renaming the hidden file would delete it.
                raise ConfigError(f"{path} is a pipe or a device, not a file", hint="name another file")
        if path.suffix.lower() != ".wav":
            raise ConfigError(f"{path} is not a .wav file", hint=f"write to {path.with_suffix('.wav')}")
        part = path.with_name(f".voxcli-{secrets.token_hex(8)}.part")
        return part, open(part, "xb", opener=owner_only)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name.
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"can't write {path}: {reason}", hint="choose a folder that you may write to") from error
