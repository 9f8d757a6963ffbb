"""Defines the memory of a conversation: turns and sessions, without audio samples.

A finished user turn is remembered as a placeholder that gives the length of the audio. The audio itself is dropped,
so that each turn feeds the model only its own audio.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import accumulate, takewhile
from typing import Self

from voxcli.core.tools import ToolResult, ToolSpec
from voxcli.errors import ConfigError

NAME_LENGTH = 100  # most characters in a session name
AUTOMATIC_WORDS_LENGTH = 20  # most characters of the first words in an automatic name

_PLACEHOLDER = re.compile(r"\[User audio input - \d+ samples, (\d+\.\d\d)s\]")


def audio_placeholder(samples: int, sample_rate: int) -> str:
    """Return the placeholder for an utterance of `samples` at `sample_rate` Hz."""
    return f"[User audio input - {samples} samples, {samples / sample_rate:.2f}s]"


def automatic_name(day: date, texts: Sequence[str]) -> str:
    """Return a name for a session that nobody has named: the day and the first words of the first text that has any."""
    words = next(filter(None, (first_words(text, AUTOMATIC_WORDS_LENGTH) for text in texts)), "chat")
    return unicodedata.normalize("NFC", f"{day.isoformat()} {words.lower()}")


def first_words(text: str, length: int) -> str:
    """Return the words that a text begins with, as far as they fit into `length` characters; at least one, if any.

    Slashes, control characters and punctuation around words are left out.
    """
    kept = ("" if unicodedata.category(char)[0] == "C" and not char.isspace() else char for char in text)
    words = re.split(r"[\s/\\]+", unicodedata.normalize("NFC", "".join(kept)))
    line = ""
    for word in filter(None, (word.strip(".,;:!?¿¡\"'()[]{}<>“”„«»…。、！？-") for word in words)):  # noqa: RUF001 - Chinese
        if line and len(line) + 1 + len(word) > length:
            break
        line = f"{line} {word}".lstrip()
    return line[:length]


def numbered_name(name: str, number: int) -> str:
    """Return a name with a number after it, shortened so that both fit into a session name; the name itself for 1."""
    end = f" {number}" if number > 1 else ""
    return name[: NAME_LENGTH - len(end)] + end


def session_name(text: str) -> str:
    """Return a session name in the form in which it is stored: NFC, without spaces around it.

    Raises:
        ConfigError: the name is empty, too long, or contains a slash or a control character.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name or len(name) > NAME_LENGTH:
        raise ConfigError(f"a session's name has 1 to {NAME_LENGTH} characters, not {len(name)}")
    for char in name:
        if char in "/\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise ConfigError(
                f"a session's name can't have {char!r} in it",
                hint="use letters, digits, spaces, hyphens; no slashes and no control characters",
            )
    return name


@dataclass(frozen=True)
class Turn:
    """A finished exchange, as later prompts and the store see it."""

    user: str  # the placeholder
    reply: str  # The spoken text, if the reply was interrupted.
    interrupted: bool = False
    prompt: str = ""  # text given with the audio
    understood: str = ""  # what the model understood of the audio, where later prompts may show it
    tools: tuple[ToolResult, ...] = ()  # calls that the model made

    @property
    def user_text(self) -> str:
        """The user's side as a model reads it: the placeholder, what was understood, the prompt, notes of tools."""
        notes = [result.note for result in self.tools]
        return "\n".join([self.user, *filter(None, (self.understood, self.prompt)), *notes])

    @property
    def spoken_seconds(self) -> float | None:
        """Length of the utterance in seconds; None if it was typed."""
        found = _PLACEHOLDER.fullmatch(self.user)
        return float(found[1]) if found else None

    @property
    def typed_text(self) -> str:
        """What the user typed: the whole utterance, or the text given with the audio."""
        return self.prompt if self.spoken_seconds is not None else self.user


@dataclass(frozen=True)
class Session:
    """Instructions and the ordered turns of one conversation, and the tools that its next turn may call."""

    name: str | None = None  # None: not stored
    instructions: str = ""
    turns: tuple[Turn, ...] = ()
    tools: tuple[ToolSpec, ...] = ()  # not stored

    @property
    def last_reply(self) -> str:
        """The newest reply that is not empty; "" if there is none."""
        return next((turn.reply for turn in reversed(self.turns) if turn.reply), "")

    def add(self, turn: Turn) -> Self:
        """Return the session with one more turn."""
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Self:
        """Return the session without its newest turn."""
        return replace(self, turns=self.turns[:-1])

    def last(self, count: int) -> Self:
        """Return the session with only its newest `count` turns."""
        return replace(self, turns=self.turns[-count:] if count else ())

    def within(self, budget: int, cost: Callable[[Turn], int]) -> Self:
        """Return the session with as many of its newest turns as fit.

        Args:
            budget: most tokens that the turns may take together.
            cost: returns the tokens that one turn takes in a prompt.

        The oldest turns are dropped whole; the instructions stay. `cost` is called from the newest turn back to the
        first that does not fit, so that a long session takes no more time than a short one.
        """
        costs = accumulate(cost(turn) for turn in reversed(self.turns))
        return self.last(sum(1 for _ in takewhile(lambda total: total <= budget, costs)))
