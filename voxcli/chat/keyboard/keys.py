"""Keys that the user presses while a conversation runs, and how they are parsed from a terminal's bytes.

Most terminals report only characters. Those with kitty's keyboard protocol also report when a key is released,
which push-to-talk with a held key needs (https://sw.kovidgoyal.net/kitty/keyboard-protocol/).
"""

import codecs
import os
import re
import shutil
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol
from unicodedata import combining, east_asian_width

PENDING_CHARS = 256  # a longer escape sequence is discarded

_SHIFT, _CTRL, _LOCKS = 1, 4, 64 | 128  # bits of kitty's modifiers
_KINDS: dict[str, Literal["press", "repeat", "release"]] = {"": "press", "1": "press", "2": "repeat", "3": "release"}
_NO_CHARACTERS = range(0xD800, 0xF900)  # surrogates; where kitty puts keys without a character

_SEQUENCE = re.compile(
    r"""\x1b\[ (?P<parameters>[0-?]*+) [ -/]*+ (?: (?P<final>[@-~]) | (?=[^ -~]|[ -?]) )
      | \x1bO [^\x1b]                                   # keys of the keypad, F1 to F4
      | \x1b[\]P_X^] [^\x07\x1b]*+ (?: \x07 | \x1b\\ | (?=\x1b[^\\]) )  # a report of the terminal
      | \x1b (?: (?=\x1b) | [^\[O\]P_X^\x1b] )          # Escape itself; a key with Alt
      | (?P<char> [^\x1b])""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"\d{1,7}")


@dataclass(frozen=True)
class Key:
    """A key that was pressed, repeated or released.

    char: in lower case; a control character for Ctrl with a letter
    """

    char: str
    kind: Literal["press", "repeat", "release"] = "press"
    shift: bool = False  # a letter was pressed with Shift, or with Caps Lock if the terminal does not tell them apart


@dataclass(frozen=True)
class TerminalReply:
    """The terminal's reply to a query.

    final: `c` for its device attributes, `u` for the flags set in kitty's protocol
    """

    final: str
    parameters: str


class KeyParser:
    """Parses the bytes of a terminal into keys; keeps an incomplete escape sequence."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self.pending = ""

    def feed(self, data: bytes) -> list[Key | TerminalReply]:
        """Parse the next bytes; return the complete keys and replies. Keys without a character are left out."""
        text = self.pending + self._decoder.decode(data)
        found = []
        end = 0
        while match := _SEQUENCE.match(text, end):
            found.append(_parsed(match))
            end = match.end()
        self.pending = text[end:]
        if len(self.pending) > PENDING_CHARS:
            self.discard_pending()
        return [each for each in found if each]

    def discard_pending(self) -> None:
        """Discard an incomplete sequence: it was the Escape key itself, or broken."""
        self._decoder.reset()
        self.pending = ""


def _parsed(match: re.Match[str]) -> Key | TerminalReply | None:
    if char := match["char"]:
        return Key(char.lower(), shift=char != char.lower())
    final, parameters = match["final"], match["parameters"] or ""
    if final in ("c", "u") and parameters.startswith("?"):
        return TerminalReply(final, parameters[1:])
    return _kitty_key(parameters) if final == "u" else None


def _kitty_key(parameters: str) -> Key | None:
    """Parse `code:alternates ; modifiers:event ; text`; everything but the code is optional."""
    code, modifiers, *_ = [*parameters.split(";"), ""]
    number = code.partition(":")[0]
    bits, _, event = modifiers.partition(":")
    if not _NUMBER.fullmatch(number) or not _NUMBER.fullmatch(bits or "1") or event not in _KINDS:
        return None
    if int(number) > sys.maxunicode or int(number) in _NO_CHARACTERS:
        return None
    char, kind = chr(int(number)).lower(), _KINDS[event]
    held = (int(bits or 1) - 1) & ~(_SHIFT | _LOCKS)
    if kind == "release" or not held:  # a release always counts, or a key would stay pressed
        return Key(char, kind, shift=char.isalpha() and bool((int(bits or 1) - 1) & _SHIFT))
    if held == _CTRL and ("a" <= char <= "z" or char == "\\"):
        return Key(chr(ord(char) & 0x1F), kind)
    return None


class Keys(Protocol):
    """The keys of a terminal. One thread may call `read` while another calls `read_line`."""

    supports_release: bool

    def read(self, timeout: float) -> Key | None:
        """Return the next key, or None after `timeout` seconds without one."""
        ...

    def read_line(self, prompt: str, *, erase: bool = False) -> str:
        """Let the user type a line, with echo; return "" if nothing was typed. `read` waits meanwhile.

        Args:
            erase: see `typed_line`.
        """
        ...

    def released(self) -> AbstractContextManager[None]:
        """Leave the terminal to another program for the time of the context; `read` waits meanwhile."""
        ...


def typed_line(prompt: str, fd: int = 0, *, erase: bool = False) -> str:
    """Let the user type a line at a terminal that echoes; return "" for Ctrl-D.

    The prompt goes to stderr if stdout is a file.

    Args:
        erase: take the prompt and the line off the terminal again, unless stdout is a file.
    """
    if fd == 0 and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - with it, input() lets the line be edited
        try:
            line = input(prompt)
        except EOFError:
            return ""
        if erase:
            _erase(prompt + line)
        return line
    sys.stderr.write(prompt)
    sys.stderr.flush()
    with open(os.dup(fd), errors="replace") as terminal:  # noqa: PTH123 - a descriptor, not a path
        return terminal.readline().rstrip("\r\n")


def _erase(text: str) -> None:
    """Erase a text that the terminal shows above the cursor, in as many rows as it takes."""
    size = shutil.get_terminal_size()
    cells = sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)
    rows = min(max(1, -(-cells // size.columns)), size.lines - 1)
    sys.stdout.write(f"\x1b[{rows}A\r \x1b[J\r")  # the space keeps tmux from moving the rows into its scrollback
    sys.stdout.flush()
