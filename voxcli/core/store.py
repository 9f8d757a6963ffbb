"""Sessions on disk: one SQLite file, one transaction a turn.

    folder/               0700
    └── sessions.db       0600, and so are the -wal and -shm files that SQLite puts beside it

A turn whose `append` has returned is on the disk: it survives `kill -9` and loss of power. Several
processes may use one file at a time; writers wait for one another. Nothing here deletes or replaces
a file that it can't read.

This module knows nothing of audio, engines or terminals, nor where the folder should be.
"""

import os
import shlex
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from voxcli.core.session import Session, Turn
from voxcli.errors import StoreError

FILE_NAME = "sessions.db"
LOCK_SECONDS = 10.0  # how long to wait for another process; a turn holds the lock for milliseconds
BUSY_PAUSE_SECONDS = 0.01

Migration = Sequence[str]  # the statements that lead from one schema version to the next

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE sessions (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            instructions TEXT NOT NULL
        )""",
        """CREATE TABLE turns (
            session_id INTEGER NOT NULL REFERENCES sessions (id),
            number INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            user TEXT NOT NULL,
            prompt TEXT NOT NULL,
            reply TEXT NOT NULL,
            interrupted INTEGER NOT NULL,
            engine TEXT NOT NULL,
            model TEXT NOT NULL,
            heard TEXT,
            PRIMARY KEY (session_id, number)
        ) WITHOUT ROWID""",
    ),
    ("ALTER TABLE turns RENAME COLUMN heard TO transcript",),
)
"""`MIGRATIONS[n]` leads from schema version n (`PRAGMA user_version`) to n + 1; only ever add to the end."""


@dataclass(frozen=True)
class TurnDetails:
    """What is kept beside a turn for people; it never enters a prompt."""

    engine: str = ""
    model: str = ""
    transcript: str | None = None  # what was said, where the engine learnt it


@dataclass(frozen=True)
class StoredTurn:
    """A turn as it lies on disk."""

    number: int  # in its session, from 1
    created_at: datetime  # UTC, when it was stored
    turn: Turn
    details: TurnDetails


@dataclass(frozen=True)
class StoredSession:
    """A session with all that is kept of it; has at least one turn."""

    name: str
    instructions: str
    turns: tuple[StoredTurn, ...]

    @property
    def session(self) -> Session:
        """The part that prompts are made of."""
        return Session(self.name, self.instructions, tuple(stored.turn for stored in self.turns))


@dataclass(frozen=True)
class SessionSummary:
    """One line of a list of sessions."""

    name: str
    turns: int
    started: datetime  # UTC, first turn
    last: datetime  # UTC, newest turn


class Store:
    """The sessions in one folder. The thread that opens it uses and closes it.

    Every method raises `StoreError` where the file can't be read or written.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(
        cls, folder: Path, *, migrations: Sequence[Migration] = MIGRATIONS, lock_seconds: float = LOCK_SECONDS
    ) -> Self:
        """Open the sessions in `folder`; create what is missing, and bring an old schema up to date.

        Raises:
            StoreError: no place to write, not a database, or written by a newer voxcli.
        """
        path = folder / FILE_NAME
        with _foreign_errors(path):
            _make_private(path)
            connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
        try:
            with _foreign_errors(path):
                _configure(connection, lock_seconds)
                _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, name: str, turn: Turn, details: TurnDetails | None = None, *, instructions: str = "") -> int:
        """Add a turn to a session and return its number, from 1; it is on the disk on return.

        Args:
            name: as `voxcli.core.session.session_name` gives it; the session is created where it is new.
            details: what is kept beside the turn.
            instructions: kept with a new session; those of an old one stay as they are.
        """
        details = details or TurnDetails()
        texts = [_storable(text) for text in (turn.user, turn.prompt, turn.reply, details.engine, details.model)]
        transcript = None if details.transcript is None else _storable(details.transcript)
        execute = self._connection.execute
        with _foreign_errors(self.path), _transaction(self._connection):
            execute(
                "INSERT OR IGNORE INTO sessions (name, instructions) VALUES (?, ?)", (name, _storable(instructions))
            )
            ((session_id, number),) = execute(
                """SELECT id, 1 + coalesce(max(number), 0)
                FROM sessions LEFT JOIN turns ON session_id = id WHERE name = ? GROUP BY id""",
                (name,),
            )
            # The clock is read under the lock, so that times and numbers run the same way.
            values = (session_id, number, _now(), *texts, turn.interrupted, transcript)
            execute(
                """INSERT INTO turns (session_id, number, created_at, user, prompt, reply, engine, model,
                    interrupted, transcript) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                values,
            )
        return int(number)

    def session(self, name: str) -> Session | None:
        """Return a session as prompts need it, None where there is none of that name."""
        stored = self.stored(name)
        return stored.session if stored else None

    def stored(self, name: str) -> StoredSession | None:
        """Return a session with all that is kept of it, None where there is none of that name."""
        with _foreign_errors(self.path):
            rows = self._connection.execute(
                """SELECT instructions, number, created_at, user, reply, interrupted, prompt, engine, model, transcript
                FROM sessions JOIN turns ON session_id = id WHERE name = ? ORDER BY number""",
                (name,),
            ).fetchall()
        return StoredSession(name, rows[0][0], tuple(_stored_turn(*row[1:]) for row in rows)) if rows else None

    def summaries(self) -> list[SessionSummary]:
        """Return all sessions, the one that was used last first."""
        with _foreign_errors(self.path):
            rows = self._connection.execute(
                """SELECT name, count(*), min(created_at), max(created_at)
                FROM sessions JOIN turns ON session_id = id GROUP BY id ORDER BY max(created_at) DESC, name"""
            ).fetchall()
        return [
            SessionSummary(name, turns, datetime.fromisoformat(started), datetime.fromisoformat(last))
            for name, turns, started, last in rows
        ]

    def delete(self, name: str) -> bool:
        """Delete a session and overwrite its text; return whether there was one of that name."""
        with _foreign_errors(self.path):
            execute = self._connection.execute
            with _transaction(self._connection):
                execute("DELETE FROM turns WHERE session_id IN (SELECT id FROM sessions WHERE name = ?)", (name,))
                found = execute("DELETE FROM sessions WHERE name = ?", (name,)).rowcount > 0
            # The write-ahead log still has the text; while others read, SQLite leaves that for later.
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
) -> StoredTurn:
    turn = Turn(user, reply, bool(interrupted), prompt)
    return StoredTurn(number, datetime.fromisoformat(created_at), turn, TurnDetails(engine, model, transcript))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _storable(text: str) -> str:
    """Return text without lone surrogates, which UTF-8 has no bytes for; arguments of a process can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _make_private(path: Path) -> None:
    """Create folder and file for their owner alone, and tighten them where they are open to others.

    SQLite gives its -wal and -shm files the permissions of the database when it creates them.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(
        FileExistsError
    ):  # never open a file that exists: closing it would end SQLite's locks in this process
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if os.name != "posix":
        return  # on Windows the user's own folder is private as it is
    for part in (path.parent, *path.parent.glob(f"{path.name}*")):
        with suppress(FileNotFoundError):  # another process that closes the file removes the log
            mode = part.stat().st_mode
            # A folder with the sticky bit, such as /tmp, belongs to everybody: only the files are ours.
            if mode & 0o077 and not mode & stat.S_ISVTX:
                part.chmod(stat.S_IMODE(mode) & 0o700)


def _configure(connection: sqlite3.Connection, lock_seconds: float) -> None:
    """Set what SQLite does not remember from one connection to the next, and the log that it does."""
    connection.execute("PRAGMA synchronous=FULL")  # in WAL mode: the log reaches the disk with each commit
    connection.execute("PRAGMA fullfsync=ON")  # macOS, whose fsync() leaves data in the disk's cache; others ignore it
    connection.execute("PRAGMA secure_delete=ON")
    deadline = time.monotonic() + lock_seconds
    while True:  # two that switch to WAL, or recover it, at one moment get an error where others would wait
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_SECONDS)
        else:
            return


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Bring the schema from its version to the newest, in one transaction."""
    if _version(connection, path, migrations) == len(migrations):
        return
    with _transaction(connection):
        version = _version(connection, path, migrations)  # another process may have been faster
        for statement in chain.from_iterable(migrations[version:]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(migrations)}")


def _version(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> int:
    version: int
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version > len(migrations):
        raise StoreError(
            f"the sessions in {path} were written by a newer voxcli (schema {version}, not {len(migrations)})",
            hint="pip install --upgrade voxcli",
        )
    return version


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Take the lock for writing at once (a lock taken later can fail without waiting), then all or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite may have rolled back by itself
            connection.execute("ROLLBACK")
        raise


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's result code without what extends it; 0 where the error is Python's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"sessions can't be kept in {path.parent}: {error.strerror}",
            hint="make it a folder that you own and can write to, or set VOXCLI_HOME to one",
        ) from error
    except sqlite3.Error as error:
        raise _store_error(error, path) from error


def _store_error(error: sqlite3.Error, path: Path) -> StoreError:
    match _primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(f"another program keeps {path} locked", hint="try again when it is done, or end it")
        case sqlite3.SQLITE_FULL:
            return StoreError(f"no space left to store sessions in {path}", hint="free some disk space and try again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreError(
                f"{path} can't be written: {error}",
                hint=f"ls -la {shlex.quote(str(path.parent))} shows who may; or set VOXCLI_HOME to another folder",
            )
        case _:  # SQLITE_NOTADB, SQLITE_CORRUPT, or a schema that is not ours
            folder = shlex.quote(str(path.parent))
            return StoreError(
                f"{path} can't be used: {error}",
                hint=f"nothing was changed; to start afresh, keep it elsewhere: mv {folder} {folder}.damaged",
            )
