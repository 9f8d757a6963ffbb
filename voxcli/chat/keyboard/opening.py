"""Opens the keyboard of the terminal, on POSIX or on Windows."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TextIO

from voxcli.chat.keyboard.keys import Keys


@contextmanager
def open_keys(
    *,
    releases: bool = False,
    paused: Callable[[], AbstractContextManager[None]] = nullcontext,
    stdin: TextIO | None = None,
) -> Iterator[Keys | None]:
    """Yield the keys of the terminal; None if standard input is no terminal, or the program is in the background.

    Call it on the main thread, which receives signals.

    Args:
        releases: ask the terminal to report released keys; `supports_release` says whether it does.
        paused: entered while the user types a line, or while Ctrl-Z suspends the program.
    """
    stream = stdin or sys.stdin
    if stream is None or stream.closed or not stream.isatty():
        yield None
    elif sys.platform == "win32":
        import msvcrt

        from voxcli.chat.keyboard.windows import WindowsKeys

        yield WindowsKeys(msvcrt.kbhit, msvcrt.getwch, paused)
    else:
        from voxcli.chat.keyboard.posix import PosixKeys, in_foreground

        if in_foreground(stream.fileno()):
            with PosixKeys(stream.fileno(), paused).opened(releases) as keys:
                yield keys
        else:
            yield None
