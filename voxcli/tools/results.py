"""Makes what a tool returned safe for models, terminals and files: bounded text without control characters."""

import re
import unicodedata

from voxcli.printable import JOINERS, UNSAFE

# Escape sequences of terminals: those with a text that ends in BEL or ST, CSI sequences, and two-character ones.
ESCAPES = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*.?"
)
LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
SCANNED = 8  # how many times the wanted length is looked at, because sequences are dropped from it


def cleaned(text: str, characters: int) -> str:
    """Return text without escape sequences and control or format characters, cut to a length with a note."""
    scanned = text[: characters * SCANNED]
    plain = LINE_ENDS.sub("\n", ESCAPES.sub("", scanned))
    kept = "".join(char for char in plain if char in "\n\t" or char in JOINERS or not _is_unsafe(char)).strip()
    if len(kept) <= characters and len(scanned) == len(text):
        return kept
    left_out = max(len(text) - characters, 1)
    return f"{kept[:characters]}\n[cut: about {left_out} more characters]".lstrip()


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in UNSAFE
