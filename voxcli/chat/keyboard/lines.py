"""Reads the lines of a typed conversation: from a terminal, with editing and history, or from a pipe or file."""

import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO

from voxcli.errors import ConfigError

LINE_BYTES = 1 << 16  # The longest line; a prompt of that length fills the context.
PROMPT = "you  "
ANSWER_PROMPT = "y or n  "
BOLD_CYAN, PLAIN = "\x1b[1;36m", "\x1b[0m"
UNSEEN, SEEN = "\x01", "\x02"  # tell readline that what is between them takes no columns


def piped_lines(stream: BinaryIO) -> Callable[[], str | None]:
    """Return a function that returns the next line of a stream, None at its end.

    Bytes that are not UTF-8 are replaced. The function raises ConfigError for a line that is too long, or no text.
    """

    def read_line() -> str | None:
        line = stream.readline(LINE_BYTES + 1)
        if len(line) > LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            raise ConfigError(f"a line of more than {LINE_BYTES} bytes was left out", hint="one line is one turn")
        if b"\0" in line:
            raise ConfigError("a line that is not text was left out", hint="voxcli once FILE answers a recording")
        return line.decode(errors="replace").rstrip("\r\n") if line else None

    return read_line


def typed_lines(commands: Sequence[str], history: Sequence[str], *, edited: bool) -> Callable[[], str | None]:
    """Return a function that lets the user type the next line, and returns None for Ctrl-D.

    Args:
        commands: completed by the Tab key, where the platform has readline.
        history: lines that the arrow keys bring back, the oldest first; lines are kept in memory only.
        edited: standard output is a terminal that is free for the prompt. Otherwise the prompt goes to stderr.
    """
    if not edited:
        return _read_plainly
    prompt = PROMPT
    with suppress(ImportError):
        import readline

        if not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
            prompt = f"{UNSEEN}{BOLD_CYAN}{SEEN}you{UNSEEN}{PLAIN}{SEEN}  "
        for line in history:
            readline.add_history(line)
        readline.set_completer_delims(" ")
        readline.set_completer(
            lambda text, state: [*(each for each in commands if text and each.startswith(text)), None][state]
        )
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")

    def read_line() -> str | None:
        try:
            return _text(input(prompt))
        except EOFError:
            sys.stdout.write("\n")
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            raise

    return read_line


def typed_answer(seconds: float) -> str | None:
    """Let the user type the answer to a question; return None for Ctrl-D.

    What was typed before the question is discarded. Windows can't limit the time.

    Raises:
        TimeoutError: nothing was typed for so many seconds.
    """
    if sys.platform != "win32":
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    sys.stderr.write(ANSWER_PROMPT)
    sys.stderr.flush()
    if sys.platform != "win32" and not select.select([sys.stdin], [], [], seconds)[0]:
        sys.stderr.write("\n")
        raise TimeoutError("nothing was typed")
    line = sys.stdin.readline(LINE_BYTES)
    return _text(line.rstrip("\r\n")) if line else None


def _read_plainly() -> str | None:
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    line = sys.stdin.readline(LINE_BYTES)
    return _text(line.rstrip("\r\n")) if line else None


def _text(line: str) -> str:
    """Return a line without what is not valid UTF-8."""
    return line.encode(errors="replace").decode()
