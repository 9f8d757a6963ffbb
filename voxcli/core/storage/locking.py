"""Locks a file of voxcli's against other processes, for the time of one change."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxcli.config.paths import owner_only

LOCK_SECONDS = 10.0  # longest wait for another process; a change takes milliseconds
PAUSE_SECONDS = 0.01  # between attempts
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # file systems without locks, such as some of clusters


@contextmanager
def locked(path: Path, lock_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock on a file, which is created if it is missing; it ends with the context, and with the process.

    The file that is replaced under the lock has to be another one: a file can't be locked across its replacement.

    Raises:
        TimeoutError: another process holds the lock.
        OSError: the file can't be opened for writing.
    """
    descriptor = owner_only(str(path), os.O_RDWR | os.O_CREAT)
    try:
        _wait_for_lock(descriptor, time.monotonic() + lock_seconds)
        yield
    finally:
        os.close(descriptor)  # ends the lock


def _wait_for_lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another program keeps it locked") from error
        else:
            return
        time.sleep(PAUSE_SECONDS)


def _lock(descriptor: int) -> None:
    """Lock the file. Raises BlockingIOError or, on Windows, PermissionError if another process holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
