"""Defines what the store gives: sessions and turns with their details, lines of a list, and search hits."""

from dataclasses import dataclass, replace
from datetime import datetime

from voxcli.core.session import Session, Turn
from voxcli.core.tools import results_from_json


@dataclass(frozen=True)
class StageTimes:
    """The latency of a turn, in ms from the user's last voiced sample; None for a stage that it did not reach."""

    endpoint_ms: float | None = None  # Time until the end of turn was decided.
    first_token_ms: float | None = None
    first_audio_ms: float | None = None  # Time until the loudspeaker got the first clip.


@dataclass(frozen=True)
class TurnDetails:
    """Details stored with a turn for people to read; they never enter a prompt."""

    engine: str = ""
    model: str = ""
    transcript: str | None = None  # None: the engine has none
    latency: StageTimes = StageTimes()  # No stages, if the turn was not spoken in a chat.


@dataclass(frozen=True)
class StoredTurn:
    """A turn as it is stored."""

    number: int  # number in the session, from 1
    created_at: datetime  # UTC, when it was stored
    turn: Turn
    details: TurnDetails

    @property
    def texts(self) -> tuple[str, ...]:
        """What was asked and replied, in words; an empty text where there are none."""
        return self.details.transcript or "", self.turn.typed_text, self.turn.reply


@dataclass(frozen=True)
class StoredSession:
    """A stored session with its details; it has at least one turn."""

    name: str
    instructions: str
    turns: tuple[StoredTurn, ...]
    persona: str | None = None  # the persona that the instructions and the voice come from

    @property
    def session(self) -> Session:
        """The session as prompts need it."""
        return Session(self.name, self.instructions, tuple(stored.turn for stored in self.turns))

    def last(self, count: int) -> "StoredSession":
        """Return the session with only its newest `count` turns."""
        return replace(self, turns=self.turns[-count:])


@dataclass(frozen=True)
class SessionSummary:
    """One line of a list of sessions."""

    name: str
    turns: int
    started: datetime  # UTC, when the first turn was stored
    last: datetime  # UTC, when the newest turn was stored
    texts: tuple[str, ...]  # Texts of the first turn, as in `StoredTurn`.


@dataclass(frozen=True)
class SpokenTurn:
    """The latency of a turn that was spoken in a chat, and when it was stored (UTC)."""

    created_at: datetime
    latency: StageTimes


@dataclass(frozen=True)
class SearchHit:
    """A turn that was found, and the name of its session."""

    session: str
    stored: StoredTurn


def stored_turn(
    number: int,
    created_at: str,
    user: str,
    reply: str,
    interrupted: int,
    prompt: str,
    understood: str,
    tools: str,
    engine: str,
    model: str,
    transcript: str | None,
    *stages: float | None,
) -> StoredTurn | None:
    """Return a turn from the columns of `TURN`; None if its time can't be read."""
    time = parsed_time(created_at)
    turn = Turn(user, reply, bool(interrupted), prompt, understood, results_from_json(tools))
    return StoredTurn(number, time, turn, TurnDetails(engine, model, transcript, StageTimes(*stages))) if time else None


def parsed_time(text: str) -> datetime | None:
    """Return a stored time; None if it is none, or in a year at either end, which local time may lack."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo and datetime.min.year < time.year < datetime.max.year else None
