"""The most anonymous memory that this process held for a time. Linux alone.

Pages of mapped files are left out: the system takes them back when it needs them.
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
    """`before` and `bytes` are what the process held at the beginning, and at most."""

    before: int
    bytes: int

    @property
    def grown(self) -> int:
        return self.bytes - self.before


def anonymous_bytes() -> int:
    """Return what the process holds now."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@contextmanager
def peak() -> Iterator[Peak]:
    """Watch the process for the time of the context; a peak shorter than 5 ms may be missed."""
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
