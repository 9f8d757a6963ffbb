"""Measures what a user waits for, side by side in one run, and prints it as a Markdown table.

    .venv/bin/python scripts/benchmark.py [RUNS]

Each pair of commands runs in turn, A B A B ..., so that a machine whose speed drifts slows both. Medians are
printed, and the ratio is the median of the ratios pair by pair. These are measurements, not tests: nothing fails.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

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
# What the embedded engine can't do without, and nothing else: both libraries imported and both models loaded,
# one after the other. The floor for a process that answers once.
BARE_MODELS = """
import sys, numpy, xllamacpp
from faster_whisper import WhisperModel
folder = sys.argv[1]
WhisperModel(f"{folder}/whisper", device="cpu", compute_type="int8")
params = xllamacpp.CommonParams()
params.model.path = f"{folder}/smollm2.gguf"
params.n_ctx, params.n_parallel, params.verbosity, params.fit_params = 4096, 1, -1, False
xllamacpp.Server(params)
"""


def wall_seconds(command: Sequence[str]) -> tuple[float, str]:
    """Run a command; return how long the whole process took and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def paired(first: Sequence[str], second: Sequence[str], runs: int) -> tuple[float, float, float]:
    """Return the median seconds of both commands and the median ratio first / second, after one warm-up."""
    pairs = [(wall_seconds(first)[0], wall_seconds(second)[0]) for _ in range(runs + 1)][1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def help_rows(runs: int) -> list[str]:
    """Compare `voxcli --help` with the help of a Typer program of two commands."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(TWO_COMMANDS)
        program.flush()
        ours, theirs, ratio = paired([*VOXCLI, "--help"], [sys.executable, program.name, "--help"], runs)
    return [
        f"| `voxcli --help` | {ours:.2f} s | {ratio:.2f} times the floor |",
        f"| floor: `--help` of a Typer program of two commands | {theirs:.2f} s | |",
    ]


def once_rows(runs: int) -> list[str]:
    """Compare `voxcli once` with loading its two models, and show what it measured inside."""
    from voxcli.engines import weights
    from voxcli.paths import cache_folder

    folder = str(weights.prepare(cache_folder()))
    bare = [sys.executable, "-c", BARE_MODELS, folder]
    whole, floor, ratio = paired(ONCE, bare, runs)
    inside = [json.loads(wall_seconds([*ONCE, "--json"])[1])["timings"] for _ in range(runs)]
    token, load = (statistics.median(each[key] for each in inside) for key in ("first_token_seconds", "load_seconds"))
    return [
        f"| `voxcli once`, embedded: process start to exit | {whole:.2f} s | {ratio:.2f} times the floor |",
        f"| floor: both models loaded and nothing asked | {floor:.2f} s | |",
        f"| the same, inside: engine ready (`load_seconds`) | {load:.2f} s | |",
        f"| the same, inside: clip to first token (`first_token_seconds`) | {token:.2f} s | |",
    ]


def main() -> None:
    """Print the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    packages = ("typer", "faster-whisper", "xllamacpp")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, {platform.machine()}; {runs} runs\n"
    )
    print("| what | median | ratio |\n|---|---|---|")
    for row in help_rows(runs) + once_rows(runs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
