"""Recordings read ahead of the engine, on threads of their own, a bounded number of seconds of them.

It knows the desk that jobs come from and how a recording is read; what becomes of the clips it does not know.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from voxcli.audio.clip import AudioClip
from voxcli.batch.item import Item
from voxcli.batch.scheduler import Job
from voxcli.errors import AudioInputError
from voxcli.printable import printable

READERS = 2  # threads: a second of FLAC is decoded in a millisecond, so what they wait for is the disk
SECONDS_AHEAD = 600.0  # of sound: 38 MB. Each reader may take one recording more
CLIPS_AHEAD = 16  # enough for workers that ask for one at a time

Read = Callable[[str], AudioClip]


class Jobs(Protocol):
    """Where jobs come from, such as a desk."""

    @property
    def stopped(self) -> bool: ...

    def take(self) -> Job | None:
        """Return the next job, waiting for it; None: no more."""
        ...

    def stop(self) -> None:
        """Hand out nothing more."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with its recording, or with why there is none."""

    job: Job
    clip: AudioClip | Exception

    @property
    def seconds(self) -> float:
        return self.clip.seconds if isinstance(self.clip, AudioClip) else 0.0


class Prefetcher:
    """Where workers find jobs whose recordings have been read; a context manager that ends its threads."""

    def __init__(self, scheduler: Jobs, read: Read, clips_ahead: int = CLIPS_AHEAD) -> None:
        """Take jobs from `scheduler`; `read` returns the clip of a path, or raises VoxError."""
        self._clips_ahead = clips_ahead
        self._failure: Exception | None = None  # of a reader, not of a recording
        self._scheduler = scheduler
        self._read = read
        self._changed = threading.Condition()
        self._prepared: deque[Prepared] = deque()
        self._seconds = 0.0
        self._readers = [threading.Thread(target=self._fill, name="reader", daemon=True) for _ in range(READERS)]
        self._reading = len(self._readers)

    def __enter__(self) -> Self:
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.stop()
        with self._changed:
            self._changed.notify_all()
        for reader in self._readers:
            reader.join()

    def take(self) -> Prepared | None:
        """Return the next job, waiting for its recording; None: no more, or the desk was stopped.

        Raises what the desk raised: without its readers a run would seem to be done.
        """
        with self._changed:
            while not self._prepared and self._reading and not self._scheduler.stopped:
                self._changed.wait()
            self._changed.notify_all()
            if self._failure:
                raise self._failure
            if not self._prepared or self._scheduler.stopped:
                return None
            prepared = self._prepared.popleft()
            self._seconds -= prepared.seconds
            return prepared

    def _fill(self) -> None:
        try:
            while self._waited_for_room() and (job := self._scheduler.take()):
                prepared = Prepared(job, self._clip(job.item))
                with self._changed:
                    self._prepared.append(prepared)
                    self._seconds += prepared.seconds
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised by take(), where somebody sees it
            self._failure = error
        finally:
            with self._changed:
                self._reading -= 1
                self._changed.notify_all()

    def _waited_for_room(self) -> bool:
        """Wait until a recording may be read; return False once the desk was stopped."""
        with self._changed:
            while not self._scheduler.stopped and (
                self._seconds >= SECONDS_AHEAD or len(self._prepared) >= self._clips_ahead
            ):
                self._changed.wait()
            return not self._scheduler.stopped

    def _clip(self, item: Item) -> AudioClip | Exception:
        try:
            _refuse_pipe(item.path)
            return self._read(item.path)
        except Exception as error:  # noqa: BLE001 - becomes the item's record, whatever it is
            return error


def _refuse_pipe(path: str) -> None:
    """Raise AudioInputError for a named pipe: it could be read once, and might never end."""
    with suppress(OSError, ValueError):  # what can't be looked at, reading tells why
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116 - a Path would lose the "./" of "./-"
            raise AudioInputError(f"{printable(path)} is a pipe, not a file", hint="voxcli once - reads a pipe")
