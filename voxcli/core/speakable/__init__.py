"""Turns a piece of a reply into text for a voice; printed text is never changed."""

from voxcli.core.speakable.english import english, is_english
from voxcli.core.speakable.markdown import harmless, one_line, without_blocks, without_markup

UNKNOWN = "und"  # ISO 639's code for a language that is not known


def speakable(piece: str, language: str | None = None) -> str:
    """Return what a voice should say for a piece of Markdown; empty if there is nothing to say.

    A link is replaced by its text or domain, a code block by "Code block". Markup, emoji, control and direction
    characters are dropped, and so is whatever a voice would read as a command (SSML for espeak and SAPI, `[[...]]`
    for macOS and piper). In English, numbers, dates, units, addresses and code become the words that a person would
    say; in any other language they are left to the voice.

    Args:
        language: the piece's language, such as "en" or "fr-CA"; None decides by `is_english`.
    """
    speaks_english = is_english(piece) if language is None else language.casefold().startswith("en")
    if speaks_english:
        return one_line(harmless(english(without_blocks(piece, dot=" dot "))))
    return one_line(harmless(without_markup(without_blocks(piece))))


def spoken_share(piece: str, end: int, language: str | None = None) -> float:
    """Return the share of a piece's speech that its first `end` characters take, from 0 to 1.

    The text for a voice is measured, because "$1,000,000" takes longer to say than its length suggests.
    """
    if language is None:
        language = "en" if is_english(piece) else UNKNOWN
    whole, part = (len(speakable(text, language)) + text[-1:].isspace() for text in (piece, piece[:end]))
    return min(1.0, part / whole) if whole else 1.0
