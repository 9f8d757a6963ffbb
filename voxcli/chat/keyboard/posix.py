"""Reads the keys of a POSIX terminal: sets its mode, handles its signals and queries what it supports.

The terminal is in cbreak mode, without echo, and is restored after an error, a signal that ends the program or
Ctrl-Z. Ctrl-C still raises SIGINT. `voxcli.chat.keyboard.keys` parses the bytes.
"""

import os
import select
import signal
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType

from voxcli.chat.keyboard.keys import Key, KeyParser, TerminalReply, typed_line

ESCAPE_SECONDS = 0.05  # bytes that follow an Escape within this time belong to its sequence
REPLY_SECONDS = 0.5  # a terminal that has not replied by then does not support the protocol; ssh adds delay

# Kitty's protocol: report keys unambiguously (1), with repeats and releases (2), keys that give text included (8).
ENABLE_RELEASES, DISABLE_RELEASES = b"\x1b[>11u", b"\x1b[<u"
QUERY_FLAGS, QUERY_ATTRIBUTES = b"\x1b[?u", b"\x1b[c"  # every terminal replies to the second
NEEDED_FLAGS = 2 | 8

# Keys that a terminal no longer turns into signals once it reports all keys.
_SIGNALS = {"\x03": signal.SIGINT, "\x1a": signal.SIGTSTP, "\x1c": signal.SIGQUIT}
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def in_foreground(fd: int) -> bool:
    """Return whether this program may change the terminal; True if the system does not say."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


class PosixKeys:
    """Implements `voxcli.chat.keyboard.keys.Keys` for the terminal at a file descriptor.

    Args:
        paused: entered while the user types a line, or while Ctrl-Z suspends the program.
    """

    def __init__(self, fd: int, paused: Callable[[], AbstractContextManager[None]]) -> None:
        self._fd = fd
        self._paused = paused
        self._before = termios.tcgetattr(fd)
        self._is_held = False  # this program wants cbreak mode
        self._hung_up = False
        self._free = threading.Lock()  # held by the thread that reads
        self._parser = KeyParser()
        self._keys: deque[Key] = deque()
        self.supports_release = False

    @contextmanager
    def opened(self, releases: bool) -> Iterator["PosixKeys"]:
        """Keep the terminal in cbreak mode for the time of the context."""
        with self._signals():
            try:
                self._take_terminal()
                if releases:
                    self._enable_releases()
                yield self
            finally:
                self._restore_terminal()

    def read(self, timeout: float) -> Key | None:
        deadline = time.monotonic() + timeout
        if not self._free.acquire(timeout=timeout):
            return None
        try:
            while not self._keys:
                left = deadline - time.monotonic()
                self._receive(max(0.0, left))
                if left <= 0:
                    break
            return self._keys.popleft() if self._keys else None
        finally:
            self._free.release()

    def read_line(self, prompt: str, *, erase: bool = False) -> str:
        with self.released():
            return typed_line(prompt, self._fd, erase=erase)

    @contextmanager
    def released(self) -> Iterator[None]:
        with self._free, self._paused():
            self._restore_terminal()
            try:
                yield
            finally:
                self._take_terminal()

    def _receive(self, seconds: float) -> list[TerminalReply]:
        """Read bytes, waiting `seconds` at most; queue keys, raise signals, return the terminal's replies."""
        wait = min(seconds, ESCAPE_SECONDS) if self._parser.pending else seconds
        if not select.select([] if self._hung_up else [self._fd], [], [], wait)[0]:
            if wait == ESCAPE_SECONDS:
                self._parser.discard_pending()
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:  # EIO: the terminal hung up
            data = b""
        self._hung_up = not data
        replies = []
        for each in self._parser.feed(data):
            if isinstance(each, TerminalReply):
                replies.append(each)
            elif each.char not in _SIGNALS:
                self._keys.append(each)
            elif each.kind == "press":
                os.kill(os.getpid(), _SIGNALS[each.char])
        return replies

    def _enable_releases(self) -> None:
        self._write(ENABLE_RELEASES + QUERY_FLAGS + QUERY_ATTRIBUTES)
        deadline = time.monotonic() + REPLY_SECONDS
        replies: dict[str, str] = {}
        while "c" not in replies and (left := deadline - time.monotonic()) > 0:
            replies |= {reply.final: reply.parameters for reply in self._receive(left)}
        flags = replies.get("u", "")
        self.supports_release = flags.isdecimal() and int(flags) & NEEDED_FLAGS == NEEDED_FLAGS
        if "u" in replies and not self.supports_release:
            self._write(DISABLE_RELEASES)

    def _take_terminal(self) -> None:
        self._is_held = True
        self._set_mode()
        if self.supports_release:
            self._write(ENABLE_RELEASES)

    def _set_mode(self) -> None:
        if in_foreground(self._fd):
            with suppress(termios.error):  # hung up
                tty.setcbreak(self._fd, termios.TCSADRAIN)

    def _restore_terminal(self) -> None:
        if self.supports_release and self._is_held:
            self._write(DISABLE_RELEASES)
        self._is_held = False
        if in_foreground(self._fd):
            # Discard keys reported in kitty's protocol, which a shell can't read; leave other keys to the shell.
            when = termios.TCSAFLUSH if self.supports_release else termios.TCSADRAIN
            with suppress(termios.error):  # hung up
                termios.tcsetattr(self._fd, when, self._before)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # standard input may be read-only; then the terminal does not reply
            os.write(self._fd, data)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle the signals that would leave the terminal in cbreak mode, unless they have handlers already."""
        wanted = {signal.SIGTSTP: self._on_stop, signal.SIGCONT: self._on_continue} | dict.fromkeys(_ENDING, _on_end)
        on_main = threading.current_thread() is threading.main_thread()
        added = {number: on for number, on in wanted.items() if on_main and signal.getsignal(number) is signal.SIG_DFL}
        for number, on_signal in added.items():
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number in added:
                signal.signal(number, signal.SIG_DFL)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle Ctrl-Z: restore the terminal, suspend, and set the mode again when the program continues."""
        was_held = self._is_held
        with self._paused():
            self._restore_terminal()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, self._on_stop)
            if was_held:
                self._take_terminal()

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        """Set the mode again after SIGSTOP, or `bg` and `fg`: the shell may have changed it."""
        if self._is_held:
            self._set_mode()


def _on_end(number: int, _frame: FrameType | None) -> None:
    """End the program through its `finally` clauses, with the exit code that shells use for signals."""
    raise SystemExit(128 + number)
