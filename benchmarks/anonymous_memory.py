"""Measures the peak of this process's anonymous memory. Works on Linux only.

Pages of mapped files do not count, because the system reclaims them when it needs memory.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
SAMPLE_SECONDS = 0.005


@dataclass
class Peak:
    """Anonymous memory at the start (`before`) and at its peak (`bytes`)."""

    before: int
    bytes: int

    @property
    def grown(self) -> int:
        return self.bytes - self.before


def anonymous_bytes() -> int:
    """Return the anonymous memory of the process now."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@contextmanager
def peak() -> Iterator[Peak]:
    """Watch the process during the context. A peak shorter than 5 ms may be missed."""
    found = Peak(anonymous_bytes(), 0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            found.bytes = max(found.bytes, anonymous_bytes())

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.bytes = max(found.bytes, anonymous_bytes())
