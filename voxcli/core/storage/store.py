"""Stores sessions in one SQLite file, one transaction per turn.

    folder/               0700
    └── sessions.db       0600, and so are the -wal and -shm files that SQLite puts beside it

Once `append` has returned, the turn is on disk and survives `kill -9` and loss of power. Several processes may use
one file at a time; writers wait for one another. A file that can't be read is never deleted or replaced. Turns that
can't be read, because another program changed them or a page of the file is damaged, are left out and reported.
An undone turn stays in the file, where `redo` finds it, until the next turn of its session is stored.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from voxcli.core.session import Session, Turn, numbered_name
from voxcli.core.storage.database import (
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
from voxcli.core.storage.search import find
from voxcli.core.storage.stored import (
    SearchHit,
    SessionSummary,
    SpokenTurn,
    StageTimes,
    StoredSession,
    TurnDetails,
    parsed_time,
    stored_turn,
)

log = logging.getLogger(__name__)

Notice = Callable[[str], None]  # is told in one line what is left out

LAST_NUMBER = 1_000_000_000  # highest number of a turn
NAMED_TURNS = 5  # most unreadable turns of a session that are named
TYPED = """(typeof(number) = 'integer' AND number BETWEEN 1 AND 1000000000 AND typeof(created_at) = 'text'
    AND typeof(user) = 'text' AND typeof(prompt) = 'text' AND typeof(reply) = 'text' AND typeof(interrupted) = 'integer'
    AND typeof(engine) = 'text' AND typeof(model) = 'text' AND typeof(transcript) IN ('text', 'null')
    AND typeof(understood) = 'text' AND typeof(tools) = 'text'
    AND typeof(endpoint_ms) IN ('real', 'null') AND typeof(first_token_ms) IN ('real', 'null')
    AND typeof(first_audio_ms) IN ('real', 'null'))"""
"""SQL condition: a turn has values of the types that `append` writes. SQLite itself checks none."""

OF_NAME = "session_id IN (SELECT id FROM sessions WHERE name = ?)"
TURN = """number, created_at, user, reply, interrupted, prompt, understood, tools, engine, model, transcript,
    endpoint_ms, first_token_ms, first_audio_ms"""
KEPT = "undone IS NOT 1"  # SQL condition: a turn was not undone


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

        Args:
            notice: told of turns that can't be read.

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

    def append(
        self,
        name: str,
        turn: Turn,
        details: TurnDetails | None = None,
        *,
        instructions: str = "",
        persona: str | None = None,
    ) -> int:
        """Add a turn to a session and return its number, from 1; it is on disk when this returns.

        Undone turns of the session are deleted.

        Args:
            name: as `voxcli.core.session.session_name` returns it; a new session is created.
            details: stored with the turn.
            instructions: stored with a new session; those of an existing one stay as they are.
            persona: the same.
        """
        details = details or TurnDetails()
        latency = details.latency
        stages = latency.endpoint_ms, latency.first_token_ms, latency.first_audio_ms
        tools = json.dumps([result.as_record() for result in turn.tools], ensure_ascii=False)
        written = turn.user, turn.prompt, turn.reply, turn.understood, tools, details.engine, details.model
        texts = [_storable(text) for text in written]
        transcript = None if details.transcript is None else _storable(details.transcript)
        execute = self._connection.execute
        with store_errors(self.path, self._purpose), transaction(self._connection):
            execute(
                "INSERT OR IGNORE INTO sessions (name, instructions, persona) VALUES (?, ?, ?)",
                (name, _storable(instructions), persona),
            )
            execute(f"DELETE FROM turns WHERE {OF_NAME} AND undone IS 1", (name,))  # noqa: S608 - a constant
            ((session_id, number),) = execute(
                """SELECT id, 1 + coalesce(max(number), 0) FROM sessions
                LEFT JOIN turns ON session_id = id AND number BETWEEN 1 AND 1000000000 WHERE name = ? GROUP BY id""",
                (name,),
            )
            # The clock is read under the lock, so that times are in the order of the numbers.
            values = (session_id, number, _now(), *texts, turn.interrupted, transcript, *stages)
            execute(
                """INSERT INTO turns (session_id, number, created_at, user, prompt, reply, understood, tools,
                    engine, model, interrupted, transcript, endpoint_ms, first_token_ms, first_audio_ms)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                values,
            )
        return int(number)

    def fill_in(self, name: str, number: int, *, transcript: str, understood: str) -> None:
        """Add what was understood to a turn that is stored.

        Args:
            transcript: stored if the turn has none.
            understood: what later prompts show of it; empty for nothing.
        """
        values = _storable(transcript), _storable(understood), name, number
        with store_errors(self.path, self._purpose), transaction(self._connection):
            self._connection.execute(
                f"""UPDATE turns SET transcript = coalesce(transcript, ?), understood = ?
                WHERE {OF_NAME} AND number = ?""",  # noqa: S608 - a constant
                values,
            )

    def create(self, name: str, instructions: str, persona: str | None = None) -> str:
        """Create a session that nobody uses yet and return its name: `name`, or that with a number after it."""
        with store_errors(self.path, self._purpose), transaction(self._connection):
            free = self._free_name(name)
            values = free, _storable(instructions), persona
            self._connection.execute("INSERT INTO sessions (name, instructions, persona) VALUES (?, ?, ?)", values)
        return free

    def persona(self, name: str) -> str | None:
        """Return the persona of a stored session, "" if it has none; None if there is no session of that name."""
        with store_errors(self.path, self._purpose):
            found = self._connection.execute("SELECT persona FROM sessions WHERE name = ?", (name,)).fetchall()
        return (found[0][0] if isinstance(found[0][0], str) else "") if found else None

    def set_persona(self, name: str, persona: str | None, instructions: str) -> None:
        """Give a stored session another persona, and its instructions."""
        with store_errors(self.path, self._purpose), transaction(self._connection):
            self._connection.execute(
                "UPDATE sessions SET persona = ?, instructions = ? WHERE name = ?",
                (persona, _storable(instructions), name),
            )

    def fork(self, name: str, new: str, *, at: int | None = None) -> str:
        """Copy a session, its undone turns excepted, and return the name of the copy.

        Args:
            new: name of the copy; if there is one of that name, a number is added.
            at: number of the last turn to copy; None: all.
        """
        with store_errors(self.path, self._purpose), transaction(self._connection):
            free = self._free_name(new)
            execute = self._connection.execute
            execute(
                """INSERT INTO sessions (name, instructions, persona)
                SELECT ?, instructions, persona FROM sessions WHERE name = ?""",
                (free, name),
            )
            execute(
                f"""INSERT INTO turns (session_id, {TURN}) SELECT (SELECT id FROM sessions WHERE name = ?), {TURN}
                FROM turns WHERE {OF_NAME} AND {KEPT} AND number <= ?""",  # noqa: S608 - constants
                (free, name, LAST_NUMBER if at is None else at),
            )
        return free

    def rename(self, name: str, new: str) -> bool:
        """Give a session another name; return False if there is one of that name already."""
        with store_errors(self.path, self._purpose), transaction(self._connection):
            if self.exists(new):
                return False
            self._connection.execute("UPDATE sessions SET name = ? WHERE name = ?", (new, name))
        return True

    def undo(self, name: str, number: int | None = None) -> int | None:
        """Undo a turn of a session, the last one if no number is given; return its number, None if there is none."""
        return self._set_undone(
            f"SELECT max(number) FROM turns WHERE {OF_NAME} AND {KEPT} AND number = coalesce(?, number)",  # noqa: S608
            (name, number),
            undone=True,
        )

    def redo(self, name: str) -> int | None:
        """Take back the last undo of a session; return the number of the turn, None if nothing is undone."""
        query = f"SELECT min(number) FROM turns WHERE {OF_NAME} AND undone IS 1"  # noqa: S608 - a constant
        return self._set_undone(query, (name,), undone=False)

    def _set_undone(self, query: str, values: tuple[object, ...], *, undone: bool) -> int | None:
        with store_errors(self.path, self._purpose), transaction(self._connection):
            ((number,),) = self._connection.execute(query, values).fetchall()
            if isinstance(number, int):
                self._connection.execute(
                    f"UPDATE turns SET undone = ? WHERE {OF_NAME} AND number = ?",  # noqa: S608 - a constant
                    (undone, values[0], number),
                )
        return number if isinstance(number, int) else None

    def _free_name(self, name: str) -> str:
        return next(free for number in count(1) if not self.exists(free := numbered_name(name, number)))

    def exists(self, name: str) -> bool:
        """Return whether there is a session of that name, be it that all its turns are undone."""
        return bool(self._connection.execute("SELECT 1 FROM sessions WHERE name = ?", (name,)).fetchall())

    def search(self, text: str) -> list[SearchHit]:
        """Return the turns in which all words of `text` occur, the newest first. Any text may be searched for."""
        with store_errors(self.path, self._purpose):
            places = find(self._connection, _storable(text), f"{TYPED} AND {KEPT}")
            hits = [hit for place in places if (hit := self._hit(*place))]
        return sorted(hits, key=lambda hit: hit.stored.created_at, reverse=True)

    def spoken_turns(self, name: str | None = None) -> list[SpokenTurn]:
        """Return the latency of all turns that were spoken in a chat, of one session or of all, the oldest first."""
        with store_errors(self.path, self._purpose):
            rows = self._connection.execute(
                f"""SELECT created_at, endpoint_ms, first_token_ms, first_audio_ms FROM turns
                WHERE {TYPED} AND {KEPT} AND endpoint_ms IS NOT NULL AND (? IS NULL OR {OF_NAME})""",  # noqa: S608
                (name, name),
            ).fetchall()
        turns = [SpokenTurn(time, StageTimes(*stages)) for text, *stages in rows if (time := parsed_time(text))]
        return sorted(turns, key=lambda turn: turn.created_at)

    def _hit(self, session_id: int, number: int) -> SearchHit | None:
        rows = self._connection.execute(
            f"SELECT name, {TURN} FROM turns JOIN sessions ON id = session_id WHERE session_id = ? AND number = ?",  # noqa: S608
            (session_id, number),
        ).fetchall()
        ((name, *row),) = rows or [(None,)]
        stored = stored_turn(*row) if isinstance(name, str) else None
        return SearchHit(name, stored) if stored else None

    def session(self, name: str) -> Session | None:
        """Return a session as prompts need it; None if there is none of that name."""
        stored = self.stored(name)
        return stored.session if stored else None

    def stored(self, name: str) -> StoredSession | None:
        """Return a session with its details; None if there is none of that name."""
        with store_errors(self.path, self._purpose):
            found = self._connection.execute(
                "SELECT id, instructions, persona FROM sessions WHERE name = ?", (name,)
            ).fetchall()
            if not found:
                return None
            ((session_id, instructions, persona),) = found
            rows = self._connection.execute(
                f"SELECT {TYPED}, {TURN} FROM turns WHERE session_id = ? AND {KEPT} ORDER BY number",  # noqa: S608
                (session_id,),
            ).fetchall()
        if not isinstance(instructions, str):
            self._notice(f"the instructions of session {name!r} can't be read")
            instructions = ""
        turns = {row[0]: stored_turn(*row) if typed else None for typed, *row in rows}
        self._report_unreadable(name, turns)
        readable = tuple(turn for turn in turns.values() if turn)
        named = persona if isinstance(persona, str) else None
        return StoredSession(name, instructions, readable, named) if rows else None

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
                f"SELECT {TYPED}, number, created_at FROM turns WHERE session_id = ? AND {KEPT}",  # noqa: S608
                (session_id,),
            ).fetchall()
            first = self._hit(session_id, min((number for typed, number, _ in rows if typed), default=0))
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._notice(f"session {name!r} is left out, because it can't be read: {error}")
            return None
        if not isinstance(name, str):
            self._notice(f"session number {session_id} is left out, because its name can't be read")
            return None
        times = {number: parsed_time(created_at) if typed else None for typed, number, created_at in rows}
        self._report_unreadable(name, times)
        readable = [time for time in times.values() if time]
        texts = first.stored.texts if first else ()
        return SessionSummary(name, len(readable), min(readable), max(readable), texts) if readable else None

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _storable(text: str) -> str:
    """Return text without lone surrogates, which command-line arguments can hold and UTF-8 can't encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(data: bytes) -> str:
    """Return text from the file; another program may have written bytes that are not UTF-8."""
    return data.decode("utf-8", "replace")
