"""Writes the results file: JSON Lines, one record per item, appended only. Reads it to continue a run.

    {"id": "q1", "reply": ...}\n        answered
    {"id": "q2", "error": {...}}\n      failed
    {"id": "q3", "rep                   torn: its process was killed

A record is passed to the operating system in one call, so it survives `kill -9`. Only a torn record at the end is
ever removed; a file with other content is refused and not changed. The file is locked while it is open (flock; on
Windows a byte far past its end), so that no two runs write to it. The lock ends with the process. Only the owner of
the file can read it.
"""

import errno
import json
import os
import secrets
import shlex
import stat
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from voxcli.batch.plan import digest
from voxcli.config.paths import owner_only
from voxcli.core.session import Turn
from voxcli.errors import ConfigError, VoxError

BEGINNING = b'{"id": '  # start of every record
STDOUT = "-"
CLOSED = -1  # no descriptor
LINE_BYTES = 1 << 26  # longest record
LOCKED_BYTE = 1 << 62  # past the end, because on Windows other processes can't read a locked byte
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # file systems without locks, such as some of clusters

Record = dict[str, Any]


class Results:
    """An open results file. A context manager. Implements `voxcli.batch.scheduler.Finished`."""

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        retry_failed: bool = False,
        force: bool = False,
        remembers: bool = False,
        count: Callable[[Record], None],
    ) -> None:
        """Open or create the file, and read its records.

        Args:
            path: "-" is standard output, which is only written.
            resume: continue a file that has records.
            retry_failed: remove failed records, so that their items run again.
            force: remove all records, unless `resume` is set.
            remembers: later turns of a session are shown what was understood in earlier ones.
            count: called with each record that stays.

        Raises:
            ConfigError: the file has records and `resume` is not set, it has other content, another run writes to
                it, or it can't be written.
        """
        self._path = path
        self.remembers = remembers
        self._descriptor = CLOSED
        try:
            with _foreign_errors(path):
                self._descriptor = _opened(path)
                self._load(resume, retry_failed, force, count)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close and unlock the file, after its records are on disk. May be called again."""
        try:
            if self._descriptor != CLOSED and self._is_regular:
                os.fsync(self._descriptor)
        finally:
            self._release()

    def __len__(self) -> int:
        """Return how many items earlier runs finished."""
        return len(self._ids)

    def __contains__(self, item_id: str) -> bool:
        """Return whether an earlier run finished an item. Wrong in 1 of 18 million runs of two million items."""
        return self._place(item_id) is not None

    def record(self, item_id: str) -> Record | None:
        """Return the record of an item that an earlier run finished; None if there is none."""
        place = self._place(item_id)
        return None if place is None else self._records_at(self._offsets[place : place + 1])[0]

    def records_of(self, session: str) -> list[Record]:
        """Return the records of a session's answered turns, in the order of their numbers."""
        if not len(self._sessions):
            return []
        wanted = np.uint64(digest(session))
        first, end = (int(np.searchsorted(self._sessions, wanted, side)) for side in ("left", "right"))
        found = [each for each in self._records_at(self._turn_offsets[first:end]) if each.get("session") == session]
        return sorted(found, key=_turn_number)

    def turns(self, session: str) -> tuple[Turn, ...]:
        """Return the turns of a session that earlier runs finished."""
        return tuple(turn for record in self.records_of(session) if (turn := turn_of(record, remembers=self.remembers)))

    def discard(self, is_discarded: Callable[[Record], bool], count: Callable[[Record], None]) -> None:
        """Remove records from the file, so that their items run again.

        Args:
            count: called with each record that stays.

        Raises:
            ConfigError: the file can't be written.
        """
        with _foreign_errors(self._path):
            self._read_records(is_discarded, count)
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def write(self, record: Record) -> None:
        """Append a record.

        Raises:
            VoxError: the record can't be written, for example because the disk is full. Earlier records are whole.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # a full disk may take only a part
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            self._truncate(self._size)
            hint = "free disk space, then run again with --resume"
            if str(self._path) == STDOUT:
                raise VoxError(
                    f"can't write to standard output: {error.strerror}", hint="check where it goes"
                ) from error
            raise VoxError(f"can't write {self._path}: {error.strerror}", hint=hint) from error
        self._size += len(line)

    def _load(self, resume: bool, retry_failed: bool, force: bool, count: Callable[[Record], None]) -> None:
        status = os.fstat(self._descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode) and str(self._path) != STDOUT
        self._size = status.st_size if self._is_regular else 0
        if self._size and not (resume or force):
            raise ConfigError(
                f"{self._path} already has results",
                hint="--resume continues it, --force replaces it; or name another file with --out",
            )
        self._read_records(lambda record: not resume or (retry_failed and "error" in record), count)
        if self._is_regular:
            os.close(owner_only(str(self._path), os.O_RDONLY))
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def _read_records(self, is_discarded: Callable[[Record], bool], count: Callable[[Record], None]) -> None:
        ids, offsets, sessions, turns, has_discarded = array("Q"), array("Q"), array("Q"), array("Q"), False
        for offset, record in self._whole_records():
            if is_discarded(record):
                has_discarded = True
                continue
            count(record)
            if isinstance(record.get("session"), str) and "error" not in record:
                sessions.append(digest(record["session"]))
                turns.append(len(offsets))
            ids.append(digest(record["id"]))
            offsets.append(offset)
        if has_discarded:
            self._rewrite(offsets)
        order, places = np.argsort(_numbers(ids), kind="stable"), _numbers(offsets)
        self._ids, self._offsets = _numbers(ids)[order], places[order]
        order = np.argsort(_numbers(sessions), kind="stable")
        self._sessions, self._turn_offsets = _numbers(sessions)[order], places[_numbers(turns)[order]]

    def _records_at(self, offsets: NDArray[np.uint64]) -> list[Record]:
        found = []
        with self._reader() as file:
            for offset in offsets:
                file.seek(int(offset))
                found.append(parsed_record(file.readline()))
        return [record for record in found if record is not None]

    def _whole_records(self) -> Iterator[tuple[int, Record]]:
        """Yield each record and the offset of its line; repair a torn record at the end."""
        if not self._size:
            return
        offset = number = 0
        with self._reader() as file:
            while line := file.readline(LINE_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    break
                record = parsed_record(line)
                if record is None:
                    raise self._not_a_record(number)
                yield offset, record
                offset += len(line)
            else:
                return
        torn = line.rstrip(b"\0")  # zeros that a file system may leave after a loss of power
        if torn and not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
            raise self._not_a_record(number)
        if torn.endswith(b"}") and (record := parsed_record(torn)):  # whole, except for the newline
            self._truncate(offset + len(torn))
            self._size += os.write(self._descriptor, b"\n")
            yield offset, record
        else:
            self._truncate(offset)

    def _not_a_record(self, number: int) -> ConfigError:
        return ConfigError(
            f"{self._path}, line {number}: not a record of voxcli batch; nothing was changed",
            hint="name another file with --out",
        )

    def _rewrite(self, offsets: "array[int]") -> None:
        """Replace the file by one with only these records, and update `offsets` to their new places."""
        part = self._path.with_name(f".voxcli-{secrets.token_hex(8)}.part")
        descriptor = _opened(part)  # locked before it gets its name, so that no other run can lock it first
        try:
            with self._reader() as old, open(descriptor, "wb", closefd=False) as new:
                for index, offset in enumerate(offsets):
                    old.seek(offset)
                    offsets[index] = new.tell()
                    new.write(old.readline())
                new.flush()
                os.fsync(new.fileno())
                self._size = new.tell()
            if sys.platform == "win32":
                os.close(descriptor)
                descriptor = CLOSED
                descriptor = self._replaced_on_windows(part)
            else:
                part.replace(self._path)
        except BaseException:
            if descriptor != CLOSED:
                os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        self._release()
        self._descriptor = descriptor

    def _replaced_on_windows(self, part: Path) -> int:
        """Replace the file on Windows, where it has to be closed first; return the new descriptor."""
        self._release()
        part.replace(self._path)
        return _opened(self._path)

    def _release(self) -> None:
        """Close the descriptor once; later its number may belong to another file."""
        descriptor, self._descriptor = self._descriptor, CLOSED
        if descriptor != CLOSED:
            os.close(descriptor)

    def _reader(self) -> BinaryIO:
        return self._path.open("rb")

    def _truncate(self, size: int) -> None:
        if self._is_regular:
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
            self._size = size

    def _place(self, item_id: str) -> int | None:
        if not len(self._ids):
            return None
        wanted = np.uint64(digest(item_id))
        place = int(np.searchsorted(self._ids, wanted))
        return place if place < len(self._ids) and self._ids[place] == wanted else None


def parsed_record(line: bytes) -> Record | None:
    """Return the record in a line; None if it is not a record of a batch."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        return None
    kind, keys = (value["error"], ("code", "message")) if "error" in value else (value, ("user", "reply"))
    if not isinstance(kind, dict) or not all(isinstance(kind.get(key), str) for key in keys):
        return None
    if not isinstance(value.get("prompt"), str | None):
        return None
    for key in ("audio", "fingerprint"):
        if not isinstance(value.get(key, {}), dict):  # What another program changed tells nothing.
            del value[key]
    return value


def turn_of(record: Record, *, remembers: bool = False) -> Turn | None:
    """Return the turn of a record; None if its item failed.

    Args:
        remembers: with what was understood in it.
    """
    if "error" in record:
        return None
    understood = str(record.get("understood") or "") if remembers else ""
    interrupted = bool(record.get("interrupted"))
    return Turn(record["user"], record["reply"], interrupted, record.get("prompt") or "", understood)


def _turn_number(record: Record) -> int:
    number = record.get("turn")
    return number if isinstance(number, int) else 0


def _numbers(values: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)


def _opened(path: Path) -> int:
    """Open and lock a file. Raises ConfigError if another process holds the lock."""
    if str(path) == STDOUT:
        return os.dup(sys.stdout.fileno())
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            _lock(descriptor, path)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another run has replaced the file meanwhile


def _lock(descriptor: int, path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return
        if not isinstance(error, BlockingIOError | PermissionError):
            raise
        raise ConfigError(
            f"another run of voxcli batch writes to {path}", hint="wait for it, or name another file with --out"
        ) from error


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder", hint=f"--out {shlex.quote(str(path / 'results.jsonl'))}") from error
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}", hint="choose an existing folder that you can write to"
        ) from error
