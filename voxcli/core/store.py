"""Stores sessions in one SQLite file, one transaction per turn.

    folder/               0700
    └── sessions.db       0600, and so are the -wal and -shm files that SQLite puts beside it

Once `append` has returned, the turn is on disk and survives `kill -9` and loss of power. Several processes may use
one file at a time; writers wait for one another. A file that can't be read is never deleted or replaced.
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
LOCK_SECONDS = 10.0  # longest wait for another process; a turn holds the lock for milliseconds
BUSY_PAUSE_SECONDS = 0.01

Migration = Sequence[str]  # statements that lead from one schema version to the next

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
"""`MIGRATIONS[n]` leads from schema version n (`PRAGMA user_version`) to n + 1. New ones are added at the end."""


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

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(
        cls, folder: Path, *, migrations: Sequence[Migration] = MIGRATIONS, lock_seconds: float = LOCK_SECONDS
    ) -> Self:
        """Open the sessions in `folder`; create missing files and upgrade an old schema.

        Raises:
            StoreError: the folder can't be written, or the file is no database or was written by a newer voxcli.
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
        with _foreign_errors(self.path), _transaction(self._connection):
            execute(
                "INSERT OR IGNORE INTO sessions (name, instructions) VALUES (?, ?)", (name, _storable(instructions))
            )
            ((session_id, number),) = execute(
                """SELECT id, 1 + coalesce(max(number), 0)
                FROM sessions LEFT JOIN turns ON session_id = id WHERE name = ? GROUP BY id""",
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
        with _foreign_errors(self.path):
            rows = self._connection.execute(
                """SELECT instructions, number, created_at, user, reply, interrupted, prompt, engine, model, transcript
                FROM sessions JOIN turns ON session_id = id WHERE name = ? ORDER BY number""",
                (name,),
            ).fetchall()
        return StoredSession(name, rows[0][0], tuple(_stored_turn(*row[1:]) for row in rows)) if rows else None

    def summaries(self) -> list[SessionSummary]:
        """Return all sessions, most recently used first."""
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
) -> StoredTurn:
    turn = Turn(user, reply, bool(interrupted), prompt)
    return StoredTurn(number, datetime.fromisoformat(created_at), turn, TurnDetails(engine, model, transcript))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _storable(text: str) -> str:
    """Return text without lone surrogates, which command-line arguments can hold and UTF-8 can't encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _make_private(path: Path) -> None:
    """Create folder and file for their owner only, and restrict them if they are open to others.

    SQLite gives its -wal and -shm files the permissions of the database when it creates them.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An existing file is not opened: closing it would end the locks that SQLite holds in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if os.name != "posix":
        return  # on Windows the user's folder is private by default
    for part in (path.parent, *path.parent.glob(f"{path.name}*")):
        with suppress(FileNotFoundError):  # another process may close the file, which removes the log
            mode = part.stat().st_mode
            # A folder with the sticky bit, such as /tmp, is shared, so only the files are changed.
            if mode & 0o077 and not mode & stat.S_ISVTX:
                part.chmod(stat.S_IMODE(mode) & 0o700)


def _configure(connection: sqlite3.Connection, lock_seconds: float) -> None:
    """Set up a connection, and switch the file to write-ahead logging."""
    connection.execute("PRAGMA synchronous=FULL")  # in WAL mode, the log is on disk after each commit
    connection.execute("PRAGMA fullfsync=ON")  # for macOS, where fsync() leaves data in the disk cache
    connection.execute("PRAGMA secure_delete=ON")
    deadline = time.monotonic() + lock_seconds
    while True:  # two processes that switch to WAL, or recover it, at the same moment get an error instead of a wait
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        except sqlite3.OperationalError as error:
            if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_SECONDS)
        else:
            return


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Upgrade the schema to the newest version, in one transaction."""
    if _version(connection, path, migrations) == len(migrations):
        return
    with _transaction(connection):
        version = _version(connection, path, migrations)  # another process may have upgraded it meanwhile
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
    """Run statements in one transaction. It locks for writing at once: a lock taken later can fail without waiting."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite may have rolled back already
            connection.execute("ROLLBACK")
        raise


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 if the error is raised by Python itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and the file system into `StoreError`."""
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
        case _:  # SQLITE_NOTADB, SQLITE_CORRUPT, or a foreign schema
            folder = shlex.quote(str(path.parent))
            return StoreError(
                f"{path} can't be used: {error}",
                hint=f"nothing was changed; to start afresh, keep it elsewhere: mv {folder} {folder}.damaged",
            )
