"""Step e: the most memory that loading and a turn take in each format, beside what is announced before."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from benchmarks import anonymous_memory
from benchmarks.baselines import free_memory
from benchmarks.checks.findings import Notebook
from benchmarks.checks.lab import FORMATS, Lab, ask, clip
from voxcli.engines.formats import Format
from voxcli.engines.hardware import GB
from voxcli.session import Session

MORE = 0.05  # how far above what was announced the peak may be
SPARE_BYTES = 40_000_000  # on a CPU, where the memory of Python and of the libraries is counted too


def check(lab: Lab, note: Notebook) -> None:
    """Load the model in each format and let it answer once."""
    for form in FORMATS:
        try:
            _weigh(lab, note, form)
        except Exception as error:  # noqa: BLE001 - the other formats are worth trying
            note.failed(f"{form}: loaded and answered", error)


def _weigh(lab: Lab, note: Notebook, form: Format) -> None:
    checkpoint, context = lab.checkpoint_of(lab.sizes.weighed_shape), lab.sizes.small_context
    _, announced = lab.need(checkpoint, form, context)
    # What an emulated capture holds is not what a graph holds.
    rung = "none" if lab.emulated else "auto"
    options = {"checkpoint": checkpoint, "quantize": form, "context_tokens": context, "acceleration": rung}
    with ExitStack() as loaded:

        def answer() -> None:
            engine = loaded.enter_context(lab.engine(note.message, **options))
            ask(engine, Session(), clip(0))

        taken = _peak_bytes(lab.device, answer)
    most = announced * (1 + MORE) + (SPARE_BYTES if lab.device == "cpu" else 0)
    note.require(
        f"{form}: peak memory of loading and a turn",
        taken <= most,
        f"{taken / GB:.3f} GB, {100 * taken / announced:.0f} % of what is announced",
        f"at most {100 * MORE:.0f} % more than {announced / GB:.3f} GB",
        peak_bytes=taken,
        announced_bytes=announced,
    )


def _peak_bytes(device: str, work: Callable[[], None]) -> int:
    """Return the most that was held at once while `work` ran, beyond what was held before."""
    free_memory(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with anonymous_memory.peak() as found:
        work()
    return found.grown
