"""Reads pipes, and gives up on one that sends nothing for a long time."""

import io
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from voxcli.errors import AudioInputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STALL_SECONDS = 60.0  # A program that records or fetches may need some time before it writes.


class PipeFile(io.FileIO):
    """A pipe whose reads wait a bounded time."""

    def __init__(self, file: Path | int, name: str, stall_seconds: float = STALL_SECONDS) -> None:
        """Open a named pipe, or take a descriptor, which stays open.

        Args:
            name: the pipe's name in messages.
            stall_seconds: the longest wait for data.
        """
        self._name, self._stall_seconds = name, stall_seconds
        super().__init__(file, "rb", closefd=isinstance(file, Path), opener=_open_without_writer)

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        """Read at least one byte, except at the end. Raises AudioInputError after `stall_seconds` without data."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        if not poll.poll(self._stall_seconds * 1000):
            raise AudioInputError(
                f"{self._name} has sent nothing for {self._stall_seconds:g} s",
                hint="check the program that writes to it, or write to a file first",
            )
        return super().readinto(buffer)


def buffered_pipe(file: Path | int, name: str) -> BinaryIO:
    """Return a reader of a named pipe or a descriptor; where a platform can't poll pipes, its waits are unbounded."""
    if not hasattr(select, "poll"):
        return open(file, "rb", closefd=isinstance(file, Path))
    return cast("BinaryIO", io.BufferedReader(PipeFile(file, name)))


def _open_without_writer(path: str, flags: int) -> int:
    """Open a named pipe that may not have a writer yet; only Linux can poll for one."""
    if sys.platform != "linux":
        return os.open(path, flags)
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor
