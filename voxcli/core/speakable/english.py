"""Writes a text the way an English speaker would read it aloud."""

# ruff: noqa: RUF001 - dashes are meant

import re

from voxcli.core.speakable import calendar, codes, quantities, words
from voxcli.core.speakable.markdown import apply, rules, without_markup
from voxcli.core.speakable.numbers import cardinal, is_one, number, ordinal
from voxcli.core.speakable.quantities import NUMBER, SIGN, START

# Words of English alone, words that it shares with one or two languages, and frequent words of other languages.
_ENGLISH = frozenset(
    """
    the and this that these those with you your they their there from which would what when where who how about it
    it's that's she his its our should could because been were than then them here only into after before every had
    i'm don't
    """.split()  # noqa: SIM905
)
_PERHAPS_ENGLISH = frozenset(
    "is are was has have of at for or my by in on an i me be can will if we he to do no as not use more a".split()  # noqa: SIM905
)
_OTHERS = frozenset(
    """
    der die das und ist nicht ein eine einen mit auf für von zu den dem sich auch wie hat sind im am ich er wir uhr
    le la les des et est un une du dans pour pas que qui sur avec il elle au aux ce cette sont vous nous je
    el los las de y en por con para su se del al lo como más pero es una hay
    di che non sono della gli ha anche più nel si
    os da em uma não com na dos das mais
    het een van niet op te zijn voor met aan dat deze naar ook dit bij ik hij zij wij jaar maar
    och att det som av på är den ett jag og af ikke til jeg er
    nie z jest się ne ve bir bu
    """.split()  # noqa: SIM905
)
# Longer than any piece of prose. Blocks keep the time linear: a rule may look at all of a block from each beginning.
_BLOCK = re.compile(r".{1,1000}(?:(?<=\s)|(?!\S))|.{1,1000}", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’](?:s|re|ll|ve|d|t|m)\b)?")


def is_english(text: str) -> bool:
    """Return whether a text of unknown language is plainly English: its frequent words say so, and no others do.

    A text without such words counts as unknown, and its numbers are left to the voice.
    """
    found = [word.casefold().replace("’", "'") for word in _WORD.findall(text)]
    evidence = sum(2 * (word in _ENGLISH) + (word in _PERHAPS_ENGLISH) for word in found)
    return evidence > 1 and evidence > 2 * sum(word in _OTHERS for word in found)


def _plain(match: re.Match[str]) -> str:
    return number(match[0])


def _range(match: re.Match[str]) -> str:
    return f"{number(match[1])} to {number(match[2])}"


def _scientific(match: re.Match[str]) -> str:
    return f"{number(match[1])} times ten to the power of {number(match[2].lstrip('+'))}"


def _ordinal(match: re.Match[str]) -> str:
    return ordinal(int(match[1].replace(",", "")))


def _times(match: re.Match[str]) -> str:
    return f"{number(match[1])} time{'' if is_one(match[1]) else 's'}"


def _by(match: re.Match[str]) -> str:
    return " by ".join(number(part) for part in re.split(r"[x×]", match[0].replace(" ", "")))


def _ratio(match: re.Match[str]) -> str:
    return f"{number(match[1])} to {number(match[2])}"


_NUMBERS = rules(
    (rf"{START}({SIGN}{NUMBER})[eE]([-+]?[0-9]{{1,3}})\b", _scientific),
    (rf"{START}([0-9]{{1,3}}(?:,[0-9]{{3}}){{1,4}}|[0-9]{{1,9}})(?:st|nd|rd|th)\b", _ordinal),
    (r"(?<![\w.,])[0-9]{1,5}(?:(?:[x×]| x )[0-9]{1,5}){1,2}(?!\w|[.,][0-9])", _by),
    (rf"{START}({NUMBER})[x×](?!\w| [-+=])", _times),
    (rf"{START}([0-9]{{1,4}}):([0-9]{{1,4}})(?![\w:])", _ratio),
    (r"(?<![\w.,])([0-9]{3,4})p\b", lambda match: f"{_pairs(match[1])} p"),
)
_PLAIN = rules(
    (rf"{START}({NUMBER})[-–—]({NUMBER})(?![\w-])", _range),
    (rf"{START}({NUMBER}) [–—] ({NUMBER})(?![\w-])", _range),
    (rf"{START}{SIGN}{NUMBER}", _plain),
    (r"(?<![0-9])(?<!\w[.,])[.](?=[0-9])", " point "),
    (r"[0-9]++", _plain),
    (r"([ap]\.m\.)\.", r"\1"),
)


def _pairs(text: str) -> str:
    """Return "seven twenty" for 720 and "ten eighty" for 1080."""
    return f"{cardinal(int(text[:-2]))} {cardinal(int(text[-2:]))}" if text[-2:] != "00" else cardinal(int(text))


_ALL = (
    *codes.ADDRESSES,
    *codes.TELEPHONES,
    *words.ABBREVIATIONS,
    *calendar.DATES,
    *codes.VERSIONS,
    *calendar.DECADES,
    *quantities.RULES,
    *words.ROMAN,
    *_NUMBERS,
    *calendar.YEARS,
    *codes.NAMES,
    *words.SYMBOLS,
    *_PLAIN,
)


def english(text: str) -> str:
    """Return a text that may have inline code and markup in English words."""
    plain = without_markup(codes.code(text))
    return "".join(apply(_ALL, block) for block in _BLOCK.findall(plain))
