"""Addresses, file paths, code, versions, telephone numbers and names with digits in English words."""

import re

from voxcli.core.speakable.markdown import rules
from voxcli.core.speakable.numbers import cardinal, digits, number, year

_SIGNS = {".": " dot ", "/": " slash ", "\\": " backslash ", "@": " at ", "_": " underscore ", "-": " dash "}
_SIGNS |= {"~": " tilde ", "+": " plus ", ":": " colon ", "=": " equals ", "?": " question mark ", "&": " and "}
_TLDS = "com|org|net|io|dev|edu|gov|ai|app|co\\.uk|uk|de|fr|info|me|tv"
_FILES = (
    "py|js|ts|tsx|jsx|json|yaml|yml|toml|md|txt|csv|tsv|html|css|xml|pdf|docx?|xlsx?|pptx?|png|jpe?g|gif|svg|mp3|mp4|"
    "wav|flac|zip|gz|tar|exe|sh|bat|ini|cfg|conf|log|sql|db|cpp|hpp|java|rs|go|rb|php|swift|lock|env|ipynb|onnx|gguf"
)
_VOWELS = re.compile("[aeiou]")

_CODE = re.compile(r"(?<!`)(`{1,2})(?!`)([^`\n]{1,200})\1(?!`)")
_OPERATORS = {
    **{"==": "equals", "!=": "is not equal to", "<=": "is at most", ">=": "is at least", "=>": "arrow", "->": "arrow"},
    **{
        "&&": "and",
        "||": "or",
        "+=": "plus equals",
        "-=": "minus equals",
        "**": "to the power of",
        "//": "slash slash",
    },
    **{"=": "equals", "<": "less than", ">": "greater than", "+": "plus", "*": "star", "%": "percent", "|": "pipe"},
    **{"/": "slash", "\\": "backslash", "@": "at", "&": "and", "~": "tilde", "$": "dollar", "#": "hash"},
}
_OPERATOR = re.compile("|".join(re.escape(sign) for sign in sorted(_OPERATORS, key=len, reverse=True)))
_IN_CODE = rules(
    (r"(?<=[a-z0-9])(?=[A-Z])", " "),  # camelCase
    (r"(?<!\w)--(?=\w)", " dash dash "),
    (r"(?<!\w)-(?=[A-Za-z])", " dash "),
    (r"(?<=\w)\.(?=[A-Za-z_])", " dot "),
    (r"(?<!\w)\.(?=\w)", " dot "),
    (r"(?<=[A-Za-z])-(?=[A-Za-z])", " dash "),
    (r"[_()\[\]{};\"']+", " "),
)


def code(text: str) -> str:
    """Replace inline code by the words that a person would say for it."""
    return _CODE.sub(lambda match: f" {_code_words(match[2])} ", text)


def _code_words(text: str) -> str:
    if re.fullmatch(r"\s*[\w.+-]*[/\\~@][\w./\\~@+-]*\s*", text):  # a path or an address: the rules below read it
        return text
    for pattern, replacement in _IN_CODE:
        text = pattern.sub(replacement, text)
    return " ".join(_OPERATOR.sub(lambda match: f" {_OPERATORS[match[0]]} ", text).split())


def _call(match: re.Match[str]) -> str:
    return _code_words(match[1])


def _spelled(text: str) -> str:
    """Return an address or a path with its signs as words."""
    base, dot, ending = text.rpartition(".")
    if dot and re.fullmatch(_FILES, ending) and not _VOWELS.search(ending):
        text = f"{base}.{ending.upper()}"
    return " ".join("".join(_SIGNS.get(char, char) for char in text).split())


def _address(match: re.Match[str]) -> str:
    return _spelled(match[0])


def _version(match: re.Match[str]) -> str:
    """Say "version 3.12" as "version three point twelve", as people do with versions."""
    name = "version " if match[1].casefold() in {"v", "v.", "version v"} else match[1]
    parts = [cardinal(int(part)) if part[0] != "0" else digits(part) for part in match[2].split(".")]
    return name + " point ".join(parts)


def _dotted(match: re.Match[str]) -> str:
    """Say numbers with several points; four of them are the address of a computer."""
    parts = match[0].split(".")
    return (" dot " if len(parts) == 4 else " point ").join(number(part) for part in parts)


def _telephone(match: re.Match[str]) -> str:
    groups = re.findall("[0-9]+", match[0])
    return ("plus " if "+" in match[0] else "") + ", ".join(digits(group) for group in groups)


def _called(match: re.Match[str]) -> str:
    return f"{match[1]} {digits(match[2])}"


def _model(match: re.Match[str]) -> str:
    """Say "RTX 4090" as "RTX forty ninety"."""
    return f"{match[1]} {year(int(match[2]))}"


def _with_digits(match: re.Match[str]) -> str:
    """Put blanks between the letters and the digits of names such as MP3, H2O and B2B."""
    return re.sub(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])", " ", match[0])


_VERSIONED = (
    r"[Vv]ersion v?|[Rr]elease |Python |Java |Node |PHP |Ruby |Ubuntu |iOS |Android |macOS |Firefox |CUDA |[Vv]\.?"
)

ADDRESSES = rules(
    (r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+", _address),
    (r"(?<![\w/.\\-])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][A-Za-z_.][\w.-]*(?:[/\\][\w.-]+)*[/\\]?(?<![.,])", _address),
    (rf"(?<![\w/.\\-])[\w-]{{1,80}}(?:[/\\][\w.-]{{1,80}})+\.(?:{_FILES})\b(?![\w-])", _address),
    (rf"(?<![\w/.\\-])(?:[\w-]{{1,63}}\.){{1,4}}(?:{_TLDS})\b(?:/[\w~-][\w./~-]*)?(?<![.,])", _address),
    (rf"(?<![\w/\\-])\.?[\w-]{{1,80}}(?:\.[\w-]{{1,40}}){{0,3}}\.(?:{_FILES})\b(?![\w-]|\.\w)", _address),
    (r"(?<![\w.])\.(?:env|gitignore|bashrc|zshrc|dockerignore|profile)\b", _address),
    (r"(?<![\w.])([A-Za-z_][\w.]{0,60})\(\)", _call),
    (r"(?<=\w)_+(?=\w)", " "),  # snake_case
    (r"(?<!\w)--?(?=[a-z][a-z-]+\b)", " dash "),
)
VERSIONS = rules(
    (rf"\b({_VERSIONED})([0-9]{{1,4}}(?:\.[0-9]{{1,4}}){{0,3}})(?![\w]|\.[0-9])", _version),
    (r"(?<![\w.])[0-9]{1,4}(?:\.[0-9]{1,4}){2,3}(?![\w]|\.[0-9])", _dotted),
)
TELEPHONES = rules(
    (r"(?<![\w.-])[0-9]{1,7}(?:-[0-9]{1,7}){3,6}(?![\w-])", _telephone),
    (r"(?<![\w.+-])\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,4}\)?){2,5}(?![\w-])", _telephone),
    (r"(?<![\w.-])(?:1-)?(?:\([0-9]{3}\) ?|[0-9]{3}-)[0-9]{3}-[0-9]{4}(?![\w-])", _telephone),
    (r"(?<![\w.-])[0-9]{3}-[0-9]{4}(?![\w-])", _telephone),
    (r"\b([Cc]all|[Dd]ial|[Ee]xtension|code|PIN)(?: is)? ([0-9]{3,6})(?![\w-]|[.,][0-9])", _called),
    (r"\b([A-Z]{2}) ([0-9]{5})(?![\w-]|[.,][0-9])", _called),  # the state and the ZIP code of an address
)
NAMES = rules(
    (r"\b([A-Z]{2,6})[ -]?([1-9][0-9]{3})(?![\w-]|[.,][0-9])", _model),
    (r"\b([A-Z][A-Za-z]{0,20})-([0-9]{1,4})\b(?![.,:/][0-9])", r"\1 \2"),  # COVID-19, F-16
    (
        r"(?<![\w.])(?:[A-Za-z]{1,20}[0-9]{1,4}|[0-9]{1,4}(?!st\b|nd\b|rd\b|th\b)[A-Za-z]{1,20})[A-Za-z0-9]{0,20}\b",
        _with_digits,
    ),
)
