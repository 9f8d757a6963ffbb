"""Builds and runs a batch: many recordings, one record for each."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from voxcli.app.parts import Notice, engine_options, open_engine, open_servers, open_voice
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.batch.item import ItemSource
    from voxcli.batch.results import Results
    from voxcli.batch.scheduler import Scheduler
    from voxcli.batch.stats import Stats, Status
    from voxcli.batch.worker import SpokenReplies, Worker
    from voxcli.config.loading import Settings

SERVER_CONCURRENCY = 8  # default for requests at once to a server


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch run that are not settings."""

    inputs: Sequence[str]  # files, folders, globs, manifests; "-": a list on standard input
    out: Path  # results file
    resume: bool = False  # continue a results file that has records
    retry_failed: bool = False  # continue, and answer failed items again
    fail_fast: bool = False  # stop at the first item that fails
    save_replies: Path | None = None  # folder for spoken replies
    concurrency: int | None = None  # items at once, on each server
    batch_size: int | None = None  # replies that the voxtral engine generates at once
    urls: Sequence[str] = ()  # servers of the remote engine
    ray: str | None = None  # address of a Ray cluster, or "auto"
    workers: int | None = None  # engines on the Ray cluster
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Batch:
    """A batch run whose parts are all open."""

    stats: "Stats"  # counts all records in the results file
    items: int
    left: int  # items that have no record yet
    _options: BatchOptions
    _scheduler: "Scheduler"
    _results: "Results"
    _workers: "Sequence[Worker]"

    def answer(self, stop: threading.Event) -> "Status | None":
        """Answer the items that are left and show progress. Returns None if none are left.

        Args:
            stop: set it to begin no more items; those in flight are finished.
        """
        from voxcli.app.views import batch_progress
        from voxcli.batch.runner import Run

        if not self.left:
            return None
        with batch_progress() as view:
            run = Run(self._scheduler, self.left, self._results.write, self.stats, view, stop, self._options.fail_fast)
            return run.answer(self._workers)


def open_batch(settings: "Settings", options: BatchOptions, stack: ExitStack, notice: Notice) -> Batch:
    """Open the inputs and the results file and, if items are left, the workers that answer them.

    Raises:
        VoxError: options exclude each other, inputs or results can't be used, or there is no engine.
    """
    from voxcli.batch.inputs import left_out_notice, sources
    from voxcli.batch.plan import survey
    from voxcli.batch.results import Results
    from voxcli.batch.scheduler import Scheduler
    from voxcli.batch.stats import Stats

    _refuse_cluster_options(options)
    _refuse_batch_size(options.batch_size, settings.engine)
    inputs = sources(options.inputs, sys.stdin.buffer if sys.stdin else None, stack)
    _refuse_replies_in_inputs(inputs, options.save_replies)
    plan, stats = survey(inputs), Stats()
    if left_out := left_out_notice(inputs):
        notice(left_out)
    results = stack.enter_context(
        Results(
            options.out,
            resume=options.resume or options.retry_failed,
            retry_failed=options.retry_failed,
            count=stats.add,
        )
    )
    left = sum(planned.item.id not in results for planned in plan) if len(results) else plan.items
    if len(results):
        notice(f"{plan.items - left} of {plan.items} items are finished")
    scheduler = Scheduler(iter(plan), results, settings.instructions)
    workers: list[Worker] = []
    if left and options.ray:
        workers = _open_cluster(settings, options, stack, notice, scheduler, left)
    elif left:
        workers = _open_workers(settings, options, stack, notice, scheduler, left)
    return Batch(stats, plan.items, left, options, scheduler, results, workers)


def _open_workers(
    settings: "Settings", options: BatchOptions, stack: ExitStack, notice: Notice, scheduler: "Scheduler", left: int
) -> "list[Worker]":
    """Open the engine and its workers on this machine."""
    from voxcli.app.views import loading_progress
    from voxcli.batch.prefetch import Prefetcher
    from voxcli.batch.urls import read_recording
    from voxcli.batch.worker import EngineWorker, workers_wanted

    replies = _spoken_replies(options.save_replies, settings, stack)
    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        if settings.engine == "remote":
            engine = open_servers(settings, options.urls, options.concurrency or SERVER_CONCURRENCY, stack, notice)
        else:
            engine = open_engine(settings, stack, notice, fetching, warming, rows=options.batch_size or 0, items=left)
            _refuse_batch_size(options.batch_size, engine.name)
    load_seconds = time.perf_counter() - started
    count = workers_wanted(
        engine, None if settings.engine == "remote" else options.concurrency
    )  # a pool of servers counts them itself
    for _ in range(min(count, os.cpu_count() or 1) - 1):  # one voice for each CPU, at most
        replies += _spoken_replies(options.save_replies, settings, stack)
    max_seconds = settings.audio.max_seconds
    prefetcher = stack.enter_context(Prefetcher(scheduler, lambda path: read_recording(path, max_seconds=max_seconds)))
    return [EngineWorker(prefetcher, engine, load_seconds, replies[number % len(replies)]) for number in range(count)]


def _refuse_batch_size(size: int | None, engine: str) -> None:
    """Raise ConfigError if a batch size is given for an engine that has no batches."""
    if size is not None and engine not in ("auto", "voxtral"):
        raise ConfigError(f"--batch-size is for the voxtral engine, not for {engine}", hint="use --concurrency")


def _open_cluster(
    settings: "Settings", options: BatchOptions, stack: ExitStack, notice: Notice, scheduler: "Scheduler", left: int
) -> "list[Worker]":
    """Connect to the Ray cluster and start its workers."""
    from voxcli.batch.ray.actor import EngineChoice, Setup
    from voxcli.batch.ray.cluster import ActorPool, Size, connected
    from voxcli.engines.voxtral.checkpoint.catalog import KNOWN

    stack.enter_context(connected(options.ray or ""))
    wanted = replace(engine_options(settings), rows=options.batch_size or 0, items=left)
    if wanted.model not in KNOWN and Path(wanted.model).is_dir():  # other names mean the same on every machine
        wanted = replace(wanted, model=str(Path(wanted.model).absolute()))
    engine = EngineChoice(wanted, tuple(options.urls), options.concurrency or SERVER_CONCURRENCY)
    at_once = None if wanted.engine == "remote" else options.concurrency
    setup = Setup(engine, str(Path.cwd()), settings.audio.max_seconds, at_once)
    return [ActorPool(scheduler, setup, Size(options.workers, options.gpus_per_worker), left, notice)]


def _refuse_cluster_options(options: BatchOptions) -> None:
    """Raise ConfigError for cluster flags without a cluster, or with flags that exclude it."""
    if options.ray is None and (options.workers, options.gpus_per_worker) != (None, None):
        raise ConfigError("--workers and --gpus-per-worker are for a cluster", hint="add --ray auto")
    if options.ray is not None and options.save_replies:
        raise ConfigError("--save-replies writes on this machine, but --ray answers on others", hint="leave one out")


def _spoken_replies(folder: Path | None, settings: "Settings", stack: ExitStack) -> "list[SpokenReplies | None]":
    """Open a voice that writes to a folder; [None] if no folder is given."""
    if folder is None:
        return [None]
    from voxcli.batch.worker import SpokenReplies

    return [SpokenReplies(folder.expanduser(), stack.enter_context(open_voice(settings)))]


def _refuse_replies_in_inputs(inputs: "Sequence[ItemSource]", folder: Path | None) -> None:
    """Raise ConfigError if replies would be written into a folder of recordings."""
    from voxcli.batch.inputs import Folder

    for source in inputs if folder else ():
        if isinstance(source, Folder) and folder and folder.resolve().is_relative_to(Path(source.path).resolve()):
            raise ConfigError(
                f"{folder} is in {source.path}: replies would be answered like recordings",
                hint="give --save-replies a folder beside it",
            )
