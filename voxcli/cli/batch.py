"""`voxcli batch`: many recordings, one record for each."""

import os
import shlex
import sys
import threading
from contextlib import ExitStack
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
    TemperatureFlag,
    UrlsFlag,
    VerboseFlag,
    VoiceFlag,
    given,
    note,
    set_by_ctrl_c,
)

if TYPE_CHECKING:
    from voxcli.batch.stats import Stats, Status


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Files, folders, globs, .jsonl manifests; - reads a list of paths."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Results file: one record per line.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue a results file.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Continue, and answer failed items again.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first item that fails.")] = False,
    save_replies: Annotated[
        Path | None, typer.Option("--save-replies", metavar="DIR", help="Save the spoken replies in DIR.")
    ] = None,
    max_p95: Annotated[
        float | None,
        typer.Option(
            "--max-p95", metavar="SECONDS", min=0, help="Fail if the p95 of the time to first token is higher."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            max=1024,
            help="Items at once, if the engine allows it; on each server.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, max=1024, help="Replies that the voxtral engine generates at once."
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="auto|ADDRESS", help="Answer on all machines of a Ray cluster.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Engines on the cluster; by default as many as fit."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker",
            metavar="N",
            min=0,
            help="GPUs of each engine; by default 1 if the cluster has any, else 0.",
        ),
    ] = None,
    url: UrlsFlag = None,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    temperature: TemperatureFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    _verbose: VerboseFlag = False,
) -> None:
    """Answer many recordings: one JSON record a line, written as each is done."""
    from voxcli.app.batch import BatchOptions, open_batch
    from voxcli.app.parts import load_settings

    flags = given(
        engine=engine,
        url=url[0] if url else None,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        temperature=temperature,
        voice=voice,
    )
    settings = load_settings(config, flags)
    cluster = ray, workers, gpus_per_worker
    options = BatchOptions(
        inputs, out, resume, retry_failed, fail_fast, save_replies, concurrency, batch_size, url or [], *cluster
    )
    stop = threading.Event()
    try:
        with ExitStack() as stack:
            run = open_batch(settings, options, stack, note)
            with set_by_ctrl_c(stop):
                status = run.answer(stop)
            code = _conclude(run.stats, status, max_p95)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # a normal exit would wait for the threads of an engine that is still loading
    if stop.is_set():
        note(f"stopped; to continue: {_again('--resume')}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(code)


def _conclude(stats: "Stats", status: "Status | None", max_p95: float | None) -> int:
    """Print the result of the run. Returns the exit code."""
    median, p95 = (stats.first_token_seconds(share) for share in (0.5, 0.95))
    parts = [f"{stats.answered} answered, {stats.failed} failed"]
    if status:
        parts += [f"{status.done} in {status.seconds:.1f} s: {status.pace}"]
    if median is not None:
        parts += [f"first token median {median:.2f} s, p95 {p95:.2f} s"]
    note(" · ".join(parts))
    for code, failures in sorted(stats.failures.items()):
        note(f"  {code}: {failures.count}, the first {failures.first}")
    for key, flaws in sorted(stats.flaws.items()):
        note(f"  audio.{key}: of note in {flaws.count}, the first {flaws.first}")
    if stats.failed:
        note(f"to try failed items again: {_again('--retry-failed')}")
    missed = status.items - status.done if status else 0  # stopped, or deleted from a folder since it was listed
    if missed:
        note(f"{missed} items were not answered")
    if max_p95 is None or (p95 or 0.0) <= max_p95:
        return 1 if stats.failed or missed else 0
    note(f"the p95 of the first token is {p95:.3f} s, above the {max_p95:g} s of --max-p95")
    return 1


def _again(flag: str) -> str:
    """Return the command line that continues the run."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--retry-failed")]
    return shlex.join(["voxcli", *words, flag])
