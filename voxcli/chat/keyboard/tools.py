"""What a person does with text during a conversation: types a line, edits it in an editor, copies a reply."""

import base64
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from voxcli.chat.keyboard.keys import Keys
from voxcli.errors import ConfigError, VoxError
from voxcli.printable import printable

TYPING = "you (Enter sends, Ctrl-C cancels): "
COPY_SECONDS = 2.0  # a clipboard program that takes longer has no clipboard to write to
# Programs that take a text on standard input, and the variable without which each has no clipboard to write to.
CLIPBOARDS = (
    (("pbcopy",), ""),
    (("clip.exe",), ""),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
EDITORS = ("notepad",) if sys.platform == "win32" else ("nano", "vi")  # Used if VISUAL and EDITOR are unset.


@dataclass(frozen=True)
class UserTools:
    """What the keyboard and the clipboard do for a conversation; calls block it."""

    read_line: Callable[[], str] = str  # lets the user type a line; returns "" if they typed nothing
    edit_line: Callable[[], str] = str  # the same, in an editor; raises VoxError if there is none
    copy: Callable[[str], str] = "no clipboard for {}".format  # copies a text; returns a line that says so


def user_tools(keys: Keys | None, write_escape: Callable[[str], None], *, erase: bool = False) -> UserTools:
    """Return the tools of a terminal.

    Args:
        keys: the keys of the terminal; None: nothing can be typed.
        write_escape: sends an escape sequence to the terminal, which shows nothing.
        erase: take a typed line off the terminal again, because the view shows it in its turn.
    """
    if keys is None:
        return UserTools(copy=lambda text: copy(text, write_escape))
    return UserTools(lambda: _read_line(keys, erase=erase), lambda: edit(keys), lambda text: copy(text, write_escape))


def _read_line(keys: Keys, *, erase: bool) -> str:
    """Let the user type a line; Ctrl-C cancels it and gives an empty line."""
    with _on_ctrl_c(signal.default_int_handler):
        try:
            return keys.read_line(TYPING, erase=erase)
        except KeyboardInterrupt:
            return ""


def edit(keys: Keys, environment: Mapping[str, str] = os.environ) -> str:
    """Let the user write a text in the editor that `VISUAL` or `EDITOR` names; return it.

    Raises:
        VoxError: there is no editor, or it failed. Nothing was written then.
    """
    command = _editor(environment)
    with tempfile.TemporaryDirectory(prefix="voxcli-") as folder:  # Only its owner can enter it.
        file = Path(folder, "line.txt")
        file.touch(mode=0o600)
        # A handler that does nothing is reset when the editor starts; an ignored signal would stay ignored there.
        with keys.released(), _on_ctrl_c(lambda _number, _frame: None):
            try:
                code = subprocess.run([*command, str(file)], check=False).returncode
            except OSError as error:
                raise _no_editor(f"{command[0]} can't be started: {error.strerror}") from error
        if code:
            raise _no_editor(f"{command[0]} ended with exit code {code}")
        try:
            text = file.read_bytes().decode(errors="replace")
        except OSError as error:
            raise _no_editor(f"{command[0]} left no file: {error.strerror}") from error
    return printable("\n".join(text.splitlines()), keep="\n\t").strip()


def _editor(environment: Mapping[str, str]) -> Sequence[str]:
    named = environment.get("VISUAL") or environment.get("EDITOR") or ""
    try:
        if command := shlex.split(named, posix=os.name == "posix"):
            return command
    except ValueError as error:
        raise _no_editor(f"{printable(named)!r} is not a command: {error}") from error
    if found := next(filter(shutil.which, EDITORS), None):
        return (found,)
    raise _no_editor("there is no editor")


def _no_editor(message: str) -> VoxError:
    return ConfigError(printable(message), hint="set EDITOR to the command of an editor")


def copy(text: str, write_escape: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> str:
    """Copy a text to the clipboard: with the platform's program, or over SSH and without one with OSC 52.

    Control characters are escaped: a text that is pasted into a shell can't press keys there. Returns a line for
    the user.
    """
    text = printable(text.strip(), keep="\n\t")
    if not environment.get("SSH_CONNECTION"):
        for command, needed in CLIPBOARDS:
            if (not needed or environment.get(needed)) and shutil.which(command[0]) and _written(command, text):
                return "copied the last reply"
    write_escape(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    return "copied the last reply, if this terminal allows it"


def _written(command: Sequence[str], text: str) -> bool:
    """Give a clipboard program its text; return whether it took it."""
    encoding = "utf-16" if command[0] == "clip.exe" else "utf-8"
    try:
        done = subprocess.run(
            command,
            input=text.encode(encoding),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COPY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def _on_ctrl_c(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
