"""Takes the markup out of Markdown, and whatever a voice would read as a command."""

# ruff: noqa: RUF001 - the marks of other scripts are meant

import html
import re
import unicodedata
from collections.abc import Callable, Iterable

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> tuple[Rule, ...]:
    """Compile pairs of a pattern and its replacement; `^` and `$` match at every line."""
    return tuple((re.compile(pattern, re.MULTILINE), replacement) for pattern, replacement in pairs)


def apply(all_rules: Iterable[Rule], text: str) -> str:
    """Replace what each rule matches, one rule after another."""
    for pattern, replacement in all_rules:
        text = pattern.sub(replacement, text)
    return text


_CODE_BLOCK = re.compile(
    r"(?<!`)(?<!~)(`{3,}+|~{3,}+)[^\S\n]*[^\s`]*[^\S\n]*\n(?:.*?(?<=\n)[^\S\n]*\1[`~]*|.*)", re.DOTALL
)
_FOOTNOTE = re.compile(r"\[\^[^\[\]]*\]")
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:[ \t]+\"[^\"\n]*\")?\)|\[[^\[\]]*\])")
_URL = re.compile(r"<?\b(?:https?://|www\.)(?:[^\s/@<>]*@)?([^\s/:?#<>()\[\]]+)([^\s<>()\[\]]*)>?", re.IGNORECASE)
_SENTENCE_END = tuple(".!?…:;,。！？")

_MARKUP = rules(
    (r"[^\S\n]+", " "),  # first, so that later rules need not try every length of a run of blanks
    # whole lines
    (r"^[ \t]*(?:[-*_=][ \t]*){3,}$", ""),  # horizontal rules
    (r"^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-*:?[ \t]*)+$", ""),  # line below a table header
    (r"^[ \t]*\|[ \t]*(.*?)[ \t]*\|?[ \t]*$", r"\1"),
    (r"^[ \t]*(?:>[ \t]?)+", ""),
    (r"^[ \t]*#{1,6}[ \t]+", ""),
    (r"^[ \t]*[-*+•‣◦·][ \t]+(?:\[[ xX]\][ \t]+)?", ""),
    (r"[ \t]*\|[ \t]*", ", "),
    # within lines
    (r"</?[A-Za-z!?][^<>]*>", " "),
    (r"`+", ""),
    (r"\\(?=[^\w\s])", ""),
    (r"(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w)|(?<!\w)\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?!\w)|~~", ""),
    (r"[-=]+>|<[-=]+", ", "),
)
_COMMANDS_AND_PUNCTUATION = rules(
    (r"[<>\[\]{}\\_|^#`]", " "),  # characters that voices take for commands, or spell out
    (r"[ \t]+(?=[,;])", ""),
    (r"([!?])[!?]+", r"\1"),
    (r"…|\.{3,}", "... "),
    (r"([^\w\s.])\1{2,}", r"\1"),
)


def without_blocks(piece: str, dot: str = ".") -> str:
    """Return Markdown with code blocks named, links and URLs replaced, and characters without sound dropped.

    Args:
        dot: what is said for a dot in the domain that stands for a URL.
    """
    text = _CODE_BLOCK.sub("\nCode block.\n", html.unescape(piece))
    text = "".join(char for char in text if _is_audible(char))
    return _URL.sub(lambda url: _domain(url, dot), _LINK.sub(r"\1", _FOOTNOTE.sub("", text)))


def without_markup(text: str) -> str:
    """Drop what Markdown and HTML add to the words."""
    return apply(_MARKUP, text)


def harmless(text: str) -> str:
    """Drop characters that a voice takes for commands, and repeated punctuation."""
    return apply(_COMMANDS_AND_PUNCTUATION, text)


def one_line(text: str) -> str:
    """Join lines as sentences; return nothing where no letter or digit is left."""
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


def _domain(url: re.Match[str], dot: str) -> str:
    """Return the host of a URL, and the punctuation of the sentence after it."""
    host, rest = url[1].removeprefix("www.").rstrip(".,;:!?*_\"'"), url[0].rstrip(">")
    ending = re.search(r"[.,;:!?]*$", rest)
    return host.replace(".", dot) + (ending[0] if ending else "")
