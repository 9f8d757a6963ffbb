"""Kernels that a compiler makes of the decode step, kept between starts.

A step of decoding reads each weight once, and what is left is the time between many small kernels:
joined ones come closer to the speed of the memory. Knows nothing of what the step computes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from voxcli.engines.cache import Cache
from voxcli.engines.llama import Llama

FOLDER = "kernels"
MODE = "max-autotune-no-cudagraphs"  # searches for the fastest kernels; the graphs are ours
MOST_SHAPES = 64  # of one function: a bucket of the cache is a shape


def is_possible(device: str) -> bool:
    """Return whether there is a compiler that pays: for a GPU, triton, which comes with torch on Linux.

    On a CPU it would be C++; docs/engines.md says why it is not used there.
    """
    return device == "cuda" and find_spec("triton") is not None


@torch.inference_mode()
def compiled(
    text: Llama,
    memory: Cache,
    folder: Path | None,
    notice: Callable[[str], None],
    done: Callable[[int], None] = lambda _: None,
    backend: Any = "inductor",
) -> Any:
    """Return what the compiler makes of `Llama.decode_layer`, for each bucket of a cache; None where it fails.

    Overwrites what the cache holds.

    Args:
        folder: voxcli's cache folder; None for where torch keeps what it compiles.
        done: told how many buckets are compiled.
        backend: what compiles.
    """
    mode = MODE if backend == "inductor" else None
    decode_layer: Any = torch.compile(text.decode_layer, dynamic=False, fullgraph=True, mode=mode, backend=backend)
    token = torch.zeros(1, 1, dtype=torch.int64, device=text.device)
    try:
        with kept_in(folder):
            for number, extent in enumerate(memory.buckets, 1):
                text.step(token, text.positions(0, 1)[0], memory, extent, masked=True, through=decode_layer)
                done(number)
    except Exception as error:  # noqa: BLE001 - a compiler fails in many ways; voxcli works without one
        reason = " ".join(str(error).split())[:200]
        notice(f"decoding is not compiled, and slower: {type(error).__name__}: {reason}")
        return None
    return decode_layer


@contextmanager
def kept_in(cache: Path | None) -> Iterator[None]:
    """Keep what is compiled meanwhile under a folder, which nobody else may write to: what lies there is run.

    Args:
        cache: voxcli's cache folder; None for where torch keeps it.
    """
    if cache is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # read whenever something is compiled
    dynamo: Any = torch._dynamo.config
    with dynamo.patch(recompile_limit=MOST_SHAPES):
        yield
