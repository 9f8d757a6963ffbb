"""Keys of the terminal, one by one, while a conversation runs; it knows nothing of what they do.

On POSIX the terminal is put into cbreak mode without echo and put back whatever happens: an error, a
signal that ends the program, Ctrl-Z. Ctrl-C stays the terminal's: it comes as SIGINT. Releases of keys,
which holding a key to talk needs, are told only by terminals with kitty's keyboard protocol
(https://sw.kovidgoyal.net/kitty/keyboard-protocol/); others tell no more than characters.
"""

import codecs
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

PENDING_CHARS = 256  # a longer sequence is none

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
    """A key and what was done with it.

    char: as the keyboard gives it, in lower case; Ctrl with a letter is a control character
    """

    char: str
    kind: Literal["press", "repeat", "release"] = "press"


@dataclass(frozen=True)
class Answer:
    """What the terminal answered: `c` to what it is, `u` to which flags of kitty's protocol are set."""

    final: str
    parameters: str


class KeyParser:
    """Turns what a terminal sends into keys; a sequence that is not yet whole is kept."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self.pending = ""

    def feed(self, data: bytes) -> list[Key | Answer]:
        """Take the next bytes; return what is certain now. Keys without a character are left out."""
        text = self.pending + self._decoder.decode(data)
        found = []
        end = 0
        while match := _SEQUENCE.match(text, end):
            found.append(_meaning(match))
            end = match.end()
        self.pending = text[end:]
        if len(self.pending) > PENDING_CHARS:
            self.forget()
        return [each for each in found if each]

    def forget(self) -> None:
        """Drop what is pending: nothing follows it, so it was Escape itself, or broken."""
        self._decoder.reset()
        self.pending = ""


def _meaning(match: re.Match[str]) -> Key | Answer | None:
    if char := match["char"]:
        return Key(char.lower())
    final, parameters = match["final"], match["parameters"] or ""
    if final in ("c", "u") and parameters.startswith("?"):
        return Answer(final, parameters[1:])
    return _kitty_key(parameters) if final == "u" else None


def _kitty_key(parameters: str) -> Key | None:
    """Read `code:alternates ; modifiers:event ; text`, of which all but the code may be missing."""
    code, modifiers, *_ = [*parameters.split(";"), ""]
    number = code.partition(":")[0]
    bits, _, event = modifiers.partition(":")
    if not _NUMBER.fullmatch(number) or not _NUMBER.fullmatch(bits or "1") or event not in _KINDS:
        return None
    if int(number) > sys.maxunicode or int(number) in _NO_CHARACTERS:
        return None
    char, kind = chr(int(number)).lower(), _KINDS[event]
    held = (int(bits or 1) - 1) & ~(_SHIFT | _LOCKS)
    if kind == "release" or not held:  # a release counts whatever is held beside it: nothing may stay pressed
        return Key(char, kind)
    if held == _CTRL and ("a" <= char <= "z" or char == "\\"):
        return Key(chr(ord(char) & 0x1F), kind)
    return None


class Keys(Protocol):
    """Where keys come from. `read` may run in a thread of its own while another calls `read_line`."""

    supports_release: bool

    def read(self, timeout: float) -> Key | None:
        """Return the next key, or None after `timeout` seconds without one."""
        ...

    def read_line(self, prompt: str) -> str:
        """Let the user type a line, with echo; empty if nothing was typed. Keys wait meanwhile."""
        ...


def typed_line(prompt: str, fd: int = 0) -> str:
    """Let the user type a line at a terminal that echoes; empty for Ctrl-D.

    The prompt never gets into replies that go to a file.
    """
    if fd == 0 and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - with it, input() lets the line be edited
        with suppress(EOFError):
            return input(prompt)
        return ""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    with open(os.dup(fd), errors="replace") as terminal:  # noqa: PTH123 - a descriptor, not a path
        return terminal.readline().rstrip("\r\n")
