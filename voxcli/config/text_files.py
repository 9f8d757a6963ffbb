"""Reads text files that settings name."""

import sys
from contextlib import nullcontext
from pathlib import Path

from voxcli.errors import ConfigError


def read_text(path: Path, limit: int, what: str) -> str:
    """Return the text of a file of at most `limit` bytes; "-" is standard input.

    Raises:
        ConfigError: it can't be read, is longer, or is not UTF-8. `what` says in the message what it is.
    """
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"can't read {what} {path}: {reason}", hint=_reading_hint(error)) from error
    if len(content) > limit:
        raise ConfigError(f"can't read {what} {path}: more than {limit} bytes", hint="check that it is the right file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"can't read {what} {path}: not UTF-8 at byte {error.start}", hint="save it as UTF-8"
        ) from error


def _reading_hint(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "check the name; `voxcli config init` writes a settings file"
    return "give the name of a text file that you can read"
