"""Fills names in braces in instructions: `{date}`, `{user}` and others. `{{` and `}}` are literal braces."""

import getpass
import locale
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from voxcli.config.languages import LANGUAGE_NAMES
from voxcli.errors import ConfigError

PART = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}", re.ASCII)  # Other braces, such as those of JSON, are literal, too.
USER_CHARACTERS = 100  # longest name of a user
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
BUILTIN_NAMES = ("date", "time", "language", "locale", "user")
TIMED_NAMES = frozenset({"date", "time"})  # What they stand for changes from run to run.


@dataclass(frozen=True)
class Moment:
    """What the built-in names stand for when a session begins."""

    date: str  # "Tuesday, 1 December 2026"
    time: str  # "09:33"
    locale: str  # "en_US"
    user: str

    @classmethod
    def now(cls, environ: Mapping[str, str] = os.environ) -> "Moment":
        """Return those of this moment, machine and user."""
        now = datetime.now().astimezone()
        date = f"{DAYS[now.weekday()]}, {now.day} {MONTHS[now.month - 1]} {now.year}"
        return cls(date, f"{now:%H:%M}", _locale(environ), _user())

    def names(self, language: str) -> dict[str, str]:
        """Return what each built-in name stands for. `language` is the setting: a code, or "auto"."""
        spoken = LANGUAGE_NAMES.get(language, "the language that the user speaks")
        return {**vars(self), "language": spoken}


def filled(template: str, names: Mapping[str, str]) -> str:
    """Return a template with its names replaced by what they stand for.

    Raises:
        ConfigError: it has a name that nothing is known of.
    """

    def value(part: re.Match[str]) -> str:
        name = part[1]
        if name is None:
            return part[0][0]
        if name not in names:
            nearest = get_close_matches(name, sorted(names), 1, cutoff=0.0)[0]
            raise ConfigError(
                f"unknown name {{{name}}} in the instructions",
                hint=f"did you mean {{{nearest}}}? {{{{{name}}}}} is the word in braces",
            )
        return names[name]

    return PART.sub(value, template)


def names_in(template: str) -> set[str]:
    """Return the names in a template."""
    return {part[1] for part in PART.finditer(template) if part[1]}


def is_filled_from(text: str, template: str) -> bool:
    """Return whether a text can be a template with its names filled in, with whatever values."""
    literals, end = [""], 0
    for part in PART.finditer(template):
        literals[-1] += template[end : part.start()]
        if part[1] is None:
            literals[-1] += part[0][0]
        else:
            literals.append("")
        end = part.end()
    literals[-1] += template[end:]
    if len(literals) == 1:
        return text == literals[0]
    first, *between, last = literals
    if not (text.startswith(first) and text.endswith(last) and len(text) >= len(first) + len(last)):
        return False
    place = len(first)
    for literal in between:
        place = text.find(literal, place, len(text) - len(last))
        if place < 0:
            return False
        place += len(literal)
    return True


def _locale(environ: Mapping[str, str]) -> str:
    named = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    code = re.match(r"[A-Za-z]{2,3}([_-][A-Za-z]{2,4})?(?![A-Za-z])", named or locale.getlocale()[0] or "")
    return code[0] if code else "en_US"


def _user() -> str:
    """Return the full name of the user where the system knows it, or else the login name."""
    name = ""
    try:
        name = getpass.getuser()
        if os.name == "posix":
            import pwd

            name = pwd.getpwuid(os.getuid()).pw_gecos.partition(",")[0].strip() or name
    except (OSError, KeyError, ImportError):  # a user that the system has no entry for, as in some containers
        pass
    shown = "".join(char for char in name if char.isprintable())[:USER_CHARACTERS]
    return shown or "the user"
