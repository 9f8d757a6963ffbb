"""Writes text to a standard stream that may be closed, full, or unable to encode it."""

import os
from typing import TextIO

from voxcli.errors import VoxError


class Output:
    """Writes to a stream that may close or fill up. Keeps the failure instead of raising it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> None:
        """Write text and flush; escape characters that the encoding lacks. After a failure, discard the text."""
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except OSError as error:
            self.failure = error
            _discard(self._stream)

    def write_dim(self, text: str) -> None:
        """Write a line, dim on a terminal."""
        self.write(f"\x1b[2m{text}\x1b[22m\n" if self._has_styles() else f"{text}\n")

    @property
    def is_closed(self) -> bool:
        """Whether the reader has closed the stream, as `head` does when it has enough."""
        return isinstance(self.failure, BrokenPipeError)

    def check(self, what: str = "the reply") -> None:
        """Raise VoxError if some text was not written, unless the reader closed the stream."""
        if self.failure and not self.is_closed:
            raise VoxError(
                f"can't write {what}: {self.failure.strerror}", hint="check where standard output goes"
            ) from self.failure

    def _has_styles(self) -> bool:
        if not self._stream.isatty() or os.environ.get("NO_COLOR"):
            return False
        return os.name == "posix" and os.environ.get("TERM") != "dumb"  # some Windows consoles have no styles


def _discard(stream: TextIO) -> None:
    """Discard what a broken stream still holds; otherwise the interpreter fails at its last flush."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
