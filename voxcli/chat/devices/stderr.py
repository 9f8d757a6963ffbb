"""Sends to the log what sound libraries write to standard error.

PortAudio, ALSA and JACK print to file descriptor 2 from threads of their own, and can't be told to stop. From the
first use of a device to the end of the program, this module replaces the descriptor by a pipe. A line from a sound
library goes to the log, once; every other line goes to the real standard error. Python's `sys.stderr` gets its own
descriptor, which bypasses the pipe. A thread that repeats a message forever is slowed down by reading the pipe slowly.
"""

import atexit
import ctypes
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import TextIO

MESSAGE = re.compile(
    rb"ALSA lib |Expression '|\|\|PaMacCore|[Jj]ack|Cannot connect to server |connect\(2\) call to |attempt to connect"
    rb"|[EWN]: \[|BDB\d+ |Cannot open DB environment"  # a PulseAudio that libpulse starts, and its database
)
READ_BYTES = 1 << 16
KEPT_MESSAGES = 1000  # The most different messages that are logged.
LINE_BYTES = 4096  # C's line buffer; a pipe accepts this much in one atomic write.
# So many bytes without anything new are a flood. A thread of PortAudio 19.6 whose device is gone may repeat one
# message forever; it fills the pipe with some 600 of them and waits until they are read.
FLOOD_BYTES = READ_BYTES // 2
FLOOD_SECONDS = 0.25
DRAIN_SECONDS = 0.5  # The wait for the last lines at exit; a surviving child process keeps the pipe open.

_log = logging.getLogger(__name__)


@cache
def redirect_library_messages() -> None:
    """Start logging what sound libraries print; does nothing on Windows or without a standard error."""
    if os.name == "posix":
        with suppress(OSError):  # The process has no descriptor 2.
            _Relay(os.dup(2)).start()
    if sys.platform == "linux":
        _write_whole_lines()


class _Relay(threading.Thread):
    """Sorts what is written to descriptor 2: messages to the log, the rest to the real standard error."""

    def __init__(self, real: int) -> None:
        """Replace descriptor 2 by a pipe; `real` is a duplicate of the original."""
        super().__init__(name="standard error", daemon=True)
        self._real = real
        self._logged: set[bytes] = set()
        self._is_message = False  # Whether the last line was one.
        self._repeated_bytes = 0  # Bytes since the last text that was new.
        self._over = threading.Event()  # Set when the program ends.
        if sys.stderr is sys.__stderr__ and sys.stderr and sys.stderr.fileno() == 2:
            sys.stderr = _reopened(sys.stderr, real)
        self._reading, writing = os.pipe()
        self._pipe = os.fstat(writing).st_ino
        os.dup2(writing, 2)
        os.close(writing)
        atexit.register(self._restore)

    def run(self) -> None:
        rest = b""
        while data := os.read(self._reading, READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            known = [self._relay_line(line + b"\n") for line in lines]
            if rest and not MESSAGE.match(rest):  # A prompt, for example, has no end of line.
                self._write_to_stderr(rest)
                known, rest = [False], b""
            self._repeated_bytes = self._repeated_bytes + len(data) if all(known) else 0
            if self._is_flooded:
                self._over.wait(FLOOD_SECONDS)
        self._relay_line(rest)

    @property
    def _is_flooded(self) -> bool:
        return self._repeated_bytes >= FLOOD_BYTES

    def _relay_line(self, line: bytes) -> bool:
        """Log or write a line; return whether it was logged before."""
        was_message, self._is_message = self._is_message, bool(MESSAGE.match(line))
        if not self._is_message:
            if not (was_message and line == b"\n"):  # An empty line ends some messages of ALSA.
                self._write_to_stderr(line)
        elif line not in self._logged and len(self._logged) < KEPT_MESSAGES:
            self._logged.add(line)
            _log.debug("%s", line.decode(errors="replace").rstrip())
        else:
            return True
        return False

    def _write_to_stderr(self, text: bytes) -> None:
        with suppress(OSError):  # The terminal is closed.
            while text:
                text = text[os.write(self._real, text) :]

    def _restore(self) -> None:
        """Restore descriptor 2, unless other code has redirected it meanwhile; a flood does not reach the user."""
        self._over.set()
        with suppress(OSError):
            if os.fstat(2).st_ino == self._pipe:
                # C's exit waits for a thread that writes to `stderr`, so the pipe may not stay full.
                os.dup2(os.open(os.devnull, os.O_WRONLY) if self._is_flooded else self._real, 2)
        self.join(DRAIN_SECONDS)


def _write_whole_lines() -> None:
    """Make C's `stderr` line-buffered, so that no other writer splits a line that ALSA writes in parts."""
    c = ctypes.CDLL(None)
    c.malloc.restype = ctypes.c_void_p  # Never freed: C may write until the process ends.
    line_by_line = 1  # _IOLBF of glibc and musl
    c.setvbuf(
        ctypes.c_void_p.in_dll(c, "stderr"),
        ctypes.c_void_p(c.malloc(LINE_BYTES)),
        line_by_line,
        ctypes.c_size_t(LINE_BYTES),
    )


def _reopened(stream: TextIO, descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
