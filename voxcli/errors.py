"""Errors as users see them: one line, a hint, an exit code.

    VoxError                     1   failed
    ├── StoreError               1   sessions on disk
    ├── SpeechError              1   text-to-speech
    ├── ConfigError              2   wrong usage or configuration
    ├── AudioInputError          3   audio that can't be used
    ├── ModelError               4   model not available
    ├── AudioDeviceError         5   microphone or loudspeaker
    └── RemoteError              6   remote server

An error of another library is turned into one of these where it enters voxcli (`raise ... from error`).
`voxcli.cli` prints them.
"""

from typing import ClassVar


class VoxError(Exception):
    """An error with a message for people, a hint that says what to do, and an exit code."""

    code: ClassVar[str] = "failed"  # stable name for machines: `"error": {"code": ...}`
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StoreError(VoxError):
    """Sessions can't be read or written."""

    code = "store"


class SpeechError(VoxError):
    """There is no voice, or it does not speak."""

    code = "speech"


class ConfigError(VoxError):
    """A flag, a setting or a name does not exist or has a wrong value."""

    code = "config"
    exit_code = 2


class AudioInputError(VoxError):
    """Audio is missing, empty, not decodable or too long."""

    code = "audio_input"
    exit_code = 3


class ModelError(VoxError):
    """A model can't be found, fetched, loaded or run."""

    code = "model"
    exit_code = 4


class AudioDeviceError(VoxError):
    """A microphone or loudspeaker is missing or fails."""

    code = "audio_device"
    exit_code = 5


class RemoteError(VoxError):
    """A remote server refuses, fails or does not answer."""

    code = "remote"
    exit_code = 6


def no_tools(engine: str, why: str = "") -> ConfigError:
    """Return the error for a session with tools, which an engine of this name can't call."""
    reason = f": {why}" if why else ""
    return ConfigError(
        f"the {engine} engine can't call tools{reason}",
        hint="leave out the tools, or take another engine: --engine voxtral or remote",
    )


def missing_extra(kind: type[VoxError], what: str, extra: str) -> VoxError:
    """Return the error for a feature whose optional packages are not installed."""
    return kind(f"{what} needs packages that are not installed", hint=f"pip install 'voxcli[{extra}]'")
