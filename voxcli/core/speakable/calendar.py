"""Dates, times, years and decades in English words."""

# ruff: noqa: RUF001 - dashes are meant

import re

from voxcli.core.speakable.markdown import rules
from voxcli.core.speakable.numbers import cardinal, decade, number, ordinal, year

_MONTHS = """
    January February March April May June July August September October November December
""".split()  # noqa: SIM905
_SHORT = {name[:3]: name for name in _MONTHS} | {"Sept": "September"}
_MONTH = rf"(?:({'|'.join(_MONTHS)})|({'|'.join(_SHORT)})\.?)"
_DAY = r"(0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?(?![0-9A-Za-z:]|[.,][0-9])"
_YEAR = r"([1-9][0-9]{3})(?![0-9A-Za-z]|[.,][0-9])"
_HALF = r"(?:[ ]?([aApP])(?:\.[mM]\.|[mM]\b))"
_CLOCK = r"([01]?[0-9]|2[0-4]):([0-5][0-9])"


def _month(full: str | None, short: str | None) -> str:
    return full or _SHORT[short or ""]


def _month_first(match: re.Match[str]) -> str:
    full, short, day, last, written_year = match.groups()
    days = ordinal(int(day)) + (f" to {ordinal(int(last))}" if last else "")
    return f"{_month(full, short)} {days}" + (f", {year(int(written_year))}" if written_year else "")


def _day_first(match: re.Match[str]) -> str:
    the, day, full, short, written_year = match.groups()
    spoken = f"{the or 'the '}{ordinal(int(day))} of {_month(full, short)}"
    return spoken + (f", {year(int(written_year))}" if written_year else "")


def _month_and_year(match: re.Match[str]) -> str:
    return f"{_month(match[1], match[2])} {year(int(match[3]))}"


def _date(written_year: int, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31 and written_year > 999):
        return None
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {year(written_year)}"


def _iso(match: re.Match[str]) -> str:
    date = _date(int(match[1]), int(match[2]), int(match[3]))
    return (date + (" at " if match[4] else "")) if date else match[0]


def _slashes(match: re.Match[str]) -> str:
    """Read 3/14/2024 the American way; the day comes first where the first number can't be a month."""
    first, second, written_year = int(match[1]), int(match[2]), int(match[3])
    date = _date(written_year, second, first) if first > 12 else _date(written_year, first, second)
    return date or match[0]


def _dots(match: re.Match[str]) -> str:
    return _date(int(match[3]), int(match[2]), int(match[1])) or match[0]


def _half(letter: str | None) -> str:
    return f" {letter.lower()}.m." if letter else ""


def _minutes(minutes: str) -> str:
    return f"oh {cardinal(int(minutes))}" if minutes[0] == "0" else cardinal(int(minutes))


def _time(hour: str, minutes: str, seconds: str | None, half: str | None) -> str:
    if minutes == "00" and not seconds:
        if half:
            return cardinal(int(hour)) + _half(half)
        if int(hour) in {0, 24}:
            return "midnight"
        return f"{cardinal(int(hour))} o'clock" if int(hour) <= 12 else f"{cardinal(int(hour))} hundred"
    spoken = f"{cardinal(int(hour))} {_minutes(minutes)}"
    if seconds:
        spoken += f" and {cardinal(int(seconds))} second{'s' * (int(seconds) != 1)}"
    return spoken + _half(half)


def _clock(match: re.Match[str]) -> str:
    return _time(match[1], match[2], match[3], match[4])


def _clock_range(match: re.Match[str]) -> str:
    first = _time(match[1], match[2], None, match[3])
    return f"{first} to {_time(match[4], match[5], None, match[6])}"


def _hours(match: re.Match[str]) -> str:
    """Say "9-11 a.m." and "5pm"."""
    first = f"{cardinal(int(match[1]))}{_half(match[2])} to " if match[1] else ""
    return f"{first}{cardinal(int(match[3]))}{_half(match[4])}"


def _years(match: re.Match[str]) -> str:
    first, last = match.groups()
    return f"{year(int(first))} to {year(int(last)) if len(last) == 4 else cardinal(int(last))}"


def _decade(match: re.Match[str]) -> str:
    return decade(int(match[1]))


DATES = rules(
    (rf"(?<![\w-]){_YEAR}-([01][0-9])-([0-3][0-9])([T ](?=[0-2]?[0-9]:))?(?![0-9-])", _iso),
    (r"(?<![\w/.])([0-3]?[0-9])/([0-3]?[0-9])/([1-9][0-9]{3})(?![\w/])", _slashes),
    (r"(?<![\w/.])([0-3]?[0-9])\.([01]?[0-9])\.([1-9][0-9]{3})(?![\w/])", _dots),
    (rf"(?<![\w.])([Tt]he )?{_DAY} (?:of )?{_MONTH}(?!\w)(?:,? {_YEAR})?", _day_first),
    (rf"(?<![\w.]){_MONTH} {_DAY}(?:[-–—]{_DAY})?(?:,? {_YEAR})?", _month_first),
    (rf"(?<![\w.]){_MONTH},? {_YEAR}", _month_and_year),
    (rf"(?<![\w:.]){_CLOCK}{_HALF}?\s?[-–—]\s?{_CLOCK}{_HALF}?", _clock_range),
    (rf"(?<![\w:.]){_CLOCK}(?::([0-5][0-9]))?(?![0-9:])(?:Z\b)?{_HALF}?", _clock),
    (rf"(?<![\w:.])(?:(1[0-2]|0?[1-9]){_HALF}?\s?[-–—]\s?)?(1[0-2]|0?[1-9]){_HALF}", _hours),
)
DECADES = rules((r"(?<!\w)['’]?(?<![.,])([12][0-9]{2}0|[2-9]0)['’]?s\b", _decade))
YEARS = rules(
    (r"(?<![\w.,])([12][0-9]{3})[-–—/]([12][0-9]{3}|[0-9]{2})(?![\w-]|[.,][0-9])", _years),
    (r"(?<!\w)['’]([0-9]{2})\b(?!['’])", lambda match: number(match[1])),
    # "1500 people" is a count, "the 1969 landing" is a year.
    (
        r"(?<![\w.,$-])(?:(?<=[Ii]n )|(?![0-9]{4} (?!was|is|has|as|its|this|always)[a-z]{2,20}s\b)"
        r"(?![0-9]{4} people\b))(1[1-9][0-9]{2}|20[0-9]{2})(?![\w-]|[.,][0-9])",
        lambda match: year(int(match[1])),
    ),
)
