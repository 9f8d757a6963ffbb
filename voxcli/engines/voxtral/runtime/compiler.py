"""Compiles the decode step, and keeps compiled kernels between starts.

A decode step reads each weight once; the rest of its time goes to many small kernels. Fused kernels come
closer to the bandwidth of the memory.
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
MODE = "max-autotune-no-cudagraphs"  # searches for the fastest kernels; `cuda_graphs` captures them
MOST_COMPILED = 1024  # compilations of one function: one a bucket, for each engine that a process ever loads


@torch.inference_mode()
def compiled(text: TextModel, cache: Cache, done: Callable[[int], None], backend: Any = "inductor") -> Any:
    """Return `TextModel.decode_layer` compiled for each bucket of a cache.

    Overwrites what the cache holds. Raises whatever the compiler raises. Call this function, and the one that
    it returns, within `kept_in`.

    Args:
        done: called with the number of compiled buckets.
        backend: a backend of `torch.compile`.
    """
    mode = MODE if backend == "inductor" else None
    decode_layer: Any = torch.compile(text.decode_layer, dynamic=False, fullgraph=True, mode=mode, backend=backend)
    token, position = (torch.zeros(shape, dtype=torch.int64, device=text.device) for shape in ((1, 1), (1,)))
    for number, extent in enumerate(cache.buckets, 1):
        text.step(token, position, cache, extent, masked=True, through=decode_layer)
        done(number)
    return decode_layer


@contextmanager
def kept_in(cache: Path | None) -> Iterator[None]:
    """Allow many compilations of one function, and keep compiled kernels in a folder.

    Only the owner may write to the folder, because the kernels in it are run.

    Args:
        cache: voxcli's cache folder; None for torch's own.
    """
    if cache is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # torch reads it at each compilation
    dynamo: Any = torch._dynamo.config
    # Beyond these limits, dynamo raises an error or runs the function uncompiled.
    with dynamo.patch(recompile_limit=MOST_COMPILED, accumulated_recompile_limit=MOST_COMPILED):
        yield
