"""Stores sessions in one SQLite file, one transaction per turn.

    folder/               0700
    └── sessions.db       0600, and so are the -wal and -shm files that SQLite puts beside it

Once `append` has returned, the turn is on disk and survives `kill -9` and loss of power. Several processes may use
one file at a time; writers wait for one another. A file that can't be read is never deleted or replaced. Turns that
can't be read, because another program changed them or a page of the file is damaged, are left out and reported.
"""

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from voxcli.core.database import (
    FILE_NAME,
    LOCK_SECONDS,
    MIGRATIONS,
    Migration,
    Purpose,
    is_damage,
    open_copy,
    open_file,
    store_errors,
    transaction,
)
from voxcli.core.session import Session, Turn

log = logging.getLogger(__name__)

Notice = Callable[[str], None]  # is told in one line what is left out

NAMED_TURNS = 5  # most unreadable turns of a session that are named
TYPED = """(typeof(number) = 'integer' AND number BETWEEN 1 AND 1000000000 AND typeof(created_at) = 'text'
    AND typeof(user) = 'text' AND typeof(prompt) = 'text' AND typeof(reply) = 'text' AND typeof(interrupted) = 'integer'
    AND typeof(engine) = 'text' AND typeof(model) = 'text' AND typeof(transcript) IN ('text', 'null'))"""
"""SQL condition: a turn has values of the types that `append` writes. SQLite itself checks none."""


@dataclass(frozen=True)
class TurnDetails:
    """Details stored with a turn for people to read; they never enter a prompt."""

    engine: str = ""
    model: str = ""
    transcript: str | None = None  # None: the engine has none


@dataclass(frozen=True)
class StoredTurn:
    """A turn as it is stored."""

    number: int  # number in the session, from 1
    created_at: datetime  # UTC, when it was stored
    turn: Turn
    details: TurnDetails


@dataclass(frozen=True)
class StoredSession:
    """A stored session with its details; it has at least one turn."""

    name: str
    instructions: str
    turns: tuple[StoredTurn, ...]

    @property
    def session(self) -> Session:
        """The session as prompts need it."""
        return Session(self.name, self.instructions, tuple(stored.turn for stored in self.turns))


@dataclass(frozen=True)
class SessionSummary:
    """One line of a list of sessions."""

    name: str
    turns: int
    started: datetime  # UTC, when the first turn was stored
    last: datetime  # UTC, when the newest turn was stored


class Store:
    """The sessions in one folder. It is opened, used and closed on one thread.

    Every method raises `StoreError` if the file can't be read or written.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, purpose: Purpose = "written", notice: Notice = log.warning
    ) -> None:
        self.path = path
        self._connection = connection
        self._purpose: Purpose = purpose
        self._notice = notice
        connection.text_factory = _text

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        migrations: Sequence[Migration] = MIGRATIONS,
        lock_seconds: float = LOCK_SECONDS,
        notice: Notice = log.warning,
    ) -> Self:
        """Open the sessions in `folder`; create missing files and upgrade an old schema.

        Args:
            notice: told of turns that can't be read.

        Raises:
            StoreError: the folder can't be written, or the file is damaged, not voxcli's or from a newer voxcli.
        """
        path = folder / FILE_NAME
        return cls(path, open_file(path, migrations, lock_seconds), notice=notice)

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        migrations: Sequence[Migration] = MIGRATIONS,
        lock_seconds: float = LOCK_SECONDS,
        notice: Notice = log.warning,
    ) -> Self:
        """Return a copy in memory of the sessions in `folder`; nothing is created or changed on disk.

        Raises:
            StoreError: the file can't be read, is damaged, not voxcli's or from a newer voxcli.
        """
        path = folder / FILE_NAME
        return cls(path, open_copy(path, migrations, lock_seconds), "read", notice)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, name: str, turn: Turn, details: TurnDetails | None = None, *, instructions: str = "") -> int:
        """Add a turn to a session and return its number, from 1; it is on disk when this returns.

        Args:
            name: as `voxcli.core.session.session_name` returns it; a new session is created.
            details: stored with the turn.
            instructions: stored with a new session; those of an existing one stay as they are.
        """
        details = details or TurnDetails()
        texts = [_storable(text) for text in (turn.user, turn.prompt, turn.reply, details.engine, details.model)]
        transcript = None if details.transcript is None else _storable(details.transcript)
        execute = self._connection.execute
        with store_errors(self.path, self._purpose), transaction(self._connection):
            execute(
                "INSERT OR IGNORE INTO sessions (name, instructions) VALUES (?, ?)", (name, _storable(instructions))
            )
            ((session_id, number),) = execute(
                """SELECT id, 1 + coalesce(max(number), 0) FROM sessions
                LEFT JOIN turns ON session_id = id AND number BETWEEN 1 AND 1000000000 WHERE name = ? GROUP BY id""",
                (name,),
            )
            # The clock is read under the lock, so that times are in the order of the numbers.
            values = (session_id, number, _now(), *texts, turn.interrupted, transcript)
            execute(
                """INSERT INTO turns (session_id, number, created_at, user, prompt, reply, engine, model,
                    interrupted, transcript) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                values,
            )
        return int(number)

    def session(self, name: str) -> Session | None:
        """Return a session as prompts need it; None if there is none of that name."""
        stored = self.stored(name)
        return stored.session if stored else None

    def stored(self, name: str) -> StoredSession | None:
        """Return a session with its details; None if there is none of that name."""
        with store_errors(self.path, self._purpose):
            found = self._connection.execute("SELECT id, instructions FROM sessions WHERE name = ?", (name,)).fetchall()
            if not found:
                return None
            ((session_id, instructions),) = found
            rows = self._connection.execute(
                f"""SELECT {TYPED}, number, created_at, user, reply, interrupted, prompt, engine, model, transcript
                FROM turns WHERE session_id = ? ORDER BY number""",  # noqa: S608 - a constant
                (session_id,),
            ).fetchall()
        if not isinstance(instructions, str):
            self._notice(f"the instructions of session {name!r} can't be read")
            instructions = ""
        turns = {number: _stored_turn(number, *row) if typed else None for typed, number, *row in rows}
        self._report_unreadable(name, turns)
        return StoredSession(name, instructions, tuple(turn for turn in turns.values() if turn)) if rows else None

    def summaries(self) -> list[SessionSummary]:
        """Return all sessions, most recently used first. One that can't be read is left out."""
        with store_errors(self.path, self._purpose):
            names = self._connection.execute("SELECT id, name FROM sessions ORDER BY name").fetchall()
            found = [summary for row in names if (summary := self._summary(*row))]
        return sorted(found, key=lambda summary: summary.last, reverse=True)

    def _summary(self, session_id: int, name: Any) -> SessionSummary | None:
        """Return one session of the list; None if it has no turn that can be read."""
        try:
            rows = self._connection.execute(
                f"SELECT {TYPED}, number, created_at FROM turns WHERE session_id = ?",  # noqa: S608 - a constant
                (session_id,),
            ).fetchall()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._notice(f"session {name!r} is left out, because it can't be read: {error}")
            return None
        if not isinstance(name, str):
            self._notice(f"session number {session_id} is left out, because its name can't be read")
            return None
        times = {number: _time(created_at) if typed else None for typed, number, created_at in rows}
        self._report_unreadable(name, times)
        readable = [time for time in times.values() if time]
        return SessionSummary(name, len(readable), min(readable), max(readable)) if readable else None

    def _report_unreadable(self, name: str, turns: Mapping[Any, object]) -> None:
        """Name the turns that are None in `turns`, which has their numbers as keys."""
        numbers = [number for number, turn in turns.items() if turn is None]
        if numbers:
            named = ", ".join(map(str, numbers[:NAMED_TURNS]))
            more = f" and {len(numbers) - NAMED_TURNS} more" if len(numbers) > NAMED_TURNS else ""
            self._notice(f"left out of session {name!r}, because it can't be read: turn {named}{more}")

    def delete(self, name: str) -> bool:
        """Delete a session and overwrite its text; return whether there was one of that name."""
        with store_errors(self.path, self._purpose):
            execute = self._connection.execute
            with transaction(self._connection):
                execute("DELETE FROM turns WHERE session_id IN (SELECT id FROM sessions WHERE name = ?)", (name,))
                found = execute("DELETE FROM sessions WHERE name = ?", (name,)).rowcount > 0
            # The write-ahead log still holds the text. SQLite empties it later if other processes are reading.
            execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return found


def _stored_turn(
    number: int,
    created_at: str,
    user: str,
    reply: str,
    interrupted: int,
    prompt: str,
    engine: str,
    model: str,
    transcript: str | None,
) -> StoredTurn | None:
    """Return a turn from its columns; None if its time can't be read."""
    time = _time(created_at)
    turn = Turn(user, reply, bool(interrupted), prompt)
    return StoredTurn(number, time, turn, TurnDetails(engine, model, transcript)) if time else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _storable(text: str) -> str:
    """Return text without lone surrogates, which command-line arguments can hold and UTF-8 can't encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(data: bytes) -> str:
    """Return text from the file; another program may have written bytes that are not UTF-8."""
    return data.decode("utf-8", "replace")


def _time(text: str) -> datetime | None:
    """Return a stored time; None if it is none, or in a year at either end, which local time may lack."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo and datetime.min.year < time.year < datetime.max.year else None
