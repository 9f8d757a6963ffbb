"""What is remembered of a conversation: pure values, no files, no models, no audio samples.

A finished user turn is remembered as a placeholder that gives the length of the audio; the audio
itself is dropped, so that a turn feeds the model no sound but its own.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Self

from voxcli.errors import ConfigError

NAME_LENGTH = 100  # characters of a session's name, at most


def audio_placeholder(samples: int, sample_rate: int) -> str:
    """Return what stands for spoken audio in memory; `samples` is counted at `sample_rate` Hz."""
    return f"[User audio input - {samples} samples, {samples / sample_rate:.2f}s]"


def session_name(text: str) -> str:
    """Return a name that a user gave, as it is stored: composed (NFC), no spaces around it.

    Raises:
        ConfigError: it is empty, too long, or has a slash or a control character in it.
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
    reply: str  # what was heard of it
    interrupted: bool = False
    prompt: str = ""  # text that was given beside the audio

    @property
    def user_text(self) -> str:
        """The user's side as a model reads it: the placeholder, then the text beside it."""
        return f"{self.user}\n{self.prompt}" if self.prompt else self.user


@dataclass(frozen=True)
class Session:
    """Instructions and the ordered turns of one conversation."""

    name: str | None = None  # None: kept in memory only
    instructions: str = ""
    turns: tuple[Turn, ...] = ()

    def add(self, turn: Turn) -> Self:
        """Return the session with one more turn."""
        return replace(self, turns=(*self.turns, turn))

    def last(self, count: int) -> Self:
        """Return the session with its newest `count` turns alone."""
        return replace(self, turns=self.turns[-count:] if count else ())

    def within(self, budget: int, cost: Callable[[Turn], int]) -> Self:
        """Return the session with as many of its newest turns as fit.

        Args:
            budget: what the turns may cost together, in the unit of `cost` (tokens).
            cost: what one turn costs in a prompt.

        Whole oldest turns leave; the instructions never do. `cost` is asked no further back than
        the first turn that does not fit, so a long memory costs no more than a short one.
        """
        costs = accumulate(cost(turn) for turn in reversed(self.turns))
        return self.last(sum(1 for _ in takewhile(lambda total: total <= budget, costs)))
