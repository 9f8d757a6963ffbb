"""English number words: cardinals, ordinals, years, decimals and digits one by one."""

import re

_SMALL = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
""".split()  # noqa: SIM905
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_GROUPS = ("", " thousand", " million", " billion", " trillion")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
MOST_DIGITS = 3 * len(_GROUPS)  # longer numbers are read digit by digit, as a person gives up counting, too


def cardinal(number: int) -> str:
    """Return a number from 0 to 10**15 - 1 in words, the American way: "one hundred five"."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{_SMALL[number // 100]} hundred" + (f" {cardinal(number % 100)}" if number % 100 else "")
    words, group = [], 0
    while number:
        number, rest = divmod(number, 1000)
        if rest:
            words.append(cardinal(rest) + _GROUPS[group])
        group += 1
    return " ".join(reversed(words))


def ordinal(number: int) -> str:
    """Return the ordinal of a number: "twenty-first"."""
    words = cardinal(number)
    last = re.split(r"[ -]", words)[-1]
    stem = words[: len(words) - len(last)]
    return stem + _ORDINALS.get(last, f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")


def year(number: int) -> str:
    """Return a year from 1000 to 9999: "nineteen oh five", "two thousand six", "twenty twenty-six"."""
    century, rest = divmod(number, 100)
    if century % 10 == 0 and rest < 10:
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def decade(number: int) -> str:
    """Return a decade such as 80 or 1990 in the plural: "eighties", "nineteen nineties"."""
    words = year(number) if number > 999 else cardinal(number)
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def digits(text: str) -> str:
    """Return the digits of a text one by one; other characters are ignored."""
    return " ".join(_SMALL[int(char)] for char in text if char in "0123456789")


def number(text: str) -> str:
    """Return a number as it is written, such as "1,234", "-2.5" or "007", in words."""
    text = text.replace(",", "")
    if text[:1] in {"-", "\u2212"}:
        return f"minus {number(text[1:])}"
    whole, point, fraction = text.partition(".")
    if point:
        return f"{number(whole or '0')} point {digits(fraction)}"
    if len(whole) > MOST_DIGITS or (whole[0] == "0" and len(whole) > 1):
        return digits(whole)
    return cardinal(int(whole))


def is_one(text: str) -> bool:
    """Return whether the word after a number is singular."""
    return text.lstrip("-\u2212") == "1"
