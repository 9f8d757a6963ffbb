"""Checks voxcli on a GPU, from loading to the fiftieth turn, with random weights of Voxtral Mini's size.

    python benchmarks/gpu_check.py              on a CUDA GPU, within 8 minutes on an H200
    python benchmarks/gpu_check.py --emulate    the same steps on a CPU, with a tiny model and emulated graphs

Needs torch, transformers, numpy and safetensors, and 10 GB of disk for the full size. `gpu_check.json` and
`gpu_check.md` are rewritten after each finding, so an interrupted run leaves its findings. A failed step is
recorded, and the run continues with the next one.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):  # run as a file: sys.path has this folder, not its parent
    sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.checks import batch, memory, session, speed, tokens, warm_up  # noqa: E402
from benchmarks.checks.findings import FILES, Notebook, Record, Step, describe  # noqa: E402
from benchmarks.checks.lab import EMULATED, GPU, Lab  # noqa: E402
from benchmarks.report import machine  # noqa: E402
from voxcli.hub.quiet import quiet  # noqa: E402

Check = Callable[[Lab, Notebook], None]
CHECKS: dict[str, tuple[str, Check]] = {
    "a": ("warm-up and first answer on each level", warm_up.check),
    "b": ("the same tokens on all levels and in all formats", tokens.check),
    "c": ("time to the first token, decoding, one pass against two", speed.check),
    "d": ("a batch of replies", batch.check),
    "e": ("peak memory against what was announced", memory.check),
    "f": ("resizing, a clip that is too long, interruptions", session.check),
}


def run(lab: Lab, names: Sequence[str], record: Record) -> bool:
    """Run the checks of some names; return whether all of them passed."""
    steps = {step.name: step for step in record.steps}
    record.save()
    for name in names:
        _run(CHECKS[name][1], lab, steps[name], record)
    return record.passed


def _run(check: Check, lab: Lab, step: Step, record: Record) -> None:
    started, step.status = time.perf_counter(), "running"
    record.note(f"{step.name}: {step.title} ...")
    record.save()
    try:
        with quiet():
            check(lab, Notebook(step, record))
    except Exception as error:  # noqa: BLE001 - one failed step must not end the run
        step.error = f"{describe(error)}\n{traceback.format_exc()}"
    step.seconds = time.perf_counter() - started
    step.status = "failed" if step.problems else "passed"
    record.note(f"{step.name}: {step.status} after {step.seconds:.1f} s")
    record.save()


def about(device: str, *, emulated: bool) -> dict[str, Any]:
    """Return the versions and the hardware that the findings depend on."""
    found: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": "emulated on a CPU" if emulated else torch.cuda.get_device_name(),
        **machine(),
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"cuda": torch.version.cuda, "capability": torch.cuda.get_device_capability()}
        found |= {"free_bytes": free, "total_bytes": total}
    return found


def main(arguments: Sequence[str]) -> int:
    """Check a GPU with random weights, from loading to the fiftieth turn; return the exit code."""
    options = _options(arguments)
    device = "cpu" if options.emulate else "cuda"
    if options.emulate:
        torch.set_num_threads(1)  # a model this small is slower with more threads
    names = [name for name in CHECKS if name in options.only]
    steps = [Step(name, CHECKS[name][0]) for name in names]
    record = Record(about(device, emulated=options.emulate), steps, options.out, _note)
    with tempfile.TemporaryDirectory(prefix="voxcli-gpu-check-") as temporary:
        work = options.work or Path(temporary)
        passed = run(Lab(work, device, EMULATED if options.emulate else GPU, options.emulate), names, record)
    print(record.markdown())
    return 0 if passed else 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    letters = "".join(CHECKS)
    parser = argparse.ArgumentParser(description="Check voxcli on a GPU with random weights.")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the two files go")
    parser.add_argument("--force", action="store_true", help="overwrite the files of an earlier run")
    parser.add_argument("--emulate", action="store_true", help="run on a CPU, with emulated graphs")
    parser.add_argument("--only", default=letters, metavar="LETTERS", help=f"some of the steps {letters}")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep checkpoint and kernels there for another run")
    options = parser.parse_args(arguments)
    if not options.only or set(options.only) - set(CHECKS):
        parser.error(f"--only takes letters of {letters}")
    existing = [path for name in FILES if (path := options.out / name).exists()]
    if existing and not options.force:
        parser.error(f"{existing[0]} exists; --force overwrites it")
    if not options.emulate and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --emulate runs the same steps on a CPU")
    return options


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
