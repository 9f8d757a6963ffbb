"""Abbreviations, Roman numerals and symbols in English words."""

# ruff: noqa: RUF001 - the symbols are meant

import re

from voxcli.core.speakable.markdown import rules
from voxcli.core.speakable.numbers import cardinal, ordinal

_ABBREVIATIONS = {
    **{"e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "approx.": "approximately"},
    **{"a.k.a.": "also known as", "w/o": "without", "w/": "with", "Jr.": "Junior", "Sr.": "Senior", "Ltd.": "Limited"},
    **{"Corp.": "Corporation", "Inc.": "Incorporated", "dept.": "department", "Dept.": "Department", "Ave.": "Avenue"},
    **{"Blvd.": "Boulevard", "Rd.": "Road", "vs": "versus", "aka": "also known as", "et al.": "and others"},
}
_TITLES = {
    **{"Dr.": "Doctor", "Dr": "Doctor", "Prof.": "Professor", "Gov.": "Governor", "Sen.": "Senator", "Mt.": "Mount"},
    **{"Rep.": "Representative", "Gen.": "General", "Lt.": "Lieutenant", "Sgt.": "Sergeant", "Capt.": "Captain"},
    **{"Col.": "Colonel", "Rev.": "Reverend", "Hon.": "Honorable", "St.": "Saint"},
}
_BEFORE_NUMBERS = {
    **{"No.": "number", "no.": "number", "Nos.": "numbers", "Fig.": "figure", "fig.": "figure", "Figs.": "figures"},
    **{"Vol.": "volume", "vol.": "volume", "p.": "page", "pp.": "pages", "Ch.": "chapter", "ch.": "chapter"},
    **{"Sec.": "section", "sec.": "section", "Eq.": "equation", "c.": "circa", "ca.": "circa", "#": "number"},
    **{"§": "section", "~": "about", "≈": "about", "x": "times"},
}
_ENDED = {"etc.", "Jr.", "Sr.", "Ltd.", "Corp.", "Inc.", "Ave.", "Blvd.", "Rd.", "et al."}  # may end a sentence
_SYMBOLS = {
    **{"&": " and ", "=": " equals ", "×": " times ", "÷": " divided by ", "±": " plus or minus ", "≈": " is about "},
    **{
        "≤": " less than or equal to ",
        "≥": " greater than or equal to ",
        "≠": " is not equal to ",
        "√": " square root of ",
    },
    **{"π": " pi ", "∞": " infinity ", "<": " less than ", ">": " greater than ", "©": " copyright ", "→": ", "},
    **{"™": "", "®": "", "°": " degrees ", "§": " section ", "%": " percent ", "€": " euros ", "£": " pounds "},
    **{"#": " number ", "^": " to the power of ", "∑": " sum of ", "µ": " micro "},
}
_SYMBOL = "[" + re.escape("".join(_SYMBOLS)) + "]"

_MONARCHS = (
    "Henry Louis Elizabeth George Edward Richard Charles William James Philip Paul Pius Benedict Gregory Leo "
    "Alexander Nicholas Catherine Peter Frederick Wilhelm Ivan Napoleon Ramesses Ramses Francis Ferdinand Christian "
    "Gustav Harald Otto Emmanuel Albert Leopold Alfonso Felipe Carlos Henri Robert Mary Darius Xerxes Cyrus "
    "Ptolemy Cleopatra Justinian Constantine Theodosius Urban Innocent Clement Julius Sixtus John Margaret Anne "
    "Thutmose Amenhotep Mehmed Murad Selim Suleiman Baldwin Stephen Umberto Pedro Joseph Maximilian Haakon Olav"
)
_ROMAN = r"(?:X{0,3}(?:IX|IV|V?I{1,3}|V)|X{1,3})"
_VALUES = {"I": 1, "V": 5, "X": 10}


def _roman(numeral: str) -> int:
    values = [_VALUES[char] for char in numeral]
    return sum(
        -value if value < following else value for value, following in zip(values, [*values[1:], 0], strict=True)
    )


def _monarch(match: re.Match[str]) -> str:
    return f"{match[1]} the {ordinal(_roman(match[2]))}"


def _numbered(match: re.Match[str]) -> str:
    return f"{match[1]} {cardinal(_roman(match[2]))}"


def _expand(match: re.Match[str]) -> str:
    """Expand an abbreviation; keep its full stop if the text ends with it."""
    words = _ABBREVIATIONS[match[1]]
    return (
        f"{words}."
        if match[1] in _ENDED and (match[0] != match[1] or match.end() == len(match.string.rstrip()))
        else words
    )


def _any_of(words: dict[str, str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


ABBREVIATIONS = rules(
    (rf"(?<![\w.])({_any_of(_TITLES)})(?= [A-Z])", lambda match: _TITLES[match[1]]),
    (rf"(?<![\w.])({_any_of(_BEFORE_NUMBERS)}) ?(?=[0-9])", lambda match: f"{_BEFORE_NUMBERS[match[1]]} "),
    (r"(?<=[a-z] )St\.(?! [A-Z])|(?<=[a-z] )St\.(?= [A-Z][a-z]+ [a-z])", "Street"),
    (rf"(?<![\w./])({_any_of(_ABBREVIATIONS)})(?![\w/])", _expand),
)
ROMAN = rules(
    (
        rf"\b({'|'.join(_MONARCHS.split())}) ({_ROMAN})\b"
        r"(?:(?<=[IVX]{2})|(?=[.,;:!?)'’]|$| (?:of|was|and|who|in|is|had|died|became|ruled)\b))",
        _monarch,
    ),
    (rf"\b([A-Z][a-z]+) ({_ROMAN})(?<! [IVX])(?![\w'’])", _numbered),
    (
        rf"\b([Cc]hapter|[Pp]art|[Aa]ct|[Vv]olume|[Pp]hase|[Bb]ook|[Ss]cene|War|[Tt]ype|[Ss]tage) ({_ROMAN})\b",
        _numbered,
    ),
)
SYMBOLS = rules(
    (r"(?<=[0-9A-Za-z)]) ?\+ ?(?=[0-9A-Za-z(])|(?<= )\+(?= )", " plus "),
    (r"(?<=[0-9A-Za-z)]) [-\u2212] (?=[0-9(])", " minus "),
    (r"(?<=[0-9]) ?\* ?(?=[0-9])", " times "),
    (r"(?<=[A-Za-z]{2})/(?=[A-Za-z]{2})|(?<=\b[A-Za-z])/(?=[A-Za-z]\b)", " "),  # Examples: and/or, TCP/IP, N/A.
    (r"<=", " less than or equal to "),
    (r">=", " greater than or equal to "),
    (r"!=", " is not equal to "),
    (r"={2,3}", " equals "),
    (r"(?<!\w)@(?=\w)", "at "),
    (r"#(?=[A-Za-z])", " hashtag "),
    (_SYMBOL, lambda match: _SYMBOLS[match[0]]),
)
