"""Builds and runs a batch: many recordings, one record for each."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxcli.app.parts import Notice, engine_options, lasting_instructions, open_engine, open_reply_voices, open_servers
from voxcli.app.tool_access import open_allowed_tools, usable_tools
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.batch.changes import Asked, Policy
    from voxcli.batch.item import ItemSource
    from voxcli.batch.plan import Plan
    from voxcli.batch.replies import SpokenReplies
    from voxcli.batch.results import Results
    from voxcli.batch.scheduler import Scheduler
    from voxcli.batch.stats import Stats, Status
    from voxcli.batch.worker import Worker
    from voxcli.config.loading import Settings
    from voxcli.core.protocols import Engine
    from voxcli.engines.factory import EngineOptions
    from voxcli.output_files import OutputFiles
    from voxcli.tools.allowed import AllowedTools

SERVER_CONCURRENCY = 8  # default for requests at once to a server


@dataclass(frozen=True)
class BatchOptions:
    """Options of a batch run that are not settings."""

    inputs: Sequence[str]  # files, folders, globs, manifests; "-": a list or a manifest on standard input
    out: Path  # results file; "-": standard output
    resume: bool = False  # continue a results file that has records
    retry_failed: bool = False  # continue, and answer failed items again
    keep: bool = False  # continue, and keep records whose items ask something else now
    redo_changed: bool = False  # continue, and answer such items again
    force: bool = False  # replace existing results, unless they are continued, and existing replies
    fail_fast: bool = False  # stop at the first item that fails
    save_replies: Path | None = None  # folder for spoken replies
    concurrency: int | None = None  # items at once, on each server
    batch_size: int | None = None  # replies that the voxtral engine generates at once
    urls: Sequence[str] = ()  # servers of the remote engine
    ray: str | None = None  # address of a Ray cluster, or "auto"
    workers: int | None = None  # engines on the Ray cluster
    gpus_per_worker: float | None = None
    other_inputs: Sequence[str] = ()  # further files that are read, such as the settings
    allow_tools: Sequence[str] = ()  # names of the tools that the model may call

    @property
    def continues(self) -> bool:
        """Whether a results file with records is continued."""
        return self.resume or self.retry_failed or self.keep or self.redo_changed


@dataclass(frozen=True)
class Batch:
    """A batch run whose parts are all open."""

    stats: "Stats"  # counts all records in the results file
    items: int
    left: int  # items that have no record yet
    _options: BatchOptions
    _scheduler: "Scheduler"
    _write: "Callable[[dict[str, Any]], None]"
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
            run = Run(self._scheduler, self.left, self._write, self.stats, view, stop, self._options.fail_fast)
            return run.answer(self._workers)


def open_batch(settings: "Settings", options: BatchOptions, stack: ExitStack, notice: Notice) -> Batch:
    """Open the inputs and the results file and, if items are left, the workers that answer them.

    Raises:
        VoxError: options exclude each other, inputs or results can't be used, a file that is read would be
            overwritten, finished items ask something else now, or there is no engine.
    """
    from voxcli.batch.changes import settle
    from voxcli.batch.inputs import left_out_notice, sources
    from voxcli.batch.plan import survey
    from voxcli.batch.scheduler import Scheduler
    from voxcli.batch.urls import proxy_notice

    _refuse_options(settings, options)
    inputs = sources(options.inputs, sys.stdin.buffer if sys.stdin else None, stack)
    _refuse_replies_in_inputs(inputs, options.save_replies)
    plan = survey(inputs)
    if left_out := left_out_notice(inputs):
        notice(left_out)
    files = _checked_files(options, plan)
    is_new = not options.out.exists()
    if is_new:  # The results file must not exist yet.
        _check_replies(files, options, plan)
    results, stats, has_replies = _open_results(settings, options, stack)
    asked, policy = _asked(settings, options), _policy(options)
    stats = settle(plan, results, asked, policy, stats, notice)
    left = _left(plan, results)
    if len(results):
        notice(f"{plan.items - left} of {plan.items} items are finished")
    if not is_new:
        _check_replies(files, options, plan, results, may_have_own=options.continues and has_replies)
    if left and not options.ray and (way := proxy_notice(planned.item.path for planned in plan)):
        notice(way)  # Machines of a cluster have environments of their own.
    scheduler = Scheduler(iter(plan), results, settings.instructions)
    workers: list[Worker] = []
    if left and options.ray:
        workers = _open_cluster(settings, options, stack, notice, scheduler, left)
    elif left:
        tools = open_allowed_tools(settings, options.allow_tools, stack, notice)
        engine, load_seconds = _open_engine(settings, options, stack, notice, left)
        usable_tools(tools, engine, notice)
        if not (asked.engine and asked.model):
            asked = replace(asked, engine=engine.name, model=engine.model)
            stats = settle(plan, results, asked, policy, stats, notice)
            left = _left(plan, results)
        workers = _engine_workers(settings, options, stack, notice, scheduler, engine, load_seconds, tools)
    return Batch(stats, plan.items, left, options, scheduler, _writer(results, settings, asked), workers)


def _checked_files(options: BatchOptions, plan: "Plan") -> "OutputFiles":
    """Check that no input is overwritten. Raises ConfigError."""
    from voxcli.batch.plan import LocalPaths
    from voxcli.batch.urls import local_path
    from voxcli.output_files import STANDARD, OutputFiles

    files = OutputFiles(force=options.force)
    named = [path for given in options.inputs if (path := local_path(given)) is not None]
    files.add_inputs([*options.other_inputs, *(path for path in named if not Path(path).is_dir())])
    if str(options.out) == STANDARD:
        files.check_stdout()
    else:
        files.check(options.out, "--out", is_own=True)  # `Results` refuses a file that is not its own
    if options.save_replies:
        if str(options.save_replies) == STANDARD:
            raise ConfigError("--save-replies needs a folder; - is standard output", hint="--save-replies replies")
        files.add_inputs(LocalPaths(plan))
    return files


def _open_results(settings: "Settings", options: BatchOptions, stack: ExitStack) -> "tuple[Results, Stats, bool]":
    """Open the results file. Return it with its stats, and whether its run may have saved replies in this folder."""
    from voxcli.batch.replies import SavedReplies
    from voxcli.batch.results import Results
    from voxcli.batch.stats import Stats

    stats, saved = Stats(), SavedReplies(options.save_replies)

    def count(record: dict[str, Any]) -> None:
        stats.add(record)
        saved.add(record)

    results = Results(
        options.out,
        resume=options.continues,
        retry_failed=options.retry_failed,
        force=options.force,
        remembers=settings.understood == "remember",
        count=count,
    )
    return stack.enter_context(results), stats, saved.found or not stats.done


def _left(plan: "Plan", results: "Results") -> int:
    """Return how many items have no record."""
    return sum(planned.item.id not in results for planned in plan) if len(results) else plan.items


def _policy(options: BatchOptions) -> "Policy":
    if options.keep:
        return "keep"
    return "redo" if options.redo_changed else "stop"


def _asked(settings: "Settings", options: BatchOptions) -> "Asked":
    """Return what the settings ask of every item. What only the opened engine knows is None."""
    from voxcli.batch.changes import Asked
    from voxcli.engines import factory

    engine, model = factory.named_engine(_options_for(settings, options))
    return Asked(lasting_instructions(settings), engine, model, options.allow_tools)


def _writer(results: "Results", settings: "Settings", asked: "Asked") -> "Callable[[dict[str, Any]], None]":
    """Return what writes a record, so that a later run knows it by what was asked, whatever the date is then."""
    from voxcli.batch.fingerprint import of_template

    return lambda record: results.write(of_template(record, settings.instructions, asked.instructions))


def _options_for(settings: "Settings", options: BatchOptions) -> "EngineOptions":
    """Return the options of the engine; on a cluster, a model's folder has the same name on every machine."""
    wanted = engine_options(settings)
    if options.ray and Path(wanted.model).is_dir():
        from voxcli.engines.voxtral.checkpoint.kinds import KNOWN

        if wanted.model not in KNOWN:
            return replace(wanted, model=str(Path(wanted.model).absolute()))
    return wanted


def _open_engine(
    settings: "Settings", options: BatchOptions, stack: ExitStack, notice: Notice, left: int
) -> "tuple[Engine, float]":
    """Open the engine on this machine. Return it with the seconds that this took."""
    from voxcli.app.views import loading_progress

    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        if settings.engine == "remote":
            engine = open_servers(settings, options.urls, options.concurrency or SERVER_CONCURRENCY, stack, notice)
        else:
            engine = open_engine(settings, stack, notice, fetching, warming, slots=options.batch_size or 0, items=left)
            _refuse_batch_size(options.batch_size, engine.name)
    return engine, time.perf_counter() - started


def _engine_workers(
    settings: "Settings",
    options: BatchOptions,
    stack: ExitStack,
    notice: Notice,
    scheduler: "Scheduler",
    engine: "Engine",
    load_seconds: float,
    tools: "AllowedTools | None",
) -> "list[Worker]":
    """Start reading recordings, and return the workers that answer them with an engine."""
    from voxcli.batch.prefetch import Prefetcher
    from voxcli.batch.urls import read_recording
    from voxcli.batch.worker import EngineWorker, workers_wanted

    count = workers_wanted(
        engine, None if settings.engine == "remote" else options.concurrency
    )  # a pool of servers counts them itself
    replies: list[SpokenReplies | None] = []
    for _ in range(min(count, os.cpu_count() or 1)):  # one voice for each CPU, at most
        replies += _spoken_replies(options.save_replies, settings, stack, cache(notice))  # Each message once.
    max_seconds = settings.audio.max_seconds
    prefetcher = stack.enter_context(Prefetcher(scheduler, lambda path: read_recording(path, max_seconds=max_seconds)))
    return [
        EngineWorker(prefetcher, engine, load_seconds, replies[number % len(replies)], settings.understood, tools=tools)
        for number in range(count)
    ]


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

    stack.enter_context(connected(options.ray or ""))
    wanted = replace(_options_for(settings, options), slots=options.batch_size or 0, items=left)
    engine = EngineChoice(wanted, tuple(options.urls), options.concurrency or SERVER_CONCURRENCY)
    at_once = None if wanted.engine == "remote" else options.concurrency
    setup = Setup(engine, str(Path.cwd()), settings.audio.max_seconds, at_once, settings.understood)
    return [ActorPool(scheduler, setup, Size(options.workers, options.gpus_per_worker), left, notice)]


def _refuse_options(settings: "Settings", options: BatchOptions) -> None:
    """Raise ConfigError for flags that exclude each other or do nothing."""
    if options.keep and options.redo_changed:
        raise ConfigError("--keep and --redo-changed exclude each other", hint="leave one out")
    if options.continues and str(options.out) == "-":
        raise ConfigError("standard output can't be continued", hint="name the results file with --out FILE.jsonl")
    _refuse_batch_size(options.batch_size, settings.engine)
    if options.ray is None and (options.workers, options.gpus_per_worker) != (None, None):
        raise ConfigError("--workers and --gpus-per-worker are for a cluster", hint="add --ray auto")
    if options.ray is not None and options.save_replies:
        raise ConfigError("--save-replies writes on this machine, but --ray answers on others", hint="leave one out")
    if options.ray is not None and options.allow_tools:
        raise ConfigError("--allow-tool runs tools on this machine, but --ray answers on others", hint="leave one out")


def _check_replies(
    files: "OutputFiles",
    options: BatchOptions,
    plan: "Plan",
    results: "Results | None" = None,
    *,
    may_have_own: bool = False,
) -> None:
    """Check the files of the spoken replies. Raises ConfigError.

    Args:
        may_have_own: replies that voxcli wrote belong to the run that is continued, and may be replaced.
    """
    from voxcli.batch.replies import ReplyPaths
    from voxcli.tts.wav_speaker import is_own_sound

    if options.save_replies:
        paths = ReplyPaths(options.save_replies.expanduser(), plan, results)
        files.check_all(paths, "--save-replies", lambda path: may_have_own and is_own_sound(path))


def _spoken_replies(
    folder: Path | None, settings: "Settings", stack: ExitStack, notice: Notice
) -> "list[SpokenReplies | None]":
    """Open a voice that writes to a folder; [None] if no folder is given."""
    if folder is None:
        return [None]
    from voxcli.batch.replies import SpokenReplies

    voices = stack.enter_context(open_reply_voices(settings, notice))
    return [SpokenReplies(folder.expanduser(), voices, voices.language_of)]


def _refuse_replies_in_inputs(inputs: "Sequence[ItemSource]", folder: Path | None) -> None:
    """Raise ConfigError if replies would be written into a folder of recordings."""
    from voxcli.batch.inputs import Folder

    for source in inputs if folder else ():
        if isinstance(source, Folder) and folder and folder.resolve().is_relative_to(Path(source.path).resolve()):
            raise ConfigError(
                f"{folder} is in {source.path}: replies would be answered like recordings",
                hint="give --save-replies a folder beside it",
            )
