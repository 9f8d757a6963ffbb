"""The keys of a POSIX terminal: its mode, its signals and its answers.

It knows how a terminal is put into cbreak mode and back; what the bytes mean is `voxcli.chat.keyboard.keys`'.
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

from voxcli.chat.keyboard.keys import Answer, Key, KeyParser, typed_line

ESCAPE_SECONDS = 0.05  # what follows an Escape within this time belongs to it
ANSWER_SECONDS = 0.5  # a terminal far away answers within this time, or counts as one that can't

# Kitty's protocol: report keys unambiguously (1), their repeats and releases (2), those with text too (8).
TELL_RELEASES, TELL_NO_MORE = b"\x1b[>11u", b"\x1b[<u"
WHICH_FLAGS, WHO_ARE_YOU = b"\x1b[?u", b"\x1b[c"  # every terminal answers the second
NEEDED_FLAGS = 2 | 8

# What a terminal that reports all keys no longer turns into signals.
_SIGNALS = {"\x03": signal.SIGINT, "\x1a": signal.SIGTSTP, "\x1c": signal.SIGQUIT}
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def in_foreground(fd: int) -> bool:
    """Whether this program may change the terminal; where it can't be told, it may."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


class PosixKeys:
    """Keys of the terminal at a file descriptor; see `voxcli.chat.keyboard.keys.Keys`.

    Args:
        paused: entered while somebody else has the terminal: the user types a line, or Ctrl-Z was pressed.
    """

    def __init__(self, fd: int, paused: Callable[[], AbstractContextManager[None]]) -> None:
        self._fd = fd
        self._paused = paused
        self._before = termios.tcgetattr(fd)
        self._ours = False  # as far as this program is concerned
        self._gone = False  # the terminal hung up
        self._free = threading.Lock()
        self._parser = KeyParser()
        self._keys: deque[Key] = deque()
        self.supports_release = False

    @contextmanager
    def opened(self, releases: bool) -> Iterator["PosixKeys"]:
        """Hold the terminal in cbreak mode."""
        with self._signals():
            try:
                self._enter()
                if releases:
                    self._ask_for_releases()
                yield self
            finally:
                self._leave()

    def read(self, timeout: float) -> Key | None:
        deadline = time.monotonic() + timeout
        if not self._free.acquire(timeout=timeout):
            return None
        try:
            while not self._keys:
                left = deadline - time.monotonic()
                self._take(max(0.0, left))
                if left <= 0:
                    break
            return self._keys.popleft() if self._keys else None
        finally:
            self._free.release()

    def read_line(self, prompt: str) -> str:
        with self._free, self._paused():
            self._leave()
            try:
                return typed_line(prompt, self._fd)
            finally:
                self._enter()

    def _take(self, seconds: float) -> list[Answer]:
        """Wait so long, at most, for what comes next; keep its keys, return its answers."""
        wait = min(seconds, ESCAPE_SECONDS) if self._parser.pending else seconds
        if not select.select([] if self._gone else [self._fd], [], [], wait)[0]:
            if wait == ESCAPE_SECONDS:
                self._parser.forget()
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:  # EIO: hung up
            data = b""
        self._gone = not data
        answers = []
        for each in self._parser.feed(data):
            if isinstance(each, Answer):
                answers.append(each)
            elif each.char not in _SIGNALS:
                self._keys.append(each)
            elif each.kind == "press":
                os.kill(os.getpid(), _SIGNALS[each.char])
        return answers

    def _ask_for_releases(self) -> None:
        self._write(TELL_RELEASES + WHICH_FLAGS + WHO_ARE_YOU)
        deadline = time.monotonic() + ANSWER_SECONDS
        answers: dict[str, str] = {}
        while "c" not in answers and (left := deadline - time.monotonic()) > 0:
            answers |= {answer.final: answer.parameters for answer in self._take(left)}
        flags = answers.get("u", "")
        self.supports_release = flags.isdecimal() and int(flags) & NEEDED_FLAGS == NEEDED_FLAGS
        if "u" in answers and not self.supports_release:
            self._write(TELL_NO_MORE)

    def _enter(self) -> None:
        self._ours = True
        self._set_mode()
        if self.supports_release:
            self._write(TELL_RELEASES)

    def _set_mode(self) -> None:
        if in_foreground(self._fd):
            with suppress(termios.error):  # hung up
                tty.setcbreak(self._fd, termios.TCSADRAIN)

    def _leave(self) -> None:
        if self.supports_release and self._ours:
            self._write(TELL_NO_MORE)
        self._ours = False
        if in_foreground(self._fd):
            # What a key sent in kitty's way is for nobody else to read; other keys may be meant for the shell.
            when = termios.TCSAFLUSH if self.supports_release else termios.TCSADRAIN
            with suppress(termios.error):  # hung up
                termios.tcsetattr(self._fd, when, self._before)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # standard input may be open for reading alone: then there is no answer either
            os.write(self._fd, data)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Take the signals that would leave the terminal as it is, unless somebody has them already."""
        wanted = {signal.SIGTSTP: self._on_stop, signal.SIGCONT: self._on_continue} | dict.fromkeys(_ENDING, _on_end)
        on_main = threading.current_thread() is threading.main_thread()
        ours = {number: on for number, on in wanted.items() if on_main and signal.getsignal(number) is signal.SIG_DFL}
        for number, on_signal in ours.items():
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, signal.SIG_DFL)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: give the terminal back, stop here, and take it again when the program goes on."""
        ours = self._ours
        with self._paused():
            self._leave()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, self._on_stop)
            if ours:
                self._enter()

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        """After SIGSTOP, or `bg` and `fg`: the shell may have set a mode of its own."""
        if self._ours:
            self._set_mode()


def _on_end(number: int, _frame: FrameType | None) -> None:
    """Let the program end through its `finally` clauses, with the exit code that shells know."""
    raise SystemExit(128 + number)
