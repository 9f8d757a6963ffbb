"""Emulates CUDA graphs and a compiler on a CPU.

A tape records operations on tensors and replays them on the same tensors. As in a CUDA graph, Python code in
between is not repeated, and reading a value back is refused. Kernels, streams, memory pools and late errors are
not emulated.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voxcli.engines.voxtral.runtime.cuda_graphs import WARM_RUNS

READS_BACK = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "multinomial", "item")


def reads_back(func: Any) -> bool:
    """Return whether an operation reads a value into Python."""
    return any(f"aten.{name}." in str(func) or str(func) == f"aten.{name}" for name in READS_BACK)


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's types are incomplete
    """Records operations during its context; `replay` repeats them."""

    def __init__(self, source: torch.Generator | None = None) -> None:
        """Start empty.

        Args:
            source: generator of random operations; None to refuse them.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = source
        self._done: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # otherwise this mode would disable compiled functions

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_back(func):
            raise RuntimeError(f"{func} reads a value back")
        if (kwargs or {}).get("generator") is not None and self._source is None:
            raise RuntimeError(f"{func} draws from a generator that was not registered")
        result = func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, before in self._done:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the values read into Python during its context; on a GPU, each read would wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += reads_back(func)
        return func(*args, **(kwargs or {}))


class EmulatedGraphs:
    """Implements `runtime.cuda_graphs.GraphRecorder`; runs the work as often as `CudaGraphs` does.

    captured: number of graphs captured so far
    replayed: number of each replayed graph, in order; the first captured graph is 0
    """

    def __init__(self, before: Callable[[str], None] = lambda _event: None) -> None:
        """Start without graphs.

        Args:
            before: called with "capture" or "replay" before each of these, and may raise an error.
        """
        self.captured = 0
        self.replayed: list[int] = []
        self._before = before
        self._alive: WeakSet[Tape] = WeakSet()

    @property
    def alive(self) -> int:
        """Number of captured graphs that are still referenced."""
        return len(self._alive)

    def __call__(self, work: Callable[[], None], source: torch.Generator | None = None) -> Callable[[], None]:
        self._before("capture")
        for _ in range(WARM_RUNS):
            work()
        number, tape = self.captured, Tape(source)
        with tape:
            work()
        self.captured += 1
        self._alive.add(tape)

        def replay() -> None:
            self._before("replay")
            self.replayed.append(number)
            tape.replay()

        return replay


class CountingCompiler:
    """A backend of `torch.compile` that runs graphs unchanged and counts them."""

    def __init__(self, before: Callable[[str], None] = lambda _event: None) -> None:
        """Start without compilations.

        Args:
            before: called with "compile" before each compilation, and may raise an error.
        """
        self.compiled = 0
        self._before = before

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self._before("compile")
        self.compiled += 1
        return graph.forward
