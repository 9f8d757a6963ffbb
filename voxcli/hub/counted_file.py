"""A file to download into that reports its progress."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CountedFile(io.BufferedWriter):
    """Appends to a file and reports written bytes, or lost ones as a negative number when the server restarts at 0."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._count = count

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self._count(written)
        return written

    def truncate(self, size: int | None = None, /) -> int:
        self.flush()
        before = os.fstat(self.fileno()).st_size
        after = super().truncate(size)
        self._count(after - before)
        return after
