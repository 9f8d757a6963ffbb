"""The fast path for the work of a turn, on the highest level that works.

    compiled   CUDA graphs of compiled kernels
    graphs     CUDA graphs of torch's own kernels
    none       no fast path: torch's own kernels, launched one by one

If compiling, capturing or replaying fails, the next lower level is used, and a notice says so. Methods that do
work of a turn return None where the caller has to do it plainly.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch

from voxcli.engines.voxtral.quiet_compiler import quiet_compiler
from voxcli.engines.voxtral.runtime import compiler
from voxcli.engines.voxtral.runtime.cuda_graphs import (
    CapturedEncoder,
    CapturedModel,
    CudaGraphs,
    DifferenceError,
    GraphRecorder,
    captures,
    compare,
)
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampler, Sampling

Level = Literal["compiled", "graphs", "none"]
Acceleration = Literal["auto", "compiled", "graphs", "none"]  # the highest level to try; auto: the highest there is
BELOW: dict[Level, Level] = {"compiled": "graphs", "graphs": "none"}
ERROR_CHARACTERS = 200  # The longest error text in a notice; the log has the rest.

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # parts done, parts in all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backends:
    """The compiler and the graph recorder of a device."""

    compiler: Any = None  # a backend of `torch.compile`, if there is one
    graphs: Callable[[], GraphRecorder] | None = None  # makes a graph recorder, if the device has one
    no_compiler: str = ""  # why there is no compiler
    no_graphs: str = ""  # why there is no graph recorder
    looks_ahead: bool = False  # whether the next step is launched before a token is read, as suits a GPU

    @classmethod
    def of(cls, device: str) -> Self:
        """Return the backends of a device: cuda, mps or cpu."""
        if device != "cuda":
            return cls(no_graphs=f"CUDA graphs need a CUDA device, this is {device}")
        has_triton = find_spec("triton") is not None  # it comes with torch on Linux
        compiler = "inductor" if has_triton else None
        return cls(compiler, CudaGraphs, "" if has_triton else "triton is not installed", looks_ahead=True)

    def highest(self, wanted: Acceleration) -> tuple[Level, str]:
        """Return the highest level that may work, and why not a higher one."""
        if self.graphs is None:
            return "none", self.no_graphs
        if wanted in ("none", "graphs"):
            return wanted, f'voxtral.acceleration is "{wanted}"'
        if self.compiler is None:
            return "graphs", self.no_compiler
        return "compiled", ""


@dataclass(frozen=True)
class _Plan:
    """The arguments of the last `FastPath.warm_up`."""

    sampling: Sampling
    capacity: int
    folder: Path | None
    notice: Notice


class FastPath:
    """Replays captured work of one model with one cache, on the highest level that works."""

    def __init__(self, model: SharedModel, encoder: WindowEncoder, backends: Backends) -> None:
        """Start without a fast path; `warm_up` makes one."""
        self.level: Level = "none"
        self._model, self._encoder, self._backends = model, encoder, backends
        self._plan: _Plan | None = None
        self._decode_layer: Any = None  # compiled
        self._captured_encoder: CapturedEncoder | None = None
        self._captured: CapturedModel | None = None
        self._stage = ""  # Named by the notice of a failure.

    def warm_up(
        self,
        cache: Cache,
        sampling: Sampling,
        acceleration: Acceleration,
        notice: Notice,
        progress: Progress,
        folder: Path | None,
    ) -> None:
        """Compile and capture, emptying the cache. `decoder.Decoder.warm_up` describes the arguments."""
        self.close()
        self.level, why = self._backends.highest(acceleration)
        if acceleration not in ("auto", self.level):
            notice(f"acceleration: {self.level} instead of {acceleration}: {why}")
        self._plan = _Plan(sampling, cache.capacity, folder, notice)
        self._establish(cache, progress)
        log.info("acceleration: %s", self.level)

    def fit(self, cache: Cache) -> bool:
        """Capture again for a cache that has the size of the first one, if nothing is captured.

        Returns:
            Whether captures were tried, which empties the cache.
        """
        if self.level == "none" or self._captured or not self._plan or cache.capacity != self._plan.capacity:
            return False
        self._establish(cache, lambda _done, _total: None)
        return True

    def release(self) -> None:
        """Drop the captures that point into the cache."""
        self._captured = None

    def close(self) -> None:
        """Drop all captures and compiled code; all work is done plainly from now on."""
        self.level, self._plan = "none", None
        self._drop_all()

    def prefill(self, embeddings: torch.Tensor, start: int) -> torch.Tensor | None:
        """Feed up to 512 embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,), or None."""
        captured = self._captured
        return self._replay(lambda: captured.prefill(embeddings, start)) if captured else None

    def next(self, token: torch.Tensor, place: int, sampler: Sampler) -> torch.Tensor | None:
        """Feed a token, (1, 1), at position `place`; return the next one, (1, 1), or None."""
        captured = self._captured
        return self._replay(lambda: captured.next(token, place, sampler)) if captured else None

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return the sampler for a new reply: the captured one where it samples in this way."""
        if self._captured and self._captured.sampler.is_alike(sampling):
            self._captured.sampler.begin(sampling.seed)
            return self._captured.sampler
        return Sampler(sampling, self._model.device)

    def _encode(self, window: torch.Tensor) -> torch.Tensor | None:
        captured = self._captured_encoder
        return self._replay(lambda: captured.encode(window)) if captured else None

    def _replay(self, replay: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        """Return the result of a replay; None where it fails, and nothing is replayed until the next `fit`.

        The caller may then do the same work plainly: it writes the same keys and values to the same positions.
        """
        try:
            return replay()
        except Exception as error:  # noqa: BLE001 - the work can be done plainly, whatever failed
            failure = _describe("replaying", error)
        self._descend(failure)
        return None

    def _establish(self, cache: Cache, progress: Progress) -> None:
        """Prepare the current level, or the next lower one that works."""
        while self.level != "none" and (failure := self._try_level(cache, progress)):
            self._descend(failure)

    def _try_level(self, cache: Cache, progress: Progress) -> str:
        """Prepare the current level; return a description of what failed, because an exception keeps its captures."""
        plan = self._plan
        if plan is None:
            return ""
        try:
            with compiler.kept_in(plan.folder), quiet_compiler():
                self._prepare_level(cache, plan, progress)
        except Exception as error:  # noqa: BLE001 - compilers and drivers fail in many ways
            return _describe(self._stage, error)
        finally:
            cache.rewind(0)
        return ""

    def _prepare_level(self, cache: Cache, plan: _Plan, progress: Progress) -> None:
        if self._backends.graphs is None:
            return
        text = self._model.text
        compiles = self.level == "compiled" and self._decode_layer is None
        before = 1 + (len(cache.buckets) if compiles else 0)  # steps before those of `CapturedModel`
        total = before + captures(text, cache)
        progress(0, total)
        if compiles:
            self._stage = "compiling"
            plan.notice("compiling the decode step: minutes at the first start, seconds later")
            backend = self._backends.compiler
            self._decode_layer = compiler.compiled(text, cache, lambda done: progress(done, total), backend)
        self._stage = "capturing"
        if self._captured_encoder is None:
            self._captured_encoder = CapturedEncoder(self._model, self._backends.graphs())
            self._encoder.replay_with(self._encode)
        progress(before, total)
        sampler = Sampler(plan.sampling, self._model.device)
        self._captured = CapturedModel(
            text,
            cache,
            sampler,
            self._backends.graphs(),
            lambda done: progress(before + done, total),
            self._decode_layer,
        )
        self._stage = "comparing with the plain pass"
        compare(self._model, cache, self._captured, self._captured_encoder)

    def _descend(self, failure: str) -> None:
        """Use the next lower level, and free the memory of the current one."""
        self._drop_all()
        before, self.level = self.level, BELOW[self.level]
        if self._model.device.type == "cuda":
            _empty_memory()
        if self._plan:
            self._plan.notice(f"acceleration: {self.level} instead of {before}: {failure}")

    def _drop_all(self) -> None:
        self._captured = self._captured_encoder = self._decode_layer = None
        self._encoder.replay_with(None)


def try_out(backends: Backends, device: str, wanted: Acceleration, folder: Path | None) -> tuple[Level, str]:
    """Return the highest level on which a small computation works, and why not a higher one.

    Args:
        folder: voxcli's cache folder, in which compiled kernels are kept; None for torch's own.
    """
    level, why = backends.highest(wanted)
    while level != "none" and (failure := _failure_of(backends, device, level, folder)):
        level, why = BELOW[level], failure
    return level, why


def _failure_of(backends: Backends, device: str, level: Level, folder: Path | None) -> str:
    try:
        with compiler.kept_in(folder), quiet_compiler(), torch.inference_mode():
            _check_level(backends, device, level)
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail in many ways
        return _describe("a small computation", error)
    return ""


def _check_level(backends: Backends, device: str, level: Level) -> None:
    """Double a few numbers on a level. Raises whatever error occurs."""
    number, doubled = torch.zeros(2, 8, device=device)
    double: Any = torch.compile(_double, fullgraph=True, backend=backends.compiler) if level == "compiled" else _double

    def work() -> None:
        doubled.copy_(double(number))

    replay = backends.graphs()(work) if backends.graphs else work
    number.fill_(3)
    replay()
    if doubled.tolist() != [6] * 8:
        raise DifferenceError("2 times 3 is not 6")


def _double(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


def _describe(stage: str, error: Exception) -> str:
    """Return one line about a failure; log its traceback."""
    log.warning("%s failed\n%s", stage, "".join(traceback.format_exception(error)))
    reason = " ".join(str(error).split())[:ERROR_CHARACTERS]
    return f"{stage} failed: {type(error).__name__}: {reason}"


def _empty_memory() -> None:
    try:
        torch.cuda.empty_cache()
    except RuntimeError:  # a broken device; the next computation on it raises the error
        log.warning("the memory of the GPU could not be freed", exc_info=True)
