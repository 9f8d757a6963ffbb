"""Step e: the peak memory of loading and a turn in each format, beside the announced memory.

On a CPU, a process of its own is measured, whose allocator returns freed memory at once:

    python -m benchmarks.checks.memory WORK
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import anonymous_memory
from benchmarks.baselines import free_memory
from benchmarks.checks.findings import Notebook
from benchmarks.checks.lab import EMULATED, FORMATS, Lab, ask, clip
from voxcli.core.session import Session
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.device.hardware import GB
from voxcli.hub.quiet import quiet

ROOT = Path(__file__).resolve().parent.parent.parent
MORE = 0.05  # share by which the peak may exceed the announced memory
# Settings for glibc, which otherwise keeps freed memory of this size for later allocations.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

Notice = Callable[[str], None]


def check(lab: Lab, note: Notebook) -> None:
    """Load the model in each format and let it answer once."""
    taken = _taken_elsewhere(lab) if lab.device == "cpu" else {}
    for form in FORMATS:
        try:
            peak = taken[form] if taken else peak_bytes(lab, form, note.message)
            _take_down(lab, note, form, peak)
        except Exception as error:  # noqa: BLE001 - the other formats are worth trying
            note.failed(f"{form}: loaded and answered", error)


def _take_down(lab: Lab, note: Notebook, form: Format, taken: int) -> None:
    checkpoint = lab.checkpoint_of(lab.sizes.weighed_shape)
    _, announced = lab.need(checkpoint, form, lab.sizes.small_context)
    most = announced * (1 + MORE)
    note.require(
        f"{form}: peak memory of loading and a turn",
        taken <= most,
        f"{taken / GB:.3f} GB, {100 * taken / announced:.0f} % of what is announced",
        f"at most {most / GB:.3f} GB; announced {announced / GB:.3f} GB",
        peak_bytes=taken,
        announced_bytes=announced,
    )


def _taken_elsewhere(lab: Lab) -> dict[str, int]:
    """Return the peaks of all formats, measured in another process."""
    lab.checkpoint_of(lab.sizes.weighed_shape)  # written in this process, because it takes memory
    command = [sys.executable, "-m", "benchmarks.checks.memory", str(lab.folder.resolve())]
    environment = {**os.environ, **FREED_AT_ONCE}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def peak_bytes(lab: Lab, form: Format, notice: Notice) -> int:
    """Return the peak memory of loading and a turn, beyond the memory held before."""
    # An emulated capture takes other memory than a graph.
    options = {"quantize": form, "acceleration": "none" if lab.emulated else "auto"}
    with ExitStack() as loaded:

        def answer() -> None:
            checkpoint = lab.checkpoint_of(lab.sizes.weighed_shape)
            engine = lab.engine(notice, checkpoint=checkpoint, context_tokens=lab.sizes.small_context, **options)
            ask(loaded.enter_context(engine), Session(), clip(0))

        return _peak_on_gpu(answer) if lab.device == "cuda" else _peak_on_cpu(answer)


def _peak_on_gpu(work: Callable[[], None]) -> int:
    free_memory("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(work: Callable[[], None]) -> int:
    with anonymous_memory.peak() as found:
        work()
    return found.grown


def main(work: Path) -> None:
    """Print the peaks of all formats on a CPU as JSON."""
    torch.set_num_threads(1)
    lab = Lab(work, "cpu", EMULATED, emulated=True)
    with quiet():
        taken = {form: peak_bytes(lab, form, lambda _: None) for form in FORMATS}
    print(json.dumps(taken))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
