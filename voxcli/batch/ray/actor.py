"""Answers jobs that arrive from elsewhere with an engine on this machine.

It has a prefetcher and workers, like a run on one machine, but jobs are passed to it instead of taken from a scheduler.
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
from voxcli.core.protocols import Engine
from voxcli.core.session import Turn
from voxcli.core.understanding import UnderstoodMode
from voxcli.engines import factory

READ_AHEAD = 2  # items per worker: while one is answered, the next is read

Answer = tuple[dict[str, Any], Turn | None]  # a record, and the turn that the session remembers


@dataclass(frozen=True)
class EngineChoice:
    """Opens the engine that the user asked for, with the weights and the key of the machine it is called on."""

    options: factory.EngineOptions
    urls: Sequence[str] = ()  # servers that share the work
    concurrency: int = 1  # requests at once to each server

    def __call__(self, notice: factory.Notice) -> Engine:
        """Return the engine. Raises what `voxcli.engines.factory.open_engine` raises."""
        if self.options.engine == "remote":
            return factory.open_pool(self.options, self.urls, self.concurrency, notice)
        return factory.open_engine(self.options, cache_folder(), notice)


@dataclass(frozen=True)
class Setup:
    """What a worker is built from; it is pickled and sent to its machine."""

    open_engine: Callable[[factory.Notice], Engine]
    folder: str  # base of relative paths
    max_seconds: float  # longest recording
    concurrency: int | None = None  # items at once; None: as the engine prefers
    understood: UnderstoodMode = "off"


@dataclass(frozen=True)
class WorkerReady:
    """Facts about a worker whose engine is loaded."""

    name: str  # name of the engine
    model: str
    host: str
    version: str  # version of voxcli
    room: int  # items that it may have at once
    load_seconds: float
    notices: tuple[str, ...]


class ActorWorker:
    """Answers jobs. The future of each gets its answer or an error."""

    def __init__(self, setup: Setup, read: Read | None = None) -> None:
        """Load the engine and start. Raises what opening the engine raises."""
        self._setup = setup
        self._pending: dict[int, _PendingJob] = {}  # Keys: id() of the job, because an item may be sent twice.
        self._failure: BaseException | None = None  # error that ended a worker's thread
        self._jobs = _JobQueue()
        notices: list[str] = []
        started = time.perf_counter()
        self._engine = setup.open_engine(notices.append)
        load_seconds = time.perf_counter() - started
        count = workers_wanted(self._engine, setup.concurrency)
        self._prefetcher = Prefetcher(
            self._jobs, read or (lambda path: read_recording(path, max_seconds=setup.max_seconds))
        )
        self._prefetcher.__enter__()
        workers = [
            EngineWorker(self._prefetcher, self._engine, load_seconds, understood=setup.understood)
            for _ in range(count)
        ]
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
        """Queue a job. Its record names the recording as the job does."""
        pending = _PendingJob(job.item.path)
        if not is_url(pending.path):
            job = replace(job, item=replace(job.item, path=str(Path(self._setup.folder, pending.path))))
        self._pending[id(job)] = pending
        self._jobs.put(job)
        if self._failure:
            self._fail(self._failure)
        return pending.answer

    def close(self) -> None:
        """Finish the jobs in flight and stop."""
        self._prefetcher.__exit__()
        for thread in self._threads:
            thread.join()
        self._engine.close()

    def _work(self, worker: EngineWorker) -> None:
        try:
            worker.work(self._report)
        except BaseException as error:  # noqa: BLE001 - raised again where the answers are awaited
            self._failure = error
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        while self._pending:
            self._pending.popitem()[1].answer.set_exception(error)

    def _report(self, outcome: Outcome) -> None:
        pending = self._pending.pop(id(outcome.job))
        outcome.record["audio"]["path"] = pending.path
        pending.answer.set_result((outcome.record, outcome.turn))


@dataclass(frozen=True)
class _PendingJob:
    path: str  # path of the recording as the job names it
    answer: Future[Answer] = field(default_factory=Future)


class _JobQueue:
    """Implements `voxcli.batch.prefetch.Jobs` with a queue."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.stopped = False

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def take(self) -> Job | None:
        job = self._jobs.get()
        if job is None:
            self._jobs.put(None)  # The next caller finds it.
        return job

    def stop(self) -> None:
        self.stopped = True
        self._jobs.put(None)
