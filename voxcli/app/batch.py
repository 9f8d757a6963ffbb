"""`voxcli batch`: many recordings, one record each."""

import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.common import (
    INTERRUPTED,
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    ModelFlag,
    QuantizeFlag,
    UrlsFlag,
    VerboseFlag,
    VoiceFlag,
    given,
    note,
    set_by_ctrl_c,
)
from voxcli.cli.parts import engine_options, load_settings, open_engine, open_servers, open_voice
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.batch.desk import Desk
    from voxcli.batch.items import Source
    from voxcli.batch.plan import Plan
    from voxcli.batch.results import Results
    from voxcli.batch.tally import Status, Tally
    from voxcli.batch.worker import SpokenReplies, Worker
    from voxcli.config import Settings

SERVER_CONCURRENCY = 8  # requests at once where nobody says


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, beside the settings."""

    inputs: list[str]
    out: Path
    resume: bool
    retry_failed: bool
    fail_fast: bool
    save_replies: Path | None
    max_p95: float | None
    concurrency: int | None
    batch_size: int | None
    urls: list[str]
    ray: str | None
    workers: int | None
    gpus_per_worker: float | None


def batch(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, a .jsonl manifest; - is a list.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where the records go, one a line.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a file that has records in it.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Go on, and try failed items again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first item that fails.")] = False,
    save_replies: Annotated[
        Path | None, typer.Option("--save-replies", metavar="DIR", help="Write the spoken replies too.")
    ] = None,
    max_p95: Annotated[
        float | None,
        typer.Option("--max-p95", metavar="SECONDS", min=0, help="Fail if 1 first token in 20 comes later."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            max=1024,
            help="Items at once, if the engine allows it; for each server.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, max=1024, help="Replies that the voxtral engine makes at once."
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="auto|ADDRESS", help="Answer on a Ray cluster, by all its machines.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Engines on the cluster; else all it has room for."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option("--gpus-per-worker", metavar="N", min=0, help="1 where the cluster has GPUs, else 0."),
    ] = None,
    url: UrlsFlag = None,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    _verbose: VerboseFlag = False,
) -> None:
    """Answer many recordings: one JSON record a line, written as each is done."""
    urls = url or []
    first = urls[0] if urls else None
    flags = given(
        engine=engine,
        url=first,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        voice=voice,
    )
    settings = load_settings(config, flags)
    resume = resume or retry_failed
    cluster = ray, workers, gpus_per_worker
    asked = _Asked(
        inputs, out, resume, retry_failed, fail_fast, save_replies, max_p95, concurrency, batch_size, urls, *cluster
    )
    _refuse_cluster_flags(asked)
    stop = threading.Event()
    try:
        with ExitStack() as stack:
            code = _run(asked, settings, stack, stop)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # before the first item, while an engine may be loading that would keep the end waiting
    if stop.is_set():
        note(f"stopped; to go on: {_again('--resume')}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(code)


def _run(asked: _Asked, settings: "Settings", stack: ExitStack, stop: threading.Event) -> int:
    """Open the parts, those that are cheap and may be refused first; answer what is left; return the exit code."""
    from voxcli.batch.items import sources
    from voxcli.batch.plan import survey
    from voxcli.batch.results import Results
    from voxcli.batch.tally import Tally

    _refuse_batch_size(asked.batch_size, settings.engine)
    inputs = sources(asked.inputs, sys.stdin.buffer if sys.stdin else None, stack)
    _refuse_replies_among(inputs, asked.save_replies)
    plan, tally = survey(inputs), Tally()
    results = stack.enter_context(
        Results(asked.out, resume=asked.resume, retry_failed=asked.retry_failed, count=tally.add)
    )
    left = sum(planned.item.id not in results for planned in plan) if len(results) else plan.items
    if len(results):
        note(f"{plan.items - left} of {plan.items} items are finished")
    status = _answered(asked, settings, stack, stop, plan, results, tally, left) if left else None
    return _concluded(asked, tally, status)


def _answered(
    asked: _Asked,
    settings: "Settings",
    stack: ExitStack,
    stop: threading.Event,
    plan: "Plan",
    results: "Results",
    tally: "Tally",
    left: int,
) -> "Status":
    from voxcli.batch.desk import Desk
    from voxcli.batch.runner import Run
    from voxcli.ui import batch_progress

    desk = Desk(iter(plan), results, settings.instructions)
    workers = _cluster(asked, settings, stack, desk, left) if asked.ray else _workers(asked, settings, stack, desk)
    with set_by_ctrl_c(stop), batch_progress() as view:
        return Run(desk, left, results.write, tally, view, stop, asked.fail_fast).answer(workers)


def _workers(asked: _Asked, settings: "Settings", stack: ExitStack, desk: "Desk") -> "list[Worker]":
    """Open the engine and all that answers with it on this machine."""
    from voxcli.batch.shelf import Shelf
    from voxcli.batch.urls import read_recording
    from voxcli.batch.worker import EngineWorker, workers_wanted
    from voxcli.ui import loading_progress

    replies = _spoken_replies(asked.save_replies, settings, stack)
    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        if settings.engine == "remote":
            engine = open_servers(settings, asked.urls, asked.concurrency or SERVER_CONCURRENCY, stack, note)
        else:
            engine = open_engine(settings, stack, note, fetching, warming, rows=asked.batch_size or 0)
            _refuse_batch_size(asked.batch_size, engine.name)
    load_seconds = time.perf_counter() - started
    count = workers_wanted(engine, None if settings.engine == "remote" else asked.concurrency)  # servers sum it up
    for _ in range(min(count, os.cpu_count() or 1) - 1):  # as many voices as may well speak at once
        replies += _spoken_replies(asked.save_replies, settings, stack)
    max_seconds = settings.audio.max_seconds
    shelf = stack.enter_context(Shelf(desk, lambda path: read_recording(path, max_seconds=max_seconds)))
    return [EngineWorker(shelf, engine, load_seconds, replies[number % len(replies)]) for number in range(count)]


def _refuse_batch_size(size: int | None, engine: str) -> None:
    """Raise ConfigError where there is no batch: the other engines have a number of items at once."""
    if size is not None and engine not in ("auto", "voxtral"):
        raise ConfigError(f"--batch-size is for the voxtral engine, not for {engine}", hint="use --concurrency")


def _cluster(asked: _Asked, settings: "Settings", stack: ExitStack, desk: "Desk", left: int) -> "list[Worker]":
    """Join the cluster and start what answers there."""
    from voxcli.batch.cluster import Crew, Size, connected
    from voxcli.batch.station import EngineChoice, Setup

    stack.enter_context(connected(asked.ray or ""))
    options = replace(engine_options(settings), rows=asked.batch_size or 0)
    if Path(options.model).is_dir():  # a name, else, which means the same on each machine
        options = replace(options, model=str(Path(options.model).absolute()))
    engine = EngineChoice(options, tuple(asked.urls), asked.concurrency or SERVER_CONCURRENCY)
    setup = Setup(
        engine, str(Path.cwd()), settings.audio.max_seconds, None if options.engine == "remote" else asked.concurrency
    )
    return [Crew(desk, setup, Size(asked.workers, asked.gpus_per_worker), left, note)]


def _refuse_cluster_flags(asked: _Asked) -> None:
    """Raise ConfigError for flags that do not go together."""
    if asked.ray is None and (asked.workers, asked.gpus_per_worker) != (None, None):
        raise ConfigError("--workers and --gpus-per-worker are for a cluster", hint="add --ray auto")
    if asked.ray is not None and asked.save_replies:
        raise ConfigError("--save-replies writes on this machine, --ray answers on others", hint="leave one out")


def _spoken_replies(folder: Path | None, settings: "Settings", stack: ExitStack) -> "list[SpokenReplies | None]":
    """Open a voice that writes to a folder, if one is wanted."""
    if folder is None:
        return [None]
    from voxcli.batch.worker import SpokenReplies

    return [SpokenReplies(folder.expanduser(), open_voice(settings, stack))]


def _refuse_replies_among(inputs: "Sequence[Source]", folder: Path | None) -> None:
    """Raise ConfigError if replies would be written where they are taken for recordings."""
    from voxcli.batch.items import Folder

    for source in inputs if folder else ():
        if isinstance(source, Folder) and folder and folder.resolve().is_relative_to(Path(source.path).resolve()):
            raise ConfigError(
                f"{folder} is in {source.path}: the replies would be answered as recordings",
                hint="give --save-replies a folder beside it",
            )


def _concluded(asked: _Asked, tally: "Tally", status: "Status | None") -> int:
    """Say what it has come to; return the exit code."""
    median, p95 = (tally.first_token_seconds(share) for share in (0.5, 0.95))
    parts = [f"{tally.answered} answered, {tally.failed} failed"]
    if status:
        parts += [f"{status.done} in {status.seconds:.1f} s: {status.pace}"]
    if median is not None:
        parts += [f"first token median {median:.2f} s, p95 {p95:.2f} s"]
    note(" · ".join(parts))
    for code, failures in sorted(tally.failures.items()):
        note(f"  {code}: {failures.count}, the first {failures.first}")
    if tally.failed:
        note(f"to try failed items again: {_again('--retry-failed')}")
    missed = status.items - status.done if status else 0  # stopped, or gone from a folder since it was looked through
    if missed:
        note(f"{missed} items were not answered")
    if asked.max_p95 is None or (p95 or 0.0) <= asked.max_p95:
        return 1 if tally.failed or missed else 0
    note(f"the p95 of the first token is {p95:.3f} s, above the {asked.max_p95:g} s of --max-p95")
    return 1


def _again(flag: str) -> str:
    """Return the command line that goes on."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--retry-failed")]
    return shlex.join(["voxcli", *words, flag])
