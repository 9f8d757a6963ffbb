"""Anybody's text - names, prompts, replies - made safe for a terminal."""

import unicodedata

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format (bidi), surrogate, separators
JOINERS = "\u200c\u200d"  # format characters that Persian, Indic scripts and emoji are written with


def printable(text: str, keep: str = "") -> str:
    """Return text with every character escaped that a terminal may act on, save those in `keep`."""
    return "".join(
        char if char in keep or char in JOINERS or unicodedata.category(char) not in UNSAFE else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
