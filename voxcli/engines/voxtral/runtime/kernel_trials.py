"""Tries alternative operations at load and takes the first that is correct and fast on the device.

Only Apple's GPUs are tried. Releases of torch computed attention of few queries to many keys wrongly there
(pytorch#174861), and had a cache write that was missing or 100 times too slow (#154326, #185750).
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from voxcli.engines.voxtral.device.demand import MASK_ROWS
from voxcli.engines.voxtral.runtime import attention
from voxcli.engines.voxtral.runtime.attention import Kernel
from voxcli.errors import ModelError

QUERIES = (1, 4, 8, 16)  # numbers of queries per KV head; kernels differ between few and many
KEYS = 1100  # kernels differ from 1024 keys on
CAPACITY = 2048  # tokens of the cache for trial writes
SLOW = 5.0  # times the fastest correct operation; the slow release took 100 times as long
RUNS = 3  # timed runs, of which the fastest counts
TOLERANCE = 0.02  # attention in bfloat16 is rounded to 0.4 %

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]  # a layer of the cache, positions, keys and values
Seconds = Callable[[Callable[[], object]], float]
_Way = TypeVar("_Way")

log = logging.getLogger(__name__)


def index_copy(stored: torch.Tensor, positions: torch.Tensor, both: torch.Tensor) -> None:
    """Write into a whole layer with one operation. For a write into a view, a compiler would copy the layer."""
    stored.index_copy_(2, positions, both)


def index_put(stored: torch.Tensor, positions: torch.Tensor, both: torch.Tensor) -> None:
    """Write by a tensor of indices."""
    stored[:, :, positions] = both


def slices(stored: torch.Tensor, positions: torch.Tensor, both: torch.Tensor) -> None:
    """Write into slices, whose positions the host has to read first."""
    places = positions.tolist()
    if places == list(range(places[0], places[0] + len(places))):
        stored[:, :, places[0] : places[0] + len(places)] = both
        return
    for number, place in enumerate(places):
        stored[:, :, place] = both[:, :, number]


WRITES: dict[str, Write] = {"index_copy": index_copy, "index_put": index_put, "slices": slices}
KERNELS: dict[str, Kernel] = {"fused": attention.fused, "plain": attention.plain}


def cache_write(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Write:
    """Return the function that writes keys and values into a layer of the cache."""
    return tried_write(kv_heads, head_dim, dtype, device, WRITES) if device.type == "mps" else index_copy


def attention_kernel(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Kernel:
    """Return the kernel for attention."""
    if device.type != "mps":
        return attention.fused
    return tried_kernel(heads // kv_heads, kv_heads, head_dim, dtype, device, KERNELS)


@torch.inference_mode()
def tried_write(
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    ways: Mapping[str, Write],
    seconds: Seconds | None = None,
) -> Write:
    """Return the first write that is correct and not slow.

    Raises:
        ModelError: none is correct.
    """
    source = torch.Generator().manual_seed(0)
    places = torch.cat([torch.arange(700, 764), torch.tensor([3, 1500, 90])])
    shapes = (2, kv_heads, CAPACITY, head_dim), (2, kv_heads, len(places), head_dim)
    before, both = (torch.randn(shape, generator=source).to(dtype) for shape in shapes)
    expected = before.clone()
    expected[:, :, places] = both
    stored, positions, new = before.to(device), places.to(device), both.to(device)

    def is_right(write: Write) -> bool:
        target = stored.clone()
        write(target, positions, new)
        return torch.equal(target.cpu(), expected)

    one = positions[:1], new[:, :, :1].contiguous()
    measure = seconds or _seconds
    return choose("cache write", ways, is_right, lambda write: measure(lambda: write(stored, *one)))


@torch.inference_mode()
def tried_kernel(
    group: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    ways: Mapping[str, Kernel],
    seconds: Seconds | None = None,
) -> Kernel:
    """Return the first kernel with the CPU's results that is not slow.

    Args:
        group: number of queries that share a KV head.

    Raises:
        ModelError: none is correct.
    """
    source = torch.Generator().manual_seed(0)
    cases: list[tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]] = []
    for count in sorted({*QUERIES, group, MASK_ROWS}):
        tensors = [torch.randn(1, kv_heads, rows, head_dim, generator=source).to(dtype) for rows in (count, KEYS, KEYS)]
        hidden = torch.rand(count, KEYS, generator=source) > 0.7
        mask = torch.zeros(count, KEYS, dtype=dtype).masked_fill(hidden, float("-inf"))
        queries, keys, values = (tensor.float() for tensor in tensors)
        there = [tensor.to(device) for tensor in tensors]
        cases.append((there, None, attention.plain(queries, keys, values)))
        cases.append((there, mask.to(device), attention.plain(queries, keys, values, mask.float())))

    def is_right(kernel: Kernel) -> bool:
        found = (kernel(*tensors, attn_mask=mask).float().cpu() for tensors, mask, _ in cases)
        pairs = zip(found, (case[2] for case in cases), strict=True)
        return all(torch.allclose(each, expected, atol=TOLERANCE, rtol=TOLERANCE) for each, expected in pairs)

    tried, visible, _ = cases[-1]
    measure = seconds or _seconds
    return choose("attention", ways, is_right, lambda kernel: measure(lambda: kernel(*tried, attn_mask=visible)))


def choose(
    what: str, ways: Mapping[str, _Way], is_right: Callable[[_Way], bool], seconds: Callable[[_Way], float]
) -> _Way:
    """Return the first correct way that takes at most `SLOW` times as long as the fastest correct one.

    Raises:
        ModelError: none is correct.
    """
    right = {name: way for name, way in ways.items() if _works(what, name, way, is_right)}
    if not right:
        raise ModelError(f"this GPU computes wrongly with this torch ({what})", hint="use --device cpu")
    times = {name: seconds(way) for name, way in right.items()} if len(right) > 1 else dict.fromkeys(right, 0.0)
    limit = SLOW * min(times.values())
    name = next(name for name in right if times[name] <= limit)
    log.info("%s: %s; seconds %s", what, name, times)
    return right[name]


def _works(what: str, name: str, way: _Way, is_right: Callable[[_Way], bool]) -> bool:
    try:
        works = is_right(way)
    except Exception as error:  # noqa: BLE001 - this release lacks the operation
        log.info("%s: %s fails: %s", what, name, error)
        return False
    if not works:
        log.info("%s: %s is wrong", what, name)
    return works


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of work on Apple's GPU in seconds, after a warm-up run."""
    mps: Any = torch.mps
    taken = []
    for _ in range(RUNS + 1):
        mps.synchronize()
        started = time.perf_counter()
        work()
        mps.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
