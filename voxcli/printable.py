"""Makes text from anywhere (names, prompts, replies, errors) safe for a terminal."""

import unicodedata

ERROR_CHARACTERS = 200  # longest quote from another library's error in a voxcli message
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format (bidi), surrogate, separators
JOINERS = "\u200c\u200d"  # format characters that Persian, Indic scripts and emoji are written with


def printable(text: str, keep: str = "") -> str:
    """Return text in which characters that a terminal may act on are escaped, except those in `keep`."""
    return "".join(
        char
        if char.isprintable() or char in keep or char in JOINERS or unicodedata.category(char) not in UNSAFE
        else _escaped(char)
        for char in text
    )


def first_line(error: object, characters: int = ERROR_CHARACTERS) -> str:
    """Return the first line of an error's message, or its type; shortened, and safe for a terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].strip())[:characters]


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
