"""Money, percentages, measures, fractions and powers in English words."""

# ruff: noqa: RUF001 - dashes and the minus sign are meant

import re

from voxcli.core.speakable.markdown import rules
from voxcli.core.speakable.numbers import cardinal, is_one, number, ordinal

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?"
START = r"(?<![\w.,])"  # a number begins here
SIGN = r"(?:(?<!\w)[-\u2212])?"
RANGE = rf"{START}({SIGN}{NUMBER})(?:\s?(?:[-–—]|\bto\b)\s?({NUMBER}))?"

_CURRENCIES = {  # one, several, hundredths of it
    "$": ("dollar", "dollars", "cent"),
    "€": ("euro", "euros", "cent"),
    "£": ("pound", "pounds", "penny"),
    "¥": ("yen", "yen", ""),
    "₹": ("rupee", "rupees", "paisa"),
    "USD": ("dollar", "dollars", "cent"),
    "EUR": ("euro", "euros", "cent"),
    "GBP": ("pound", "pounds", "penny"),
    "CHF": ("franc", "francs", "centime"),
}
_PLURALS = {"penny": "pence", "paisa": "paise"}
_MULTIPLES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion"}
_MULTIPLE = r"(?:[ ]?(thousand|million|billion|trillion|[kKMBT]|mn|bn|m)\b)?"

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "m": "milli", "µ": "micro", "μ": "micro", "n": "nano"}
_BASES = {"Hz": "hertz", "W": "watts", "Wh": "watt hours", "V": "volts", "Pa": "pascals", "J": "joules"}
_UNITS = {  # plurals; a singular is the plural without its last letter, or stands in _SINGULARS
    **{"km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "nm": "nanometers"},
    **{"µm": "micrometers", "μm": "micrometers"},
    **{"ft": "feet", "yd": "yards", "mi": "miles", "mph": "miles per hour", "km²": "square kilometers"},
    **{"m²": "square meters", "cm²": "square centimeters", "m³": "cubic meters", "cm³": "cubic centimeters"},
    **{"m2": "square meters", "m3": "cubic meters", "km2": "square kilometers", "ha": "hectares"},
    **{"kg": "kilograms", "g": "grams", "mg": "milligrams", "µg": "micrograms", "lb": "pounds", "lbs": "pounds"},
    **{"oz": "ounces", "l": "liters", "L": "liters", "ml": "milliliters", "mL": "milliliters", "dl": "deciliters"},
    **{"cl": "centiliters", "h": "hours", "hr": "hours", "hrs": "hours", "min": "minutes", "mins": "minutes"},
    **{"s": "seconds", "sec": "seconds", "secs": "seconds", "ms": "milliseconds", "ns": "nanoseconds"},
    **{"µs": "microseconds", "μs": "microseconds"},
    **{"°C": "degrees Celsius", "°F": "degrees Fahrenheit", "℃": "degrees Celsius", "℉": "degrees Fahrenheit"},
    **{"°": "degrees", "%": "percent", "‰": "per mille", "kcal": "kilocalories", "cal": "calories"},
    **{"KB": "kilobytes", "kB": "kilobytes", "MB": "megabytes", "GB": "gigabytes", "TB": "terabytes"},
    **{"PB": "petabytes", "KiB": "kibibytes", "MiB": "mebibytes", "GiB": "gibibytes", "TiB": "tebibytes"},
    **{"kbit": "kilobits", "Mbit": "megabits", "Gbit": "gigabits", "dB": "decibels", "dBFS": "decibels full scale"},
    **{"kbps": "kilobits per second", "Mbps": "megabits per second", "Gbps": "gigabits per second"},
    **{"fps": "frames per second", "rpm": "revolutions per minute", "px": "pixels", "MP": "megapixels"},
    **{"mA": "milliamps", "mAh": "milliamp hours", "Ah": "amp hours", "Ω": "ohms", "bar": "bar", "hPa": "hectopascals"},
    **{
        "ppm": "parts per million",
        "hp": "horsepower",
        "bpm": "beats per minute",
        "tbsp": "tablespoons",
        "tsp": "teaspoons",
    },
    **{
        prefix + unit: _PREFIXES[prefix] + name for prefix in ("k", "M", "G", "T", "m") for unit, name in _BASES.items()
    },
    **_BASES,
}
_SINGULARS = {"feet": "foot", "degrees Celsius": "degree Celsius", "degrees Fahrenheit": "degree Fahrenheit"}
_UNCHANGED = {"percent", "per mille", "bar", "horsepower", "decibels full scale"}
_PER = {
    **{"h": "hour", "hr": "hour", "s": "second", "sec": "second", "min": "minute", "day": "day", "week": "week"},
    **{"month": "month", "mo": "month", "year": "year", "yr": "year", "kg": "kilogram", "g": "gram", "l": "liter"},
    **{"L": "liter", "ml": "milliliter", "dl": "deciliter", "m²": "square meter", "m³": "cubic meter"},
    **{"cm³": "cubic centimeter", "m2": "square meter", "m3": "cubic meter", "lb": "pound", "km": "kilometer"},
    **{"hour": "hour", "second": "second", "minute": "minute", "person": "person", "s²": "second squared"},
    **{"gal": "gallon", "GB": "gigabyte", "night": "night"},
}
_UNIT = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
_RATE = "|".join(re.escape(unit) for unit in sorted(_PER, key=len, reverse=True))

_GLYPHS = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅛": (1, 8), "⅜": (3, 8)}
_PARTS = {2: ("half", "halves"), 4: ("quarter", "quarters")}
_FRACTIONS = frozenset(range(2, 11)) | {16, 32}
_SCALES = {10, 20, 50, 100}  # "98/100" is a score


def interval(first: str, last: str | None) -> str:
    """Return "five", or "five to ten" where a range is meant."""
    return f"{number(first)} to {number(last)}" if last else number(first)


def _singular(unit: str) -> str:
    if unit in _UNCHANGED:
        return unit
    head, per, rate = unit.partition(" per ")
    return _SINGULARS.get(head, head.removesuffix("s") if head != "hertz" else head) + per + rate


def _measure(match: re.Match[str]) -> str:
    first, last, unit, rate = match.groups()
    name = _UNITS[unit]
    if is_one(first) and not last:
        name = _singular(name)
    return f"{interval(first, last)} {name}" + (f" per {_PER[rate]}" if rate else "")


def _adjective(match: re.Match[str]) -> str:
    """Say "a 5-km run" with the singular: "a five-kilometer run"."""
    return f"{number(match[1])} {_singular(_UNITS[match[2]])}"


def _bare_unit(match: re.Match[str]) -> str:
    """Say a rate that follows a word: "in km/h"."""
    return f"{_UNITS[match[1]]} per {_PER[match[2]]}"


def _money(sign: str, currency: str, first: str, last: str | None, multiple: str | None) -> str:
    one, several, hundredth = _CURRENCIES[currency]
    minus = "minus " if sign else ""
    if last or multiple:
        scale = f" {_MULTIPLES.get(multiple.casefold(), multiple)}" if multiple else ""
        return f"{minus}{interval(first, last)}{scale} {several}"
    whole, _, rest = first.partition(".")
    if len(rest) != 2 or not hundredth:
        return f"{minus}{number(first)} {one if is_one(first) else several}"
    parts = []
    if whole.strip("0"):
        parts.append(f"{number(whole)} {one if is_one(whole) else several}")
    if int(rest):
        coins = hundredth if int(rest) == 1 else _PLURALS.get(hundredth, f"{hundredth}s")
        parts.append(f"{cardinal(int(rest))} {coins}")
    return minus + (" and ".join(parts) or f"zero {several}")


def _money_before(match: re.Match[str]) -> str:
    sign, currency, first, last, multiple, rate = match.groups()
    return _money(sign, currency, first, last, multiple) + (f" per {_PER[rate]}" if rate else "")


def _money_after(match: re.Match[str]) -> str:
    first, last, multiple, currency = match.groups()
    return _money("", currency, first, last, multiple)


def fraction(above: int, below: int) -> str:
    """Return a fraction in words: "one half", "three quarters", "two thirds"."""
    one, several = _PARTS.get(below, (ordinal(below), f"{ordinal(below)}s"))
    return f"{cardinal(above)} {one if above == 1 else several}"


def _fraction(match: re.Match[str]) -> str:
    whole, above, below = match[1], int(match[2]), int(match[3])
    if not 0 < above < below or below not in _FRACTIONS or (below == 10 and above > 1):
        joint = " out of " if below in _SCALES and above < below else " "
        return (f"{number(whole)} " if whole else "") + f"{cardinal(above)}{joint}{cardinal(below)}"
    return f"{number(whole)} and {_mixed(above, below)}" if whole else fraction(above, below)


def _mixed(above: int, below: int) -> str:
    """Return the fraction after a whole number: "a half", "two thirds"."""
    words = fraction(above, below)
    return words.replace("one ", "a ", 1) if below in _PARTS else words


def _glyph(match: re.Match[str]) -> str:
    part = _GLYPHS[match[2]]
    return f"{number(match[1])} and {_mixed(*part)}" if match[1] else fraction(*part)


def _power(match: re.Match[str]) -> str:
    base = number(match[1]) if match[1][0].isdigit() else match[1]
    exponent = match[2].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    if exponent in {"2", "3"}:
        return f"{base} {'squared' if exponent == '2' else 'cubed'}"
    return f"{base} to the power of {number(exponent)}"


RULES = rules(
    (
        rf"(?<!\w)([-\u2212]?)(?:US)?([$€£¥₹])\s?({NUMBER})(?:[-–—][$€£]?({NUMBER}))?{_MULTIPLE}(?:/({_RATE})\b)?",
        _money_before,
    ),
    (rf"{START}({NUMBER})(?:[-–—]({NUMBER}))?{_MULTIPLE}\s?(€|£|(?:USD|EUR|GBP|CHF)\b)", _money_after),
    (rf"{START}({NUMBER})-(km|m|cm|mm|kg|g|ml|mi|ft|lb|oz|GB|MB|TB|W|kW|V|min|ms)\b", _adjective),
    (
        rf"{START}([0-9]{{1,2}})['′]\s?([0-9]{{1,2}})(?:\"|″|”|'{{1,2}})?(?![\w])",
        lambda m: f"{number(m[1])} foot {number(m[2])}",
    ),
    (rf"{START}([0-9]{{1,2}}) ?ft ([0-9]{{1,2}}) ?in\b", lambda m: f"{number(m[1])} feet {number(m[2])} inches"),
    (rf"{RANGE}[ \u00a0\u202f]?({_UNIT})(?:/({_RATE}))?(?![\w°%])(?!/\w)", _measure),
    (r"(?<![\w/])(km|m|MB|GB|Mbit|Gbit|mg|g|kg)/(h|s|l|L|m³|kg|dl)(?![\w/])", _bare_unit),
    (rf"(?:{START}([0-9]++)[ ]?)?([{''.join(_GLYPHS)}])", _glyph),
    (r"(?<![\w.,/])(?:([0-9]{1,4})[ ])?([0-9]{1,3})[/⁄]([0-9]{1,4})(?![\w/]|[.,][0-9])", _fraction),
    (rf"(?<![\w.,])({NUMBER}|[A-Za-z]{{1,2}})\^\(?(-?[0-9]{{1,4}})\)?(?![\w^])", _power),
    (rf"(?<![\w.,])({NUMBER}|[A-Za-z]{{1,2}})(⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,4}})(?![\w])", _power),
)
