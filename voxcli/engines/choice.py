"""Which engine answers, and opening it. It knows each engine by name and what it needs to be opened."""

import os
import platform
import sys
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voxcli.engines import checkpoints, weights
from voxcli.errors import ModelError
from voxcli.turn import Engine

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class EngineOptions:
    """What a user may say about the engine."""

    engine: Literal["auto", "voxtral", "embedded"]
    model: str  # short name, hub id or folder
    device: Literal["auto", "cuda", "mps", "cpu"]
    instructions: str  # of the session to come
    max_reply_tokens: int
    temperature: float  # 0 is greedy
    top_p: float
    context_tokens: int  # of the prompt, the reply not included
    quantize: Literal["none", "int8", "fp8"] = "none"  # the voxtral engine's matrices


def open_engine(options: EngineOptions, cache: Path, notice: Notice, progress: Progress | None = None) -> Engine:
    """Choose, fetch where needed, and load the engine; `notice` is told what was chosen and why.

    Args:
        cache: where the embedded engine's weights are made ready, and the voxtral engine's kernels kept.
        progress: called while a checkpoint is downloaded.

    Raises:
        ModelError: the engine asked for can't be had.
    """
    if options.engine == "embedded":
        return _open_embedded(options, cache, notice, why="")
    if options.engine == "voxtral":
        return _open_voxtral(options, _checkpoint(options, notice, progress), cache, notice)
    if why := why_not_voxtral(options.device):
        return _open_embedded(options, cache, notice, why)
    try:
        checkpoint = _checkpoint(options, notice, progress)
    except ModelError as error:
        return _open_embedded(options, cache, notice, why=str(error))
    return _open_voxtral(options, checkpoint, cache, notice)


def _open_embedded(options: EngineOptions, cache: Path, notice: Notice, why: str) -> Engine:
    from voxcli.engines.embedded import EmbeddedEngine

    reason = f" ({why})" if why else ""
    notice(f"embedded engine{reason}: {EmbeddedEngine.model}, small models that know little")
    return EmbeddedEngine.load(
        weights.prepare(cache, notice=notice),
        instructions=options.instructions,
        max_reply_tokens=options.max_reply_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
    )


def _open_voxtral(options: EngineOptions, checkpoint: Path, cache: Path, notice: Notice) -> Engine:
    from voxcli.engines.voxtral import VoxtralEngine

    engine = VoxtralEngine.load(
        checkpoint,
        name=str(checkpoints.resolve(options.model)),
        device=options.device,
        max_reply_tokens=options.max_reply_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        context_tokens=options.context_tokens,
        notice=notice,
        quantize=options.quantize,
        folder=cache,
    )
    notice(f"voxtral engine: {engine.model}")
    return engine


def _checkpoint(options: EngineOptions, notice: Notice, progress: Progress | None) -> Path:
    """Return the folder of the checkpoint, fetched first where it is not there."""
    if folder := checkpoints.locate(options.model):
        return folder
    notice(f"fetching {checkpoints.resolve(options.model)} (once)")
    return checkpoints.fetch(options.model, progress or (lambda _done, _total: None))


def why_not_voxtral(device: str) -> str:
    """Return why there is no GPU for Voxtral; empty where there is one.

    torch takes a second or two to import, so it is asked only where something looks like a GPU.
    """
    if device == "cpu":
        return "--device cpu"
    if not looks_like_gpu():
        return "no GPU was found"
    try:
        import torch
    except ImportError:
        return "torch is not installed: pip install 'voxcli[voxtral]'"
    except OSError:  # a library that it needs is missing or damaged
        return "torch can't be imported; voxcli doctor says more"
    usable = torch.cuda.is_available() or torch.backends.mps.is_available()
    return "" if usable else "torch can't use the GPU; voxcli doctor says more"


def looks_like_gpu() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.name == "nt":
        return find_library("nvcuda") is not None
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
