"""Reads the keys of a Windows console."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from voxcli.chat.keyboard.keys import Key, typed_line

POLL_SECONDS = 0.02  # Windows offers no wait for a key with a time-out


class WindowsKeys:
    """Implements `voxcli.chat.keyboard.keys.Keys` for a Windows console.

    Args:
        has_key, get_char: `msvcrt.kbhit` and `msvcrt.getwch`.
        paused: entered while the user types a line.
    """

    supports_release = False

    def __init__(
        self,
        has_key: Callable[[], bool],
        get_char: Callable[[], str],
        paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._has_key = has_key
        self._get_char = get_char
        self._paused = paused
        self._free = threading.Lock()

    def read(self, timeout: float) -> Key | None:
        deadline = time.monotonic() + timeout
        while True:
            with self._free:
                if self._has_key():
                    char = self._get_char()
                    if char not in ("\x00", "\xe0"):
                        return Key(char.lower(), shift=char != char.lower())
                    self._get_char()  # the code of an arrow or a function key
                    continue
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS)

    def read_line(self, prompt: str, *, erase: bool = False) -> str:
        with self.released():
            return typed_line(prompt, erase=erase)

    @contextmanager
    def released(self) -> Iterator[None]:
        with self._free, self._paused():
            yield
