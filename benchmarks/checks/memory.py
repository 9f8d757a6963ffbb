"""Step e: the most memory that loading and a turn take in each format, beside what is announced before.

On a CPU each format has a process of its own, as a process keeps much of what it frees:

    python -m benchmarks.checks.memory WORK FORMAT
"""

import json
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

ROOT = Path(__file__).resolve().parent.parent.parent
MORE = 0.05  # how far above what was announced the peak may be
SPARE_BYTES = 60_000_000  # on a CPU, where the memory of Python and of the libraries is counted too

Tell = Callable[[str], None]


def check(lab: Lab, note: Notebook) -> None:
    """Load the model in each format and let it answer once."""
    for form in FORMATS:
        try:
            _weigh(lab, note, form)
        except Exception as error:  # noqa: BLE001 - the other formats are worth trying
            note.failed(f"{form}: loaded and answered", error)


def _weigh(lab: Lab, note: Notebook, form: Format) -> None:
    checkpoint = lab.checkpoint_of(lab.sizes.weighed_shape)
    _, announced = lab.need(checkpoint, form, lab.sizes.small_context)
    taken = peak_bytes(lab, form, note.message) if lab.device == "cuda" else _peak_elsewhere(lab, form)
    most = announced * (1 + MORE) + (SPARE_BYTES if lab.device == "cpu" else 0)
    note.require(
        f"{form}: peak memory of loading and a turn",
        taken <= most,
        f"{taken / GB:.3f} GB, {100 * taken / announced:.0f} % of what is announced",
        f"at most {most / GB:.3f} GB; announced {announced / GB:.3f} GB",
        peak_bytes=taken,
        announced_bytes=announced,
    )


def _peak_elsewhere(lab: Lab, form: Format) -> int:
    command = [sys.executable, "-m", "benchmarks.checks.memory", str(lab.folder.resolve()), form]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(json.loads(done.stdout)["peak_bytes"])


def peak_bytes(lab: Lab, form: Format, tell: Tell) -> int:
    """Return the most that loading and a turn held at once, beyond what was held before."""
    # What an emulated capture holds is not what a graph holds.
    options = {"quantize": form, "acceleration": "none" if lab.emulated else "auto"}
    with ExitStack() as loaded:

        def answer() -> None:
            checkpoint = lab.checkpoint_of(lab.sizes.weighed_shape)
            engine = lab.engine(tell, checkpoint=checkpoint, context_tokens=lab.sizes.small_context, **options)
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


def main(work: Path, form: Format) -> None:
    """Print the peak of one format on a CPU as JSON."""
    torch.set_num_threads(1)
    lab = Lab(work, "cpu", EMULATED, emulated=True)
    print(json.dumps({"peak_bytes": peak_bytes(lab, form, lambda text: print(text, file=sys.stderr))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), next(form for form in FORMATS if form == sys.argv[2]))
