"""Turns a piece of a reply into text for a voice; printed text is never changed."""

# ruff: noqa: RUF001 - the marks of other scripts are meant

import html
import re
import unicodedata

_CODE_BLOCK = re.compile(
    r"(?<!`)(?<!~)(`{3,}+|~{3,}+)[^\S\n]*[^\s`]*[^\S\n]*\n(?:.*?(?<=\n)[^\S\n]*\1[`~]*|.*)", re.DOTALL
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"[^\S\n]+", " "),  # first, so that later rules need not try every length of a run of blanks
        # whole lines
        (r"^[ \t]*(?:[-*_=][ \t]*){3,}$", ""),  # horizontal rules
        (r"^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-*:?[ \t]*)+$", ""),  # line below a table header
        (r"^[ \t]*\|[ \t]*(.*?)[ \t]*\|?[ \t]*$", r"\1"),
        (r"^[ \t]*(?:>[ \t]?)+", ""),
        (r"^[ \t]*#{1,6}[ \t]+", ""),
        (r"^[ \t]*[-*+•‣◦·][ \t]+(?:\[[ xX]\][ \t]+)?", ""),
        (r"[ \t]*\|[ \t]*", ", "),
        # markup
        (r"</?[A-Za-z!?][^<>]*>", " "),
        (r"`+", ""),
        (r"\\(?=[^\w\s])", ""),
        (r"(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w)|(?<!\w)\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?!\w)|~~", ""),
        # characters that voices take for commands, or spell out
        (r"[-=]+>|<[-=]+", ", "),
        (r"<", " less than "),
        (r">", " greater than "),
        (r"[\[\]{}\\_|^#]", " "),
        # punctuation
        (r"[ \t]+(?=[,;])", ""),
        (r"([!?])[!?]+", r"\1"),
        (r"…|\.{3,}", "... "),
        (r"([^\w\s.])\1{2,}", r"\1"),
    )
)
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:[ \t]+\"[^\"\n]*\")?\)|\[[^\[\]]*\])")
_FOOTNOTE = re.compile(r"\[\^[^\[\]]*\]")
_URL = re.compile(r"<?\b(?:https?://|www\.)(?:[^\s/@<>]*@)?([^\s/:?#<>()\[\]]+)([^\s<>()\[\]]*)>?", re.IGNORECASE)
_SENTENCE_END = tuple(".!?…:;,。！？")


def speakable(piece: str) -> str:
    """Return what a voice should say for a piece of Markdown; empty if there is nothing to say.

    A link is replaced by its text or domain, a code block by "code block". Markup, emoji, control and direction
    characters are dropped, and so is whatever a voice would read as a command (SSML for espeak and SAPI, `[[...]]`
    for macOS and piper).
    """
    text = _CODE_BLOCK.sub("\nCode block.\n", html.unescape(piece))
    text = "".join(char for char in text if _is_audible(char))
    text = _URL.sub(_domain, _LINK.sub(r"\1", _FOOTNOTE.sub("", text)))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    lines = [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]
    spoken = " ".join(line if line.endswith(_SENTENCE_END) else f"{line}." for line in lines[:-1])
    spoken = f"{spoken} {lines[-1]}".strip() if lines else ""
    return spoken if any(char.isalnum() for char in spoken) else ""


def _is_audible(char: str) -> bool:
    """Return whether a voice can pronounce a character or pause at it, by its Unicode category."""
    category = unicodedata.category(char)
    if category == "So":  # symbols from U+2190 on are pictures, except units among the CJK characters
        return char < "\u2190" or "\u3200" <= char <= "\u33ff"
    if category in {"Sk", "Me"}:  # skin tones, keycaps
        return char in "`^"
    return char in "\n\t\u200c" or not (category.startswith("C") or "\ufe00" <= char <= "\ufe0f")


def _domain(url: re.Match[str]) -> str:
    host, rest = url[1].removeprefix("www.").rstrip(".,;:!?*_\"'"), url[0].rstrip(">")
    ending = re.search(r"[.,;:!?]*$", rest)
    return host.replace(".", " dot ") + (ending[0] if ending else "")
