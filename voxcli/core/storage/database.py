"""Opens the SQLite file of the store: for writing, or as a copy in memory for reading.

A copy creates and changes nothing on disk, so that sessions can be read on a read-only disk, too. Errors of SQLite and
the file system become `StoreError`, whose advice never risks data that may still be good.
"""

import errno
import os
import shlex
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Literal

from voxcli.errors import StoreError

FILE_NAME = "sessions.db"
LOCK_SECONDS = 10.0  # longest wait for another process; a turn holds the lock for milliseconds
BUSY_PAUSE_SECONDS = 0.01
COPY_ATTEMPTS = 20  # each takes milliseconds; another process may end, and so change the file, during any of them
FULL_BYTES = 1 << 16  # SQLite reports a full disk as an I/O error if it can't extend its index of the log by 32 KB

Migration = Sequence[str]  # statements that lead from one schema version to the next
Purpose = Literal["read", "written"]

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
    (
        "ALTER TABLE turns ADD COLUMN endpoint_ms REAL",
        "ALTER TABLE turns ADD COLUMN first_token_ms REAL",
        "ALTER TABLE turns ADD COLUMN first_audio_ms REAL",
        "ALTER TABLE turns ADD COLUMN undone INTEGER NOT NULL DEFAULT 0",
    ),
    (
        "ALTER TABLE turns ADD COLUMN understood TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE turns ADD COLUMN tools TEXT NOT NULL DEFAULT '[]'",
    ),
    ("ALTER TABLE sessions ADD COLUMN persona TEXT",),
)
"""`MIGRATIONS[n]` leads from schema version n (`PRAGMA user_version`) to n + 1. New ones are added at the end."""


def open_file(path: Path, migrations: Sequence[Migration], lock_seconds: float) -> sqlite3.Connection:
    """Open the file for writing; create missing folders and files and upgrade an old schema.

    Raises:
        StoreError: it can't be written, is no database of voxcli, is damaged or was written by a newer voxcli.
    """
    with store_errors(path, "written"):
        _make_private(path)
        _check_file(path)
        connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
    try:
        with store_errors(path, "written"):
            _configure(connection, path, migrations, lock_seconds)
            _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def open_copy(path: Path, migrations: Sequence[Migration], lock_seconds: float) -> sqlite3.Connection:
    """Return a copy of the file in memory, with the newest schema; empty if there is no file.

    Raises:
        StoreError: it can't be read, is no database of voxcli, is damaged or was written by a newer voxcli.
    """
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        with store_errors(path, "read"):
            if _check_file(path):
                _copy(path, memory, lock_seconds)
            _migrate(memory, path, migrations)
    except BaseException:
        memory.close()
        raise
    return memory


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run statements in one transaction. It locks for writing at once: a lock taken later can fail without waiting."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite may have rolled back already
            connection.execute("ROLLBACK")
        raise


# --- Writing -----------------------------------------------------------------------------------


def _make_private(path: Path) -> None:
    """Create folder and file for their owner only, and restrict them if they are open to others.

    SQLite gives its -wal and -shm files the permissions of the database when it creates them.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # An existing file is not opened: closing it would end the locks that SQLite holds in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if os.name != "posix":
        return  # The user's folder on Windows is private by default.
    for part in (path.parent, *path.parent.glob(f"{path.name}*")):
        with suppress(FileNotFoundError):  # another process may close the file, which removes the log
            mode = part.stat().st_mode
            # A folder with the sticky bit, such as /tmp, is shared, so only the files are changed.
            if mode & 0o077 and not mode & stat.S_ISVTX:
                part.chmod(stat.S_IMODE(mode) & 0o700)


def _configure(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration], lock_seconds: float
) -> None:
    """Set up a connection, and switch the file to write-ahead logging, unless it is not voxcli's."""
    connection.execute("PRAGMA synchronous=FULL")  # Each commit puts the log on disk.
    connection.execute("PRAGMA fullfsync=ON")  # macOS leaves data in the disk cache after fsync().
    connection.execute("PRAGMA secure_delete=ON")
    deadline = time.monotonic() + lock_seconds
    while True:  # two processes that switch to WAL, or recover it, at the same moment get an error instead of a wait
        try:
            _version(connection, path, migrations)
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
    with transaction(connection):
        version = _version(connection, path, migrations)  # another process may have upgraded it meanwhile
        for statement in chain.from_iterable(migrations[version:]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(migrations)}")


def _version(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> int:
    """Return the version of the schema. Raises StoreError if this voxcli has no such version."""
    version: int
    ((version, tables),) = connection.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
    ).fetchall()
    if version < 0 or (tables and not version):
        raise _foreign(path, "it has other tables")
    if version > len(migrations):
        raise StoreError(
            f"the sessions in {path} were written by a newer voxcli (schema {version}, not {len(migrations)})",
            hint="pip install --upgrade voxcli",
        )
    return version


# --- Reading -----------------------------------------------------------------------------------


def _check_file(path: Path) -> bool:
    """Return whether the file exists.

    Raises:
        StoreError: it is not a regular file, or lost its content while its log still holds some.
        OSError: it can't be inspected.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if link := next((part for part in (path, path.parent) if part.is_symlink()), None):
            raise _unusable(path, f"{link} is a link to a place that does not exist") from None
        return False
    if not stat.S_ISREG(found.st_mode):
        raise _unusable(path, "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is not a regular file")
    # SQLite would delete the log of an empty file.
    if not found.st_size and any(_stat(_log(path, "wal"))[1:2]):
        raise _damaged(path, "it is empty, but its write-ahead log is not")
    return True


def _copy(path: Path, memory: sqlite3.Connection, lock_seconds: float) -> None:
    """Copy the file, with what its log holds, into an empty database in memory.

    SQLite's locks need a -shm file. Where there is none, or the disk does not allow its use, nothing is locked, and
    the copy is made again if the files changed meanwhile.
    """
    if _log(path, "shm").exists() and _log(path, "wal").exists():
        try:
            _backup(path, "", memory, lock_seconds)
        except sqlite3.OperationalError as error:
            if _primary_code(error) not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
        else:
            return
    for _ in range(COPY_ATTEMPTS):
        before, failure = _state(path), None
        try:
            _backup(path, _unlocked(path), memory, lock_seconds)
        except sqlite3.Error as error:
            failure = error
        if _state(path) != before:
            continue
        if failure:
            raise failure
        return
    raise _locked(path)


def _backup(path: Path, options: str, memory: sqlite3.Connection, lock_seconds: float) -> None:
    """Copy the file as SQLite sees it. `options` are further parameters of SQLite's URI."""
    uri = f"{path.absolute().as_uri()}?mode=ro{options}"
    with closing(sqlite3.connect(uri, uri=True, timeout=lock_seconds, isolation_level=None)) as source:
        if "vfs" in options:
            source.execute("PRAGMA locking_mode=EXCLUSIVE")  # keeps the index of the log in memory, not in -shm
        source.execute("BEGIN")
        source.execute("PRAGMA schema_version").fetchall()  # takes a lock; backup() would wait for it forever
        source.backup(memory)


def _unlocked(path: Path) -> str:
    """Return the options that open the file without creating another beside it."""
    if _log(path, "wal").exists():
        return "&vfs=unix-none" if os.name == "posix" else ""
    return "" if _log(path, "journal").exists() else "&immutable=1"


def _state(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes when another process writes to the file or its log."""
    return tuple(_stat(each) for each in (path, _log(path, "wal"), _log(path, "journal")))


def _log(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}-{kind}")


def _stat(path: Path) -> tuple[int, ...]:
    """Return number, size and time of change of a file; nothing if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


# --- Errors ------------------------------------------------------------------------------------


@contextmanager
def store_errors(path: Path, purpose: Purpose) -> Iterator[None]:
    """Turn errors of SQLite and the file system into `StoreError`. `purpose` completes "it can't be ..."."""
    try:
        yield
    except OSError as error:
        raise _file_error(error, path, purpose) from error
    except sqlite3.Error as error:
        raise _database_error(error, path, purpose) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file damaged."""
    return _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 if the error is raised by Python itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _file_error(error: OSError, path: Path, purpose: Purpose) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path)
    if purpose == "read":
        return StoreError(f"sessions can't be read from {path.parent}: {error.strerror}", hint=_who_may(path))
    if error.errno == errno.EROFS:
        return _read_only(path)
    return StoreError(
        f"sessions can't be kept in {path.parent}: {error.strerror}",
        hint="make it a folder that you own and can write to, or set VOXCLI_HOME to one",
    )


def _database_error(error: sqlite3.Error, path: Path, purpose: Purpose) -> StoreError:
    if is_damage(error):
        return _damaged(path, str(error))
    match _primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return _locked(path)
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return _disk_error(error, path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return _forbidden(error, path, purpose)
        case sqlite3.SQLITE_ERROR:  # other tables than voxcli's
            return _foreign(path, str(error))
    return _unusable(path, str(error))


def _disk_error(error: sqlite3.Error, path: Path) -> StoreError:
    if _primary_code(error) == sqlite3.SQLITE_FULL or _is_full(path.parent):
        return _full(path)
    return StoreError(f"the disk fails at {path}: {error}", hint="check the disk and your quota; keep the file")


def _forbidden(error: sqlite3.Error, path: Path, purpose: Purpose) -> StoreError:
    """Return the error for a file that can't be opened for its purpose, with the reason, which SQLite does not give."""
    if purpose == "written" and _is_on_read_only_disk(path.parent):
        return _read_only(path)
    access = os.R_OK if purpose == "read" else os.R_OK | os.W_OK
    places = ((path.parent, access | os.X_OK), (path, access))
    refused = next((place for place, needed in places if place.exists() and not os.access(place, needed)), None)
    reason = f"you have no permission for {refused}" if refused else str(error)
    return StoreError(f"{path} can't be {purpose}: {reason}", hint=_who_may(path))


def _is_on_read_only_disk(folder: Path) -> bool:
    return os.name == "posix" and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_BYTES
    return False


def _who_may(path: Path) -> str:
    return f"ls -la {shlex.quote(str(path.parent))} shows who may; or set VOXCLI_HOME to another folder"


def _locked(path: Path) -> StoreError:
    return StoreError(f"another program keeps {path} locked", hint="try again when it is done, or end it")


def _full(path: Path) -> StoreError:
    return StoreError(f"no space left to store sessions in {path}", hint="free some disk space and try again")


def _read_only(path: Path) -> StoreError:
    return StoreError(
        f"sessions can't be kept in {path.parent}: the disk is read-only",
        hint="set VOXCLI_HOME to a folder on another disk; `voxcli sessions` still shows and exports these",
    )


def _foreign(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} is not a database of voxcli: {reason}", hint="nothing was changed; set VOXCLI_HOME to another folder"
    )


def _unusable(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} can't be used: {reason}", hint="nothing was changed; check that file")


def _damaged(path: Path, reason: str) -> StoreError:
    """Return the error for a damaged file. Its hint keeps the log with the file: one is useless without the other."""
    file, spare = shlex.quote(str(path)), shlex.quote(str(path.parent / "damaged"))
    return StoreError(
        f"{path} is damaged: {reason}",
        hint=f"nothing was changed; to start afresh and keep what is left: mkdir {spare} && mv {file}* {spare}",
    )
