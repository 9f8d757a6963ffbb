"""Measures the peak memory, and the times at which the model was running."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.report import median

Span = tuple[float, float]  # perf_counter: start and end

RESET_PEAK = "5"  # for /proc/self/clear_refs, see proc(5)


class PeakMemory:
    """The peak of the memory in use since `reset`, weights included."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.about = {
            "cuda": "torch.cuda.max_memory_allocated",
            "mps": "torch.mps.driver_allocated_memory at the end",
            "cpu": "resident memory of the process",
        }[device]

    def reset(self) -> None:
        """Reset the peak. If the operating system can't, the peak counts from the start of the process."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self._device == "cpu":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")

    def bytes(self) -> int:
        """Return the peak."""
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        if self._device == "mps":
            return torch.mps.driver_allocated_memory()
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            import resource  # Windows lacks it.

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else 1024 * peak


class Forward(NamedTuple):
    """A method that runs the text model for one token."""

    owner: Any  # an object or a class
    name: str


@contextmanager
def forward_spans(forward: Forward) -> Iterator[list[Span]]:
    """Record the start and end of each call. Only valid on a CPU, where calls return when their work is done."""
    spans: list[Span] = []
    original = getattr(forward.owner, forward.name)

    @wraps(original)  # `generate` reads the signature of what it calls
    def watched(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = original(*args, **options)
        spans.append((started, time.perf_counter()))
        return result

    before = vars(forward.owner).get(forward.name)
    setattr(forward.owner, forward.name, watched)
    try:
        yield spans
    finally:
        if before is None:
            delattr(forward.owner, forward.name)
        else:
            setattr(forward.owner, forward.name, before)


def own_seconds(tokens: Sequence[float], spans: Sequence[Span]) -> float | None:
    """Return the median time that a decode loop takes for a token beside the model's forward calls.

    Args:
        tokens: arrival of each token, on the clock of the spans.

    Returns:
        None if a token arrived without a call.
    """
    own = []
    for before, after in pairwise(tokens):
        within = [end - start for start, end in spans if start >= before and end <= after]
        if not within:
            return None
        own.append(after - before - sum(within))
    return median(own) if own else None
