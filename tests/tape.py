"""A CUDA graph without CUDA: records operations on tensors, and replays them on the same tensors.

As in a graph, what Python did in between is not repeated: a value that was read into Python stays what it
was. Reading one back is refused, as it is while a graph is captured.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS_BACK = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "multinomial", "item")


def reads_back(func: Any) -> bool:
    """Return whether an operation reads a value into Python."""
    return any(f"aten.{name}." in str(func) or str(func) == f"aten.{name}" for name in READS_BACK)


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it in part
    """Records while it is entered; `replay` does all of it again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_back(func):
            raise RuntimeError(f"{func} reads a value back")
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
    """Counts the values that are read into Python while it is entered: on a GPU, each would wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += reads_back(func)
        return func(*args, **(kwargs or {}))


class Recorder:
    """Implements `voxcli.engines.capture.Record`; counts what is replayed."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.replayed: list[int] = []

    def __call__(self, work: Callable[[], None], source: torch.Generator | None = None) -> Callable[[], None]:
        number, tape = len(self.tapes), Tape()
        with tape:
            work()
        self.tapes.append(tape)

        def replay() -> None:
            self.replayed.append(number)
            tape.replay()

        return replay
