"""What torch leaves undone on a CPU: matrix products through oneDNN, and memory that is kept for the next ones.

torch gives products in float32 to MKL, which on processors that are not Intel's leaves half of their vector
units idle: on an AMD EPYC of the fifth generation, oneDNN, which torch brings along, took 0.45 of the time
(docs/benchmarks.md). Which of both is faster is tried out, once. Results differ in the last bits.

Nothing here knows of models: it computes linear maps and attention, its own or those of a module under `Products`.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.overrides import TorchFunctionMode

LEAST_PRODUCT = 1 << 21  # multiplications: below, it takes longer to prepare oneDNN's product than to compute MKL's
LEAST_WEIGHTS = 1 << 18  # of a map of one token, likewise: they come from memory, and oneDNN takes half the time for it
LEAST_QUERIES = 64  # of attention

# oneDNN keeps half a megabyte for each shape it ever computed, and results of many sizes leave holes in memory. So
# shapes are few: tokens are padded, and attention is computed in parts.
TOKENS = (8, 16, 24, 32, 64, 128, 256, 384, 512)  # of a linear map: of a step of many replies, of a prompt
ROWS, PART_ROWS = 128, 512  # tokens of attention, to multiples of these; at once
PART_KEYS = 2048  # of attention at once: 4 MB of scores, which a CPU's caches hold
KEYS = 512  # what is cached, to multiples of these

TRIED_SIZE, TRIED_TIMES = 512, 7
LEAST_GAIN = 1.2  # with less, torch's own way stays
LARGEST_KEPT = 31 << 20  # bytes
# A chunk of a prompt takes 16 MB where the most is computed at once. Holes between what stays come to it: with 24 MB,
# 500 turns still added up to 12. Four pieces, for each has to be smaller than what glibc asks the system for.
RESERVED, PIECES = 10 << 20, 4  # bytes of each

_reserved = threading.local()


def is_faster(like: torch.Tensor) -> bool:
    """Return whether what is here is faster than torch's own way, for numbers of this format on this device."""
    return _is_plain(like) and _onednn_pays()


def keep_freed_memory() -> None:
    """Have temporaries of some megabytes allocated without asking the system for each, which takes as long as products.

    glibc keeps what is freed for the next allocation up to a threshold, which is the largest piece below
    32 MB that was ever freed (mallopt(3), M_MMAP_THRESHOLD). Elsewhere nothing comes of this.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)  # and freed


def reserve_memory() -> None:
    """Have the process hold from now on what the temporaries of this thread take at most, so that it does not grow.

    Each thread has a heap of its own. Comes after `keep_freed_memory`, and does nothing the second time.
    """
    if not getattr(_reserved, "is_done", False):
        [torch.zeros(RESERVED, dtype=torch.uint8) for _ in range(PIECES)]  # all at once, and freed
        _reserved.is_done = True


@cache
def _onednn_pays() -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.inference_mode():
        left, right = torch.ones(2, TRIED_SIZE, TRIED_SIZE)
        try:
            product(left, right)
        except (AttributeError, RuntimeError):  # this build of torch has no such operator
            return False
        usual = min(_seconds(F.linear, left, right) for _ in range(TRIED_TIMES))
        return usual > LEAST_GAIN * min(_seconds(product, left, right) for _ in range(TRIED_TIMES))


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return inputs, (..., in), times the transpose of a weight, (out, in), as `F.linear` does; all in float32."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `F.linear` of any number of tokens in the faster way; float32, on a CPU on which oneDNN pays."""
    count = inputs.numel() // inputs.shape[-1]
    least = LEAST_WEIGHTS if count == 1 else LEAST_PRODUCT
    if inputs.numel() * weight.shape[0] < least:
        return F.linear(inputs, weight, bias)
    if inputs.dim() != 2 or count == 1 or count > TOKENS[-1]:
        return product(inputs, weight, bias)
    padding = next(tokens for tokens in TOKENS if tokens >= count) - count
    return product(F.pad(inputs, (0, 0, 0, padding)), weight, bias)[:count]


def rounded(count: int, step: int) -> int:
    """Return the next multiple of `step`."""
    return -(-count // step) * step


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Return what queries get of values, (heads, tokens, head_dim), by scaled dot-product attention.

    Args:
        queries: (heads, tokens, head_dim).
        keys: (kv_heads, cached, head_dim); as many heads in a row share one of them as there are to each.
        values: likewise.
        mask: added to the scores of the last keys, (tokens, at most `PART_KEYS`); None where all see all. Every
            query sees one of the last `PART_KEYS` keys.
        scale: of the scores; None for one over the root of head_dim.
    """
    heads, tokens, head_dim = queries.shape
    step = min(rounded(tokens, ROWS), PART_ROWS)
    padding = (0, 0, 0, rounded(tokens, step) - tokens)
    rows = F.pad(queries * (head_dim**-0.5 if scale is None else scale), padding)
    masks = torch.zeros(rows.shape[1], 0) if mask is None else F.pad(mask, padding)
    results = torch.empty_like(rows)
    shared = heads // len(keys)
    for head in range(heads):
        parts = list(_parts(keys[head // shared], values[head // shared]))
        for first in range(0, rows.shape[1], step):
            block = slice(first, first + step)
            results[head, block] = _attended(rows[head, block], parts, masks[block])
    return results[:, :tokens]


def warm_up(head_dim: int, maps: Sequence[nn.Module]) -> None:
    """Compute attention, and linear maps of each shape that there is, once for each number of tokens.

    oneDNN compiles what it computes first, and keeps it.
    """
    for module in maps:
        if isinstance(module, Linear):
            for tokens in (*TOKENS[::-1], 1):
                module(torch.zeros(tokens, module.in_features))
    for tokens in range(PART_ROWS, 0, -ROWS):
        for cached in range(PART_KEYS, 0, -KEYS):
            keys = torch.zeros(1, cached, head_dim)
            attention(torch.zeros(1, tokens, head_dim), keys, keys)


def _parts(keys: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give keys, and values transposed, in parts, the last ones first."""
    for end in range(len(keys), 0, -PART_KEYS):
        part = slice(max(0, end - PART_KEYS), end)
        yield keys[part], values[part].T


def _attended(rows: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor) -> torch.Tensor:
    """Return what rows get of all parts, as `_parts` gives them; the mask is of the first one."""
    (key, across), *others = parts
    scores = product(rows, key)
    if mask.shape[1]:
        scores[:, -mask.shape[1] :] += mask
    if not others:
        return product(torch.softmax(scores, -1, out=scores), across)
    result, weight = _weighed(scores, across)
    for key, across in others:
        got, other = _weighed(product(rows, key), across)
        result = torch.lerp(got, result, torch.sigmoid(weight - other))
        weight = torch.logaddexp(weight, other)
    return result


def _weighed(scores: torch.Tensor, across: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what rows get of one part, and the logarithm of its weight, which is the sum of its scores' exponentials.

    A share is the exponential of its score over that sum: so it follows from the greatest of both. Overwrites scores.
    """
    greatest = scores.amax(-1, keepdim=True)
    shares = torch.softmax(scores, -1, out=scores)
    return product(shares, across), greatest - shares.amax(-1, keepdim=True).log()


class Linear(nn.Linear):
    """A linear map that is computed in this way."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (..., out), of inputs, (..., in)."""
        return linear(inputs, self.weight, self.bias)


def hasten(*modules: nn.Module) -> None:
    """Have linear maps computed in this way, where that is faster; what is known of them, and their hooks, stay."""
    for module in modules:
        if type(module) is nn.Linear and is_faster(module.weight):
            module.__class__ = Linear


class Products(TorchFunctionMode):
    """Within it, modules of others compute in this way what they can: linear maps, and attention of many to all."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Implement `TorchFunctionMode`: compute `func`."""
        kwargs = kwargs or {}
        if func is F.linear and _is_plain(args[0]) and args[0].numel() * args[1].shape[0] >= LEAST_PRODUCT:
            return product(*args, **kwargs)
        if func is F.scaled_dot_product_attention and _is_unmasked(args, kwargs):
            scale, batch = kwargs.get("scale"), zip(*args, strict=True)
            return torch.stack([attention(queries, keys, values, None, scale) for queries, keys, values in batch])
        return func(*args, **kwargs)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu"


def _is_unmasked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether scaled_dot_product_attention was asked for what `attention` computes, and it is worth it."""
    if len(args) != 3 or any(kwargs.get(name) for name in ("is_causal", "dropout_p")):
        return False
    unmasked = kwargs.get("attn_mask") is None
    return unmasked and args[0].dim() == 4 and args[0].shape[2] >= LEAST_QUERIES and _is_plain(args[0])


def _seconds(compute: Callable[..., torch.Tensor], left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    compute(left, right)
    return time.perf_counter() - started
