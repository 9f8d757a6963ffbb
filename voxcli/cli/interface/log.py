"""Turns on logging: into the file that VOXCLI_LOG names, and with --verbose on standard error.

voxcli's own records are logged at every level. They never hold audio, transcripts, prompts, replies or keys. Of other
libraries only warnings are logged, because some of them write whole requests at lower levels.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from voxcli.errors import ConfigError
from voxcli.output import Output
from voxcli.printable import printable

VARIABLE = "VOXCLI_LOG"
LINE = "%(asctime)s.%(msecs)03d %(levelname)-7s [%(threadName)s] %(name)s: %(message)s"
_NOWHERE = logging.NullHandler()  # Otherwise logging itself would write warnings to stderr.
BEGINNING = re.compile(rb"\Z|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} ")  # Beginning of a log.
HEAD_BYTES = 32
TIME = "%Y-%m-%dT%H:%M:%S"  # local time


class StderrHandler(logging.Handler):
    """Writes log lines to standard error, wherever that goes now."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        Output(sys.stderr).write(self.format(record) + "\n")


class PrivateFileHandler(logging.FileHandler):
    """Appends log lines to a file that only its owner can read.

    The file has to be new, empty or a log: a recording or other file that is named by mistake is not touched.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError, or ValueError for a file with other content."""
        if str(path) == "-":
            raise ValueError("it is standard output; --verbose logs to standard error")
        if path.is_file():
            with path.open("rb") as file:
                if not BEGINNING.match(file.read(HEAD_BYTES)):
                    raise ValueError("it is not a log")
        super().__init__(path)

    def _open(self) -> TextIOWrapper:
        from voxcli.config.paths import owner_only

        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=owner_only)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose a line that can't be written: a full disk must not disturb a conversation."""


class _SafeFormatter(logging.Formatter):
    """Escapes what a terminal may act on, and indents further lines, so that none can pose as a record."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n").replace("\n", "\n    ")


def is_logged(record: logging.LogRecord) -> bool:
    """Return whether a record is voxcli's own, or at least a warning."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] == "voxcli"


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[None]:
    """Send log records to a handler for as long as the context lasts."""
    handler.setFormatter(_SafeFormatter(LINE, TIME))
    handler.addFilter(is_logged)
    root, own = logging.getLogger(), logging.getLogger("voxcli")
    level_before = own.level
    root.addHandler(handler)
    own.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        own.setLevel(level_before)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def logging_to_file() -> Iterator[None]:
    """Log to the file that VOXCLI_LOG names, if it names one.

    Raises:
        ConfigError: the file can't be written.
    """
    logging.getLogger("voxcli").addHandler(_NOWHERE)
    name = os.environ.get(VARIABLE)
    if not name:
        yield
        return
    try:
        handler = PrivateFileHandler(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte in the name; ~ of an unknown user
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"can't write the log {name!r} ({VARIABLE}): {reason}",
            hint=f"unset {VARIABLE}, or name a file that you may write",
        ) from error
    with logging_to(handler):
        yield


def leave_stderr() -> None:
    """Stop logging to standard error, because a live view draws on the terminal."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, StderrHandler)]:
        root.removeHandler(handler)
