"""What answers on one machine of several: an engine, and jobs that come one by one from elsewhere.

It is what a run on one machine is made of - a shelf that reads recordings ahead, workers with an engine - but its
jobs are handed in instead of taken from a desk. It knows nothing of what carries them here.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from voxcli import __version__
from voxcli.batch.prefetch import Prefetcher, Read
from voxcli.batch.scheduler import Job, Outcome
from voxcli.batch.urls import is_url, read_recording
from voxcli.batch.worker import EngineWorker, workers_wanted
from voxcli.config.paths import cache_folder
from voxcli.core.session import Turn
from voxcli.core.turn import Engine
from voxcli.engines import factory

READ_AHEAD = 2  # items at a station, for each that it answers: while one is answered, the next is read

Answer = tuple[dict[str, Any], Turn | None]  # a record, and what the session remembers of it


@dataclass(frozen=True)
class EngineChoice:
    """Opens the engine that a user asked for, with the weights and the key that are found where it is called."""

    options: factory.EngineOptions
    urls: Sequence[str] = ()  # of servers, which share the work
    concurrency: int = 1  # on each server

    def __call__(self, notice: factory.Notice) -> Engine:
        """Return the engine; raises what `voxcli.engines.factory.open_engine` raises."""
        if self.options.engine == "remote":
            return factory.open_pool(self.options, self.urls, self.concurrency, notice)
        return factory.open_engine(self.options, cache_folder(), notice)


@dataclass(frozen=True)
class Setup:
    """What a station is made of: plain values, and a function that is imported where it is made."""

    open_engine: Callable[[factory.Notice], Engine]
    folder: str  # that relative paths are meant from
    max_seconds: float  # of a recording
    concurrency: int | None = None  # items at once; None: what the engine does best


@dataclass(frozen=True)
class WorkerReady:
    """What a station says of itself once its engine is loaded."""

    name: str  # of the engine
    model: str
    host: str
    version: str  # of voxcli
    room: int  # items that may be there at once
    load_seconds: float
    notices: tuple[str, ...]


class ActorWorker:
    """Answers jobs; one that is asked for is one that is answered, or its future has the error."""

    def __init__(self, setup: Setup, read: Read | None = None) -> None:
        """Load the engine and begin; raises what opening the engine raises."""
        self._setup = setup
        self._asked: dict[int, _Asked] = {}  # by the identity of a job: an item may be asked for twice
        self._failure: BaseException | None = None  # of a worker
        self._inbox = _Inbox()
        notices: list[str] = []
        started = time.perf_counter()
        self._engine = setup.open_engine(notices.append)
        load_seconds = time.perf_counter() - started
        count = workers_wanted(self._engine, setup.concurrency)
        self._prefetcher = Prefetcher(
            self._inbox, read or (lambda path: read_recording(path, max_seconds=setup.max_seconds))
        )
        self._prefetcher.__enter__()
        workers = [EngineWorker(self._prefetcher, self._engine, load_seconds) for _ in range(count)]
        self._threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()
        self.ready = WorkerReady(
            self._engine.name,
            self._engine.model,
            socket.gethostname(),
            __version__,
            count * READ_AHEAD,
            load_seconds,
            tuple(notices),
        )

    def answer(self, job: Job) -> Future[Answer]:
        """Take a job; its record names the recording as the job does."""
        asked = _Asked(job.item.path)
        if not is_url(asked.path):
            job = replace(job, item=replace(job.item, path=str(Path(self._setup.folder, asked.path))))
        self._asked[id(job)] = asked
        self._inbox.put(job)
        if self._failure:
            self._fail(self._failure)
        return asked.answer

    def close(self) -> None:
        """Finish what is being answered, and end."""
        self._prefetcher.__exit__()
        for thread in self._threads:
            thread.join()
        self._engine.close()

    def _work(self, worker: EngineWorker) -> None:
        try:
            worker.work(self._report)
        except BaseException as error:  # noqa: BLE001 - raised again where the answers are waited for
            self._failure = error
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        while self._asked:
            self._asked.popitem()[1].answer.set_exception(error)

    def _report(self, outcome: Outcome) -> None:
        asked = self._asked.pop(id(outcome.job))
        outcome.record["audio"]["path"] = asked.path
        asked.answer.set_result((outcome.record, outcome.turn))


@dataclass(frozen=True)
class _Asked:
    path: str  # of the recording, as the job names it
    answer: Future[Answer] = field(default_factory=Future)


class _Inbox:
    """Implements `voxcli.batch.prefetch.Jobs` with what is put in."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.stopped = False

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def take(self) -> Job | None:
        job = self._jobs.get()
        if job is None:
            self._jobs.put(None)  # for the next who asks
        return job

    def stop(self) -> None:
        self.stopped = True
        self._jobs.put(None)
