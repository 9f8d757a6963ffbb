"""Reads recordings ahead of the engine on two threads, up to a limit in seconds."""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

from voxcli.audio.clip import AudioClip
from voxcli.batch.fingerprint import Content, content_of
from voxcli.batch.scheduler import Job
from voxcli.errors import AudioInputError
from voxcli.printable import printable

READERS = 2  # threads; they wait for the disk, as a second of FLAC is decoded in a millisecond
SECONDS_AHEAD = 600.0  # audio read ahead, 38 MB; each reader may exceed it by one recording
CLIPS_AHEAD = 16  # clips read ahead, enough for workers that take one at a time

Read = Callable[[str], AudioClip]


class Jobs(Protocol):
    """The source of jobs, such as a scheduler."""

    @property
    def stopped(self) -> bool: ...

    def take(self) -> Job | None:
        """Wait for the next job and return it; None if there are no more."""
        ...

    def stop(self) -> None:
        """Hand out no more jobs."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with its recording, or with the error of reading it."""

    job: Job
    clip: AudioClip | Exception
    content: Content | None = None  # None: it is remote or could not be read

    @property
    def seconds(self) -> float:
        return self.clip.seconds if isinstance(self.clip, AudioClip) else 0.0


class Prefetcher:
    """Gives workers jobs whose recordings have been read. A context manager that ends its threads."""

    def __init__(self, scheduler: Jobs, read: Read, clips_ahead: int = CLIPS_AHEAD) -> None:
        """Take jobs from `scheduler`. `read` returns the clip of a path, or raises VoxError."""
        self._clips_ahead = clips_ahead
        self._failure: Exception | None = None  # error of the scheduler, not of a recording
        self._scheduler = scheduler
        self._read = read
        self._changed = threading.Condition()
        self._prepared: deque[Prepared] = deque()
        self._seconds = 0.0
        self._readers = [threading.Thread(target=self._read_ahead, name="reader", daemon=True) for _ in range(READERS)]
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
        """Wait for the next job with its recording; None if there are no more, or the scheduler was stopped.

        Raises what the scheduler raised on a reader's thread.
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

    def _read_ahead(self) -> None:
        try:
            while self._wait_for_room() and (job := self._scheduler.take()):
                prepared = self._prepared_job(job)
                with self._changed:
                    self._prepared.append(prepared)
                    self._seconds += prepared.seconds
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again by take()
            self._failure = error
        finally:
            with self._changed:
                self._reading -= 1
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until another recording may be read; return False once the scheduler is stopped."""
        with self._changed:
            while not self._scheduler.stopped and (
                self._seconds >= SECONDS_AHEAD or len(self._prepared) >= self._clips_ahead
            ):
                self._changed.wait()
            return not self._scheduler.stopped

    def _prepared_job(self, job: Job) -> Prepared:
        path = job.item.path
        try:
            _refuse_pipe(path)
            clip = self._read(path)
            return Prepared(job, clip, content_of(path))  # afterwards: the decoder bounds what it reads
        except Exception as error:  # noqa: BLE001 - becomes the item's record, whatever it is
            return Prepared(job, error)


def _refuse_pipe(path: str) -> None:
    """Raise AudioInputError for a named pipe, which can be read only once and may never end."""
    with suppress(OSError, ValueError):  # reading reports why a path can't be inspected
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116 - a Path would drop the "./" of "./-"
            raise AudioInputError(f"{printable(path)} is a pipe, not a file", hint="voxcli once - reads a pipe")
