"""Defines the memory of a conversation: turns and sessions, without audio samples.

A finished user turn is remembered as a placeholder that gives the length of the audio. The audio itself is dropped,
so that each turn feeds the model only its own audio.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Self

from voxcli.errors import ConfigError

NAME_LENGTH = 100  # most characters in a session name


def audio_placeholder(samples: int, sample_rate: int) -> str:
    """Return the placeholder for an utterance of `samples` at `sample_rate` Hz."""
    return f"[User audio input - {samples} samples, {samples / sample_rate:.2f}s]"


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
    reply: str  # of an interrupted reply, the spoken text
    interrupted: bool = False
    prompt: str = ""  # text given with the audio

    @property
    def user_text(self) -> str:
        """The user's side as a model reads it: the placeholder, then the prompt."""
        return f"{self.user}\n{self.prompt}" if self.prompt else self.user

    @property
    def typed_text(self) -> str:
        """What the user typed, without the placeholder; empty for a turn that was spoken alone."""
        return self.prompt or ("" if self.user.startswith("[User audio input - ") else self.user)


@dataclass(frozen=True)
class Session:
    """Instructions and the ordered turns of one conversation."""

    name: str | None = None  # None: not stored
    instructions: str = ""
    turns: tuple[Turn, ...] = ()

    def add(self, turn: Turn) -> Self:
        """Return the session with one more turn."""
        return replace(self, turns=(*self.turns, turn))

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
