"""Kernels that a compiler makes of the decode step, kept between starts.

A step of decoding reads each weight once, and what is left is the time between many small kernels:
joined ones come closer to the speed of the memory. Knows nothing of what the step computes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from voxcli.engines.voxtral.runtime.kv_cache import Cache
from voxcli.engines.voxtral.runtime.text_model import TextModel

FOLDER = "kernels"
MODE = "max-autotune-no-cudagraphs"  # searches for the fastest kernels; the graphs are ours
MOST_COMPILED = 1024  # of one function: once a bucket, for each engine that a process ever loads


@torch.inference_mode()
def compiled(text: TextModel, memory: Cache, done: Callable[[int], None], backend: Any = "inductor") -> Any:
    """Return what the compiler makes of `TextModel.decode_layer`, for each bucket of a cache.

    Overwrites what the cache holds. Raises whatever the compiler raises. To be called, as what it returns,
    within `kept_in`.

    Args:
        done: told how many buckets are compiled.
        backend: what compiles.
    """
    mode = MODE if backend == "inductor" else None
    decode_layer: Any = torch.compile(text.decode_layer, dynamic=False, fullgraph=True, mode=mode, backend=backend)
    token, position = (torch.zeros(shape, dtype=torch.int64, device=text.device) for shape in ((1, 1), (1,)))
    for number, extent in enumerate(memory.buckets, 1):
        text.step(token, position, memory, extent, masked=True, through=decode_layer)
        done(number)
    return decode_layer


@contextmanager
def kept_in(cache: Path | None) -> Iterator[None]:
    """Let functions be compiled for many shapes, and keep what is compiled under a folder.

    Nobody else may write to the folder: what lies there is run.

    Args:
        cache: voxcli's cache folder; None for where torch keeps it.
    """
    if cache is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # read whenever something is compiled
    dynamo: Any = torch._dynamo.config
    # Beyond its limits, dynamo raises an error or runs the function uncompiled.
    with dynamo.patch(recompile_limit=MOST_COMPILED, accumulated_recompile_limit=MOST_COMPILED):
        yield
