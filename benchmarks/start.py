"""Measures how long commands take beside the floor of their libraries: `python -m benchmarks.start`.

Each pair of commands alternates, A B A B ..., so that a machine whose speed drifts slows both. Figures are medians; a
ratio is the median of the ratios pair by pair.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, publish, require_writable
from benchmarks.report import Figure
from voxcli.config.paths import cache_folder
from voxcli.engines.embedded import weights
from voxcli.errors import VoxError

COMMAND_SECONDS = 300.0
ERROR_CHARACTERS = 200  # shown from the end of an error
HELP_TIMES = 1.4  # bar of `voxcli --help` over its floor
ROOT = Path(__file__).resolve().parent.parent
QUESTION = ROOT / "examples/questions/capital-of-france.flac"
VOXCLI = [sys.executable, "-m", "voxcli"]
ONCE = [*VOXCLI, "once", str(QUESTION), "--engine", "embedded", "--no-speak"]
TWO_COMMANDS = """
import typer
app = typer.Typer()
@app.command()
def first(name: str) -> None: "The first."
@app.command()
def second(name: str) -> None: "The second."
app()
"""
# The floor of a process that answers once: both libraries imported and both models loaded, one after the other. It
# ends without freeing the models: a server that is freed right after its start may wait forever.
BARE_MODELS = """
import os, sys, numpy, xllamacpp
from faster_whisper import WhisperModel
folder = sys.argv[1]
WhisperModel(f"{folder}/whisper", device="cpu", compute_type="int8")
params = xllamacpp.CommonParams()
params.model.path = f"{folder}/smollm2.gguf"
params.n_ctx, params.n_parallel, params.verbosity, params.fit_params = 4096, 1, -1, False
server = xllamacpp.Server(params)
os._exit(0)
"""


def wall_seconds(command: Sequence[str]) -> tuple[float, str]:
    """Run a command; return the duration of the whole process and its output.

    Raises:
        VoxError: the command fails, or takes longer than COMMAND_SECONDS.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS)
    except subprocess.SubprocessError as error:
        raise VoxError(f"a command can't be measured: {str(error)[-ERROR_CHARACTERS:]}") from error
    return time.perf_counter() - started, done.stdout


def paired(first: Sequence[str], second: Sequence[str], runs: int) -> tuple[float, float, float]:
    """Return the median seconds of both commands and the median ratio first / second, after one warm-up."""
    pairs = [(wall_seconds(first)[0], wall_seconds(second)[0]) for _ in range(runs + 1)][1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def start(
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Runs of each command.")] = 7,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure `voxcli --help` and `voxcli once` beside the floors of their libraries."""
    require_writable(json, force=force)
    publish([*help_figures(runs), *once_figures(runs)], json)


def help_figures(runs: int) -> list[Figure]:
    """Compare `voxcli --help` with the help of a Typer program of two commands."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(TWO_COMMANDS)
        program.flush()
        ours, theirs, ratio = paired([*VOXCLI, "--help"], [sys.executable, program.name, "--help"], runs)
    bar = f"at most {HELP_TIMES} times the floor"
    return [
        _figure("`voxcli --help`", ours, ratio=ratio, bar=bar, met=ratio <= HELP_TIMES),
        _figure("floor: `--help` of a Typer program of two commands", theirs),
    ]


def once_figures(runs: int) -> list[Figure]:
    """Compare `voxcli once` with loading its two models, and show what it measured inside."""
    folder = str(weights.prepare(cache_folder()))
    bare = [sys.executable, "-c", BARE_MODELS, folder]
    whole, floor, ratio = paired(ONCE, bare, runs)
    inside = [loads(wall_seconds([*ONCE, "--json"])[1])["timings"] for _ in range(runs)]
    token, load = (statistics.median(each[key] for each in inside) for key in ("first_token_seconds", "load_seconds"))
    return [
        _figure("`voxcli once`, embedded: process start to exit", whole, ratio=ratio),
        _figure("floor: both models loaded, no reply", floor),
        _figure("the same, inside: engine ready (`load_seconds`)", load),
        _figure("the same, inside: clip to first token (`first_token_seconds`)", token),
    ]


def _figure(what: str, seconds: float, *, ratio: float | None = None, bar: str = "", met: bool | None = None) -> Figure:
    times = "" if ratio is None else f", {ratio:.2f} times the floor"
    return Figure(what, f"{seconds:.2f} s{times}", bar, met, {"seconds": seconds, "times_floor": ratio})


app = command_line(start)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.start")
