"""Sends what sound libraries write to standard error to the log.

PortAudio, ALSA and JACK print to file descriptor 2 whenever they like, from threads of their own, and can't be told
to stop. This module is the descriptor's only owner: it is a pipe from the first use of a device to the end of the
program. A line that a sound library wrote goes to the log, once; every other one goes on to the real standard error.
Python's `sys.stderr` gets a descriptor of its own, so that nothing that is written to it takes that way.
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
)
READ_BYTES = 1 << 16
KEPT_MESSAGES = 1000  # beyond as many different ones, no more are logged
LINE_BYTES = 4096  # of C's buffer for a line; a pipe takes so much in one piece
DRAIN_SECONDS = 0.5  # at the end; a child process that lives on holds the pipe open

_log = logging.getLogger(__name__)


@cache
def redirect_library_messages() -> None:
    """Begin to log what sound libraries print; does nothing where they can't print, or without a standard error."""
    if os.name == "posix":
        with suppress(OSError):  # the process has no descriptor 2
            _Relay(os.dup(2)).start()
    if sys.platform == "linux":
        _write_whole_lines()


class _Relay(threading.Thread):
    """Reads what is written to descriptor 2."""

    def __init__(self, real: int) -> None:
        """Put a pipe in the place of descriptor 2; `real` is a copy of what it was."""
        super().__init__(name="standard error", daemon=True)
        self._real = real
        self._logged: set[bytes] = set()
        self._is_message = False  # the last line was one
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
            for line in lines:
                self._take(line + b"\n")
            if not MESSAGE.match(rest):  # a prompt, for example, has no end of line
                self._pass_on(rest)
                rest = b""
        self._take(rest)

    def _take(self, line: bytes) -> None:
        was_message, self._is_message = self._is_message, bool(MESSAGE.match(line))
        if not self._is_message:
            if not (was_message and line == b"\n"):  # some messages of ALSA end with an empty line
                self._pass_on(line)
        elif line not in self._logged and len(self._logged) < KEPT_MESSAGES:
            self._logged.add(line)
            _log.debug("%s", line.decode(errors="replace").rstrip())

    def _pass_on(self, text: bytes) -> None:
        with suppress(OSError):  # a terminal that is closed
            while text:
                text = text[os.write(self._real, text) :]

    def _restore(self) -> None:
        """Give descriptor 2 back, unless somebody else has redirected it meanwhile."""
        with suppress(OSError):
            if os.fstat(2).st_ino == self._pipe:
                os.dup2(self._real, 2)
        self.join(DRAIN_SECONDS)


def _write_whole_lines() -> None:
    """Let C write to its `stderr` line by line, as ALSA doesn't: others may write between the parts of a line."""
    c = ctypes.CDLL(None)
    c.malloc.restype = ctypes.c_void_p  # never freed, for C writes to the very end of the process
    line_by_line = 1  # _IOLBF of glibc and musl
    c.setvbuf(
        ctypes.c_void_p.in_dll(c, "stderr"),
        ctypes.c_void_p(c.malloc(LINE_BYTES)),
        line_by_line,
        ctypes.c_size_t(LINE_BYTES),
    )


def _reopened(stream: TextIO, descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
