"""Tells whether a reply gives an accepted answer, without a judge.

Both are compared as words: lower case, without accents, punctuation, markup, articles and the possessive 's; numbers in
words become digits ("twenty-one" is "21", "nineteen sixty-nine" is "1969", "1,000" is "1000"). What counts depends on
the kind of the question:

    words    an accepted answer stands in the reply, word by word, and no "not" stands before it
    number   the first number after the last "answer"; without that word, the last number of the reply
    choice   yes or no, valid or invalid, true or false: the first one after the last "answer"; else the first word of
             the reply, if it is one; else the last one. "Not valid" is invalid
    letter   of an option: after "answer" or "option", in parentheses, or at the beginning of the reply

A reply of the last three kinds in which no such answer is found is unclear, and counts as wrong.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

Kind = Literal["words", "number", "choice", "letter"]

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
UNITS += ["seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {word: number for number, word in enumerate(UNITS)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
ARTICLES = {"a", "an", "the"}
NEGATIONS = {"not", "never", "isn't", "aren't", "wasn't", "doesn't", "don't"}
CHOICES = (  # labels, each with the words that say it
    {"yes": "yes", "yeah": "yes", "yep": "yes", "no": "no", "nope": "no"},
    {"valid": "valid", "invalid": "invalid"},
    {"true": "true", "false": "false"},
)
OPPOSITES = {"valid": "invalid", "invalid": "valid", "true": "false", "false": "true"}
MARKER = "answer"
NEAR = 2  # words between a negation and what it negates, as in "not deductively valid"
WORD = re.compile(r"\d[\d,]*(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*")
OPTION = re.compile(r"\s*\(?([A-J])\)?\s*")  # an accepted answer: "B", and "(B)" in VoiceBench's `bbh`
# An option's letter is a capital, or a small one that a sign or the end follows: "a" is an article.
_LETTER = r"\(?(?:(?-i:([A-J]))\b|([a-j])(?=[).:,]|\s*$))"
MARKED_LETTER = re.compile(
    rf"\b(?:answer|option|choice)(?:\s+(?:is|would be|should be|option|choice))*[\s:*\"']*{_LETTER}", re.I
)
FIRST_LETTER = re.compile(r"[\s*\"(]*([A-Ja-j])(?:[).:,*]|\s*$)")
BRACKETED_LETTER = re.compile(r"\(([A-Ja-j])\)")


def kind_of(answers: Sequence[str]) -> Kind:
    """Return the kind of a question by its accepted answers."""
    normalized = [words(answer) for answer in answers]
    if len(normalized) == 1 and len(normalized[0]) == 1:
        (word,) = normalized[0]
        if any(word in choice for choice in CHOICES):
            return "choice"
        if word.isdigit():
            return "number"
    return "letter" if all(OPTION.fullmatch(answer) for answer in answers) else "words"


def is_right(reply: str, answers: Sequence[str], kind: Kind) -> bool | None:
    """Return whether a reply gives an accepted answer; None if it is unclear what it answers."""
    if kind == "letter":
        found = _letter(reply)
        return None if found is None else found in {option[1] for option in map(OPTION.fullmatch, answers) if option}
    said, accepted = words(reply), [words(answer) for answer in answers]
    if kind == "words":
        return any(_contains(said, answer) for answer in accepted if answer)
    given = _number(said) if kind == "number" else _choice(said, accepted)
    return None if given is None else [given] in accepted


def words(text: str) -> list[str]:
    """Return the words of a text in the form in which they are compared."""
    decomposed = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).casefold()
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    found = (word.removesuffix("'s") for word in WORD.findall(plain))
    return [word for word in _in_digits(list(found)) if word not in ARTICLES]


def _in_digits(found: Sequence[str]) -> list[str]:
    """Return words with each number among them in digits."""
    result: list[str] = []
    position = 0
    while position < len(found):
        if found[position] in SMALL or found[position] in SCALES:
            number, position = _spelled(found, position)
            result.append(str(number))
            continue
        word = found[position]
        result.append(_plain_number(word) if word[0].isdigit() else word)
        position += 1
    return result


def _plain_number(digits: str) -> str:
    number = digits.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number.lstrip("0") or "0"


def _spelled(found: Sequence[str], position: int) -> tuple[int, int]:
    """Return the number whose words begin at a position, and the position after it."""
    total, part = 0, SMALL.get(found[position], 1)
    position += found[position] in SMALL
    while position < len(found):
        word = found[position]
        following = found[position + 1] if position + 1 < len(found) else ""
        if word in SCALES:
            part = max(1, part) * SCALES[word]
            if SCALES[word] > 100:
                total, part = total + part, 0
        elif word == "and" and (part >= 100 or total) and following in SMALL and found[position - 1] in SCALES:
            pass
        elif word in SMALL and _continues(part, total, SMALL[word], previous=found[position - 1]):
            is_year = 10 <= part <= 20 and SMALL[word] >= 10
            part = part * 100 + SMALL[word] if is_year else part + SMALL[word]
        else:
            break
        position += 1
    return total + part, position


def _continues(part: int, total: int, value: int, *, previous: str) -> bool:
    """Return whether a word of this value goes on with a number, as in "twenty one" and "nineteen forty"."""
    if previous in SCALES or previous == "and":
        return True
    if previous in TENS and value < 10:
        return value > 0
    return not total and 10 <= part <= 20 and value >= 10


def _contains(said: Sequence[str], answer: Sequence[str]) -> bool:
    """Return whether the words of an answer stand in a reply, somewhere without a "not" before them."""
    size = len(answer)
    places = [place for place in range(len(said) - size + 1) if said[place : place + size] == answer]
    return any(not (place and said[place - 1] in NEGATIONS) for place in places)


def _number(said: Sequence[str]) -> str | None:
    marked = next((word for word in _after_marker(said) if word[0].isdigit()), None)
    return marked or next((word for word in reversed(said) if word[0].isdigit()), None)


def _choice(said: Sequence[str], accepted: Sequence[Sequence[str]]) -> str | None:
    choice = next(choice for choice in CHOICES if accepted[0][0] in choice)
    start = len(said) - len(_after_marker(said))
    marked = next((place for place in range(start, len(said)) if said[place] in choice), None) if start else None
    if marked is None and said and said[0] in choice:
        marked = 0
    if marked is None:
        marked = next((place for place in reversed(range(len(said))) if said[place] in choice), None)
    if marked is None:
        return None
    label = choice[said[marked]]
    is_negated = bool(NEGATIONS & set(said[max(0, marked - NEAR) : marked]))
    return OPPOSITES.get(label, label) if is_negated else label


def _after_marker(said: Sequence[str]) -> Sequence[str]:
    """Return the words after the last "answer"; none if it does not occur."""
    places = [place for place, word in enumerate(said) if word == MARKER]
    return said[places[-1] + 1 :] if places else ()


def _letter(reply: str) -> str | None:
    if marked := list(MARKED_LETTER.finditer(reply)):
        return (marked[-1][1] or marked[-1][2]).upper()
    if first := FIRST_LETTER.match(reply):
        return first[1].upper()
    bracketed = {letter.upper() for letter in BRACKETED_LETTER.findall(reply)}
    return bracketed.pop() if len(bracketed) == 1 else None
