"""`voxcli batch`: many recordings, one record for each."""

import os
import shlex
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface.common import (
    INTERRUPTED,
    AllowToolFlag,
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    LanguageFlag,
    ModelFlag,
    PersonaFlag,
    QuantizeFlag,
    TemperatureFlag,
    UnderstoodFlag,
    UrlsFlag,
    VerboseFlag,
    VoiceFlag,
    check_stdin,
    files_read,
    given,
    note,
    note_command,
    set_by_ctrl_c,
)
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.app.batch import BatchOptions
    from voxcli.batch.stats import Stats, Status
    from voxcli.config.loading import Settings

HOW_TO_BEGIN = ("--resume", "--retry-failed", "--redo-changed", "--force")  # flags of one run, not of its continuation


InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Files, folders, globs, URLs, .jsonl manifests; - reads a list of paths or a manifest."
    ),
]
OutFlag = Annotated[
    Path, typer.Option("--out", metavar="FILE.jsonl", help="Results file: one record per line; - is standard output.")
]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Continue a results file.")]
RetryFailedFlag = Annotated[bool, typer.Option("--retry-failed", help="Continue, and answer failed items again.")]
KeepFlag = Annotated[bool, typer.Option("--keep", help="Continue, and keep answers to what items asked before.")]
RedoChangedFlag = Annotated[
    bool, typer.Option("--redo-changed", help="Continue, and answer items again that ask something else now.")
]
ForceResultsFlag = Annotated[bool, typer.Option("--force", help="Overwrite existing results and replies.")]
FailFastFlag = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first item that fails.")]
SaveRepliesFlag = Annotated[
    Path | None, typer.Option("--save-replies", metavar="DIR", help="Save the spoken replies in DIR.")
]
MaxP95Flag = Annotated[
    float | None,
    typer.Option("--max-p95", metavar="SECONDS", min=0, help="Fail if the p95 of the time to first token is higher."),
]
ConcurrencyFlag = Annotated[
    int | None,
    typer.Option(
        "--concurrency", metavar="N", min=1, max=1024, help="Items at once, if the engine allows it; on each server."
    ),
]
BatchSizeFlag = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", min=1, max=1024, help="Replies that the voxtral engine generates at once."
    ),
]
RayFlag = Annotated[
    str | None, typer.Option("--ray", metavar="auto|ADDRESS", help="Answer on all machines of a Ray cluster.")
]
WorkersFlag = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Engines on the cluster; by default as many as fit."),
]
GpusPerWorkerFlag = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="N",
        min=0,
        help="GPUs of each engine; by default 1 if the cluster has any, else 0.",
    ),
]


def batch(
    inputs: InputsArgument,
    out: OutFlag,
    resume: ResumeFlag = False,
    retry_failed: RetryFailedFlag = False,
    keep: KeepFlag = False,
    redo_changed: RedoChangedFlag = False,
    force: ForceResultsFlag = False,
    fail_fast: FailFastFlag = False,
    save_replies: SaveRepliesFlag = None,
    max_p95: MaxP95Flag = None,
    allow_tool: AllowToolFlag = None,
    concurrency: ConcurrencyFlag = None,
    batch_size: BatchSizeFlag = None,
    ray: RayFlag = None,
    workers: WorkersFlag = None,
    gpus_per_worker: GpusPerWorkerFlag = None,
    url: UrlsFlag = None,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    temperature: TemperatureFlag = None,
    instructions: InstructionsFlag = None,
    persona: PersonaFlag = None,
    language: LanguageFlag = None,
    understood: UnderstoodFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    _verbose: VerboseFlag = False,
) -> None:
    """Answer many recordings: one JSON record a line, written as each is done."""
    from voxcli.app.batch import BatchOptions
    from voxcli.app.parts import load_settings

    check_stdin(*inputs, config, instructions)
    _check_voice(voice, save_replies)
    flags = given(engine=engine, model=model, device=device, quantize=quantize, temperature=temperature)
    flags |= given(persona=persona, instructions=instructions, language=language, voice=voice, understood=understood)
    settings = load_settings(config, flags | ({"url": url[0]} if url else {}))
    options = BatchOptions(
        inputs=inputs,
        out=out,
        resume=resume,
        retry_failed=retry_failed,
        keep=keep,
        redo_changed=redo_changed,
        force=force,
        fail_fast=fail_fast,
        save_replies=save_replies,
        concurrency=concurrency,
        batch_size=batch_size,
        urls=url or [],
        ray=ray,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        other_inputs=files_read(config, flags),
        allow_tools=allow_tool or (),
    )
    raise typer.Exit(_run(settings, options, max_p95))


def _check_voice(voice: str | None, save_replies: Path | None) -> None:
    """Raise ConfigError for a voice that nothing is spoken with."""
    if voice and save_replies is None:
        raise ConfigError("--voice is for spoken replies", hint="add --save-replies DIR, or leave it out")


def _run(settings: "Settings", options: "BatchOptions", max_p95: float | None) -> int:
    """Answer all items. Returns the exit code."""
    from voxcli.app.batch import open_batch

    stop = threading.Event()
    try:
        with ExitStack() as stack:
            run = open_batch(settings, options, stack, note)
            with set_by_ctrl_c(stop):
                status = run.answer(stop)
            code = _conclude(run.stats, status, max_p95, options.out)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # a normal exit would wait for the threads of an engine that is still loading
    if stop.is_set():
        if str(options.out) == "-":
            note("stopped")
        else:
            note_command("stopped; to continue", _again("--resume"))
        return INTERRUPTED
    return code


def _conclude(stats: "Stats", status: "Status | None", max_p95: float | None, out: Path) -> int:
    """Print the result of the run, each fact once. Returns the exit code."""
    from voxcli.batch.report import failures_by_count, flaws_in_words, latency

    is_file = str(out) != "-"
    note(" · ".join(filter(None, [_counts(stats, status), status.pace if status else "", latency(stats)])))
    for code, failures in failures_by_count(stats):
        note(f"  {code}: {failures.count}, the first {failures.first}")
    for line in flaws_in_words(stats):
        note(f"  {line}")
    missed = status.items - status.done if status else 0  # stopped, or deleted from a folder since it was listed
    if missed:
        note(f"{missed} {'item was' if missed == 1 else 'items were'} not answered")
    if is_file and stats.done:
        note_command("results", shlex.join(["voxcli", "results", str(out)]))
    if is_file and stats.failed:
        note_command("to try failed items again", _again("--retry-failed"))
    p95 = stats.first_token_seconds(0.95)
    if max_p95 is None or (p95 or 0.0) <= max_p95:
        return 1 if stats.failed or missed else 0
    note(f"the p95 of the first token is {p95:.3f} s, above the {max_p95:g} s of --max-p95")
    return 1


def _counts(stats: "Stats", status: "Status | None") -> str:
    """Return how many items have results, and how many of them this run answered in which time."""
    counts = f"{stats.answered} answered, {stats.failed} failed"
    if status is None:
        return counts
    share = "" if status.done == stats.done else f", {status.done} of them now,"
    return f"{counts}{share} in {status.seconds:.1f} s"


def _again(flag: str) -> str:
    """Return the command line that continues the run."""
    words = [word for word in sys.argv[1:] if word not in HOW_TO_BEGIN]
    return shlex.join(["voxcli", *words, flag])
