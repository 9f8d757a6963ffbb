"""The results file: JSON Lines that only grow, one record an item, and how a run goes on with them.

    {"id": "q1", "reply": ...}\n        answered
    {"id": "q2", "error": {...}}\n      failed
    {"id": "q3", "rep                   torn: whoever wrote it was killed

A record is written with one call and is the operating system's from then on: it outlives `kill -9`. Nothing
but a torn record is ever cut off, and a file with anything else in it is refused as it is. The file is locked
(flock; on Windows a byte far behind its end) for as long as it is open, so that no two runs write to it; the
lock ends with the process, however that ends. Only its owner can read it.
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

BEGINNING = b'{"id": '  # of every record
CLOSED = -1  # in place of a descriptor
LINE_BYTES = 1 << 26  # a longer line is none of ours
LOCKED_BYTE = 1 << 62  # on Windows, where a locked byte can't be read by others
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of a file system that has none, such as some of clusters

Record = dict[str, Any]


class Results:
    """An open results file; a context manager. Implements `voxcli.batch.scheduler.Finished`."""

    def __init__(
        self, path: Path, *, resume: bool = False, retry_failed: bool = False, count: Callable[[Record], None]
    ) -> None:
        """Open or create the file, and read what it holds.

        Args:
            resume: go on with a file that has records in it.
            retry_failed: take out the failed ones, so that they run again.
            count: called with each record that stays.

        Raises:
            ConfigError: it has records and `resume` is not given, it has something else in it, another
                run writes to it, or it can't be written.
        """
        self._path = path
        self._descriptor = CLOSED
        try:
            with _foreign_errors(path):
                self._descriptor = _opened(path)
                self._begin(resume, retry_failed, count)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and with it the lock; what was written is on the disk. May be called again."""
        try:
            if self._descriptor != CLOSED and self._is_regular:
                os.fsync(self._descriptor)
        finally:
            self._release()

    def __len__(self) -> int:
        """Return how many items earlier runs have finished."""
        return len(self._ids)

    def __contains__(self, item_id: str) -> bool:
        """Tell whether an earlier run finished an item (of two million, by chance, once in 18 million runs wrongly)."""
        return self._place(item_id) is not None

    def turn(self, item_id: str) -> Turn | None:
        """Return what a session remembers of an item that an earlier run finished; None if it failed."""
        place = self._place(item_id)
        if place is None:
            return None
        with self._reader() as file:
            file.seek(int(self._offsets[place]))
            record = json.loads(file.readline())
        if "error" in record:
            return None
        return Turn(record["user"], record["reply"], bool(record.get("interrupted")), record.get("prompt") or "")

    def write(self, record: Record) -> None:
        """Add a record.

        Raises:
            VoxError: the disk is full, say; the records before it are whole.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # the disk may have had room for a part
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            self._cut(self._size)
            raise VoxError(
                f"can't write {self._path}: {error.strerror}", hint="make room, then run again with --resume"
            ) from error
        self._size += len(line)

    def _begin(self, resume: bool, retry_failed: bool, count: Callable[[Record], None]) -> None:
        status = os.fstat(self._descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size if self._is_regular else 0
        if self._size and not resume:
            raise ConfigError(
                f"{self._path} has results in it already",
                hint="--resume goes on with it; or name another file with --out",
            )
        self._read(retry_failed, count)
        if self._is_regular:
            os.close(owner_only(str(self._path), os.O_RDONLY))
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def _read(self, retry_failed: bool, count: Callable[[Record], None]) -> None:
        ids, offsets, has_failed = array("Q"), array("Q"), False
        for offset, record in self._whole_records():
            if retry_failed and "error" in record:
                has_failed = True
                continue
            count(record)
            ids.append(digest(record["id"]))
            offsets.append(offset)
        if has_failed:
            self._keep(offsets)
        order = np.argsort(_numbers(ids), kind="stable")
        self._ids, self._offsets = _numbers(ids)[order], _numbers(offsets)[order]

    def _whole_records(self) -> Iterator[tuple[int, Record]]:
        """Give each record and where its line begins; at the end, repair a torn one."""
        if not self._size:
            return
        offset = number = 0
        with self._reader() as file:
            while line := file.readline(LINE_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    break
                record = _parsed(line)
                if record is None:
                    raise self._foreign(number)
                yield offset, record
                offset += len(line)
            else:
                return
        torn = line.rstrip(b"\0")  # what a file system may leave after a loss of power
        if torn and not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
            raise self._foreign(number)
        if torn.endswith(b"}") and (record := _parsed(torn)):  # whole, but for the end of its line
            self._cut(offset + len(torn))
            self._size += os.write(self._descriptor, b"\n")
            yield offset, record
        else:
            self._cut(offset)

    def _foreign(self, number: int) -> ConfigError:
        return ConfigError(
            f"{self._path}, line {number}: not a record of voxcli batch; nothing was changed",
            hint="name another file with --out",
        )

    def _keep(self, offsets: "array[int]") -> None:
        """Put a file with these records alone in this one's place, and let `offsets` be those in it."""
        part = self._path.with_name(f".voxcli-{secrets.token_hex(8)}.part")
        descriptor = _opened(part)  # locked before it has the name, or another run could lock it first
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
        """Put a file in this one's place, where only closed files can be; return its descriptor."""
        self._release()
        part.replace(self._path)
        return _opened(self._path)

    def _release(self) -> None:
        """Close the descriptor, once: its number may be another file's by then."""
        descriptor, self._descriptor = self._descriptor, CLOSED
        if descriptor != CLOSED:
            os.close(descriptor)

    def _reader(self) -> BinaryIO:
        return self._path.open("rb")

    def _cut(self, size: int) -> None:
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


def _parsed(line: bytes) -> Record | None:
    """Return the record in a line; None if that is none of a batch."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        return None
    kind, keys = (value["error"], ("code", "message")) if "error" in value else (value, ("user", "reply"))
    if not isinstance(kind, dict) or not all(isinstance(kind.get(key), str) for key in keys):
        return None
    return value


def _numbers(values: "array[int]") -> NDArray[np.uint64]:
    return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)


def _opened(path: Path) -> int:
    """Open a file and lock it; raises ConfigError if another process has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            _lock(descriptor, path)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another run has put a new file in its place meanwhile


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
            f"can't write {path}: {error.strerror}", hint="choose a folder that is there and that you may write to"
        ) from error
