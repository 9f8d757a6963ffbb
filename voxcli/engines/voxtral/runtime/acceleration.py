"""The fast path of a turn's work: compiled and captured where that works, else the best that does.

    compiled   CUDA graphs of the kernels that a compiler makes
    graphs     CUDA graphs of torch's own kernels
    none       no fast path: torch's own kernels, launched one by one

Whatever fails on one of these levels, compiling, capturing or replaying, the next one is taken, and a notice
says so. Methods that do a turn's work return None where the caller is to compute it plainly.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch

from voxcli.engines.voxtral.quiet import quiet_compiler
from voxcli.engines.voxtral.runtime import comparison, compiler
from voxcli.engines.voxtral.runtime.cuda_graphs import (
    CapturedEncoder,
    CapturedModel,
    CudaGraphs,
    GraphRecorder,
    recordings,
)
from voxcli.engines.voxtral.runtime.encoder import WindowEncoder
from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.sampler import Sampler, Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel

Level = Literal["compiled", "graphs", "none"]
Acceleration = Literal["auto", "compiled", "graphs", "none"]  # the highest level to try; auto: the highest there is
BELOW: dict[Level, Level] = {"compiled": "graphs", "graphs": "none"}
SAID_CHARACTERS = 200  # of an error; the log has the rest

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # parts done, parts in all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backends:
    """What compiles and captures on a device."""

    compiler: Any = None  # a backend of `torch.compile`; None where there is none
    graphs: Callable[[], GraphRecorder] | None = None  # makes what captures
    no_compiler: str = ""  # why there is none
    no_graphs: str = ""
    looks_ahead: bool = False  # whether the next step is begun before a token is read, as suits a GPU

    @classmethod
    def of(cls, device: str) -> Self:
        """Return those of a device: cuda, mps or cpu."""
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
    """What `FastPath.warm_up` was asked for."""

    sampling: Sampling
    capacity: int
    folder: Path | None
    notice: Notice


class FastPath:
    """Computes what it can of one model's work with one cache at a time, on the highest level that works."""

    def __init__(self, text: TextModel, encoder: WindowEncoder, backends: Backends) -> None:
        """Begin without a fast path; `warm_up` makes one."""
        self.level: Level = "none"
        self._text, self._encoder, self._backends = text, encoder, backends
        self._plan: _Plan | None = None
        self._decode_layer: Any = None  # compiled
        self._captured_encoder: CapturedEncoder | None = None
        self._captured: CapturedModel | None = None
        self._doing = ""

    def warm_up(
        self,
        cache: Cache,
        sampling: Sampling,
        acceleration: Acceleration,
        notice: Notice,
        progress: Progress,
        folder: Path | None,
    ) -> None:
        """Compile and capture; what is cached is dropped. `decoder.Decoder.warm_up` says what the arguments mean."""
        self.close()
        self.level, why = self._backends.highest(acceleration)
        if acceleration not in ("auto", self.level):
            notice(f"acceleration: {self.level} instead of {acceleration}: {why}")
        self._plan = _Plan(sampling, cache.capacity, folder, notice)
        self._establish(cache, progress)
        log.info("acceleration: %s", self.level)

    def fit(self, cache: Cache) -> bool:
        """Capture anew for a cache, where it has the size of the first one and nothing is captured.

        Returns:
            Whether anything was tried; what was cached is then dropped.
        """
        if self.level == "none" or self._captured or not self._plan or cache.capacity != self._plan.capacity:
            return False
        self._establish(cache, lambda _done, _total: None)
        return True

    def release(self) -> None:
        """Let go of what points into the cache."""
        self._captured = None

    def close(self) -> None:
        """Let go of everything; all is computed plainly from now on."""
        self.level, self._plan = "none", None
        self._let_go()

    def prefill(self, embeddings: torch.Tensor, start: int) -> torch.Tensor | None:
        """Feed up to 512 embeddings, (n, hidden), from `start` on; return the last hidden state, (hidden,), or None."""
        captured = self._captured
        return self._replayed(lambda: captured.prefill(embeddings, start)) if captured else None

    def next(self, token: torch.Tensor, place: int, sampler: Sampler) -> torch.Tensor | None:
        """Feed a token, (1, 1), at position `place`; return the one after it, (1, 1), or None."""
        captured = self._captured
        return self._replayed(lambda: captured.next(token, place, sampler)) if captured else None

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return what chooses the tokens of a reply that begins now: the captured one, if it does so in this way."""
        if self._captured and self._captured.sampler.is_alike(sampling):
            self._captured.sampler.begin(sampling.seed)
            return self._captured.sampler
        return Sampler(sampling, self._text.device)

    def _encode(self, window: torch.Tensor) -> torch.Tensor | None:
        captured = self._captured_encoder
        return self._replayed(lambda: captured.encode(window)) if captured else None

    def _replayed(self, replay: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        """Return what is replayed; None where that fails, and nothing is replayed until the next `fit`.

        The same work may then be done plainly: it writes the same keys and values to the same places.
        """
        try:
            return replay()
        except Exception as error:  # noqa: BLE001 - whatever it is, there is another way
            failure = _said("replaying", error)
        self._descend(failure)
        return None

    def _establish(self, cache: Cache, progress: Progress) -> None:
        """Make the present level ready, or the next one where it fails."""
        while self.level != "none" and (failure := self._failure(cache, progress)):
            self._descend(failure)

    def _failure(self, cache: Cache, progress: Progress) -> str:
        """Try the present level; return what failed. An exception would keep what it had captured in memory."""
        plan = self._plan
        if plan is None:
            return ""
        try:
            with compiler.kept_in(plan.folder), quiet_compiler():
                self._make_ready(cache, plan, progress)
        except Exception as error:  # noqa: BLE001 - compilers and drivers fail in many ways
            return _said(self._doing, error)
        finally:
            cache.rewind(0)
        return ""

    def _make_ready(self, cache: Cache, plan: _Plan, progress: Progress) -> None:
        if self._backends.graphs is None:
            return
        compiles = self.level == "compiled" and self._decode_layer is None
        before = 1 + (len(cache.buckets) if compiles else 0)  # the encoder, and these
        total = before + recordings(self._text, cache)
        progress(0, total)
        if compiles:
            self._doing = "compiling"
            plan.notice("compiling the decode step: minutes at the first start, seconds later")
            backend = self._backends.compiler
            self._decode_layer = compiler.compiled(self._text, cache, lambda done: progress(done, total), backend)
        self._doing = "capturing"
        if self._captured_encoder is None:
            self._captured_encoder = CapturedEncoder(self._encoder, self._backends.graphs())
            self._encoder.replay_with(self._encode)
        progress(before, total)
        sampler = Sampler(plan.sampling, self._text.device)
        self._captured = CapturedModel(
            self._text,
            cache,
            sampler,
            self._backends.graphs(),
            lambda done: progress(before + done, total),
            self._decode_layer,
        )
        self._doing = "comparing with the plain pass"
        comparison.compare(self._text, cache, self._captured, self._encoder, self._captured_encoder)

    def _descend(self, failure: str) -> None:
        """Take the next level, and free what the present one holds in memory."""
        self._let_go()
        before, self.level = self.level, BELOW[self.level]
        if self._text.device.type == "cuda":
            _empty_memory()
        if self._plan:
            self._plan.notice(f"acceleration: {self.level} instead of {before}: {failure}")

    def _let_go(self) -> None:
        self._captured = self._captured_encoder = self._decode_layer = None
        self._encoder.replay_with(None)


def try_out(backends: Backends, device: str, wanted: Acceleration, folder: Path | None) -> tuple[Level, str]:
    """Return the highest level on which a small computation works, and why not a higher one.

    Args:
        folder: voxcli's cache folder, where compiled kernels are kept; None for torch's own.
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
        return _said("a small computation", error)
    return ""


def _check_level(backends: Backends, device: str, level: Level) -> None:
    """Double a few numbers on a level. Raises whatever fails."""
    number, doubled = torch.zeros(2, 8, device=device)
    double: Any = torch.compile(_double, fullgraph=True, backend=backends.compiler) if level == "compiled" else _double

    def work() -> None:
        doubled.copy_(double(number))

    replay = backends.graphs()(work) if backends.graphs else work
    number.fill_(3)
    replay()
    if doubled.tolist() != [6] * 8:
        raise comparison.DifferenceError("2 times 3 is not 6")


def _double(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


def _said(doing: str, error: Exception) -> str:
    """Return what failed in one line; log the rest."""
    log.warning("%s failed\n%s", doing, "".join(traceback.format_exception(error)))
    reason = " ".join(str(error).split())[:SAID_CHARACTERS]
    return f"{doing} failed: {type(error).__name__}: {reason}"


def _empty_memory() -> None:
    try:
        torch.cuda.empty_cache()
    except RuntimeError:  # the device is beyond help, which what is computed next will say
        log.warning("the memory of the GPU could not be freed", exc_info=True)
