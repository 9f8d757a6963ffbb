"""What torch leaves undone on a CPU: matrix products through oneDNN, and memory that is kept for the next ones.

torch gives products in float32 to MKL, which on processors that are not Intel's leaves half of their vector
units idle: on an AMD EPYC of the fifth generation, oneDNN, which torch brings along, took 0.45 of the time
(docs/benchmarks.md). Which of both is faster is tried out, once. Results differ in the last bits.

Nothing here knows of models: it computes linear maps and attention, its own or those of a module under `Products`.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.overrides import TorchFunctionMode

LEAST_PRODUCT = 1 << 21  # multiplications: below, it takes longer to prepare oneDNN's product than to compute MKL's
LEAST_QUERIES = 64  # of attention, likewise
BLOCK_ROWS = 384  # of attention's scores at once: 5 MB for 3,500 keys, which a CPU's caches hold
TRIED_SIZE, TRIED_TIMES = 512, 7
LEAST_GAIN = 1.2  # with less, torch's own way stays
LARGEST_KEPT = 31 << 20  # bytes


def is_faster(like: torch.Tensor) -> bool:
    """Return whether what is here is faster than torch's own way, for numbers of this format on this device."""
    return _is_plain(like) and _onednn_pays()


def keep_freed_memory() -> None:
    """Have temporaries of some megabytes allocated without asking the system for each, which takes as long as products.

    glibc keeps what is freed for the next allocation up to a threshold, which is the largest piece below
    32 MB that was ever freed (mallopt(3), M_MMAP_THRESHOLD). Elsewhere nothing comes of this.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)  # and freed


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
    """Compute `F.linear` in the faster way for its size; float32, on a CPU on which oneDNN pays."""
    small = inputs.numel() * weight.shape[0] < LEAST_PRODUCT
    return F.linear(inputs, weight, bias) if small else product(inputs, weight, bias)


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
        mask: added to the scores of the last keys, (tokens, last keys); None where all see all.
        scale: of the scores; None for one over the root of head_dim.
    """
    heads, tokens, head_dim = queries.shape
    scaled = queries * (head_dim**-0.5 if scale is None else scale)
    rows = scaled.reshape(keys.shape[0], -1, head_dim)  # those that share keys are one matrix
    masks = None if mask is None else mask.repeat(heads // keys.shape[0], 1)
    results = torch.empty_like(rows)
    for some, key, value, result in zip(rows, keys, values, results, strict=True):
        across = value.T.contiguous()
        for first in range(0, len(some), BLOCK_ROWS):
            block = slice(first, first + BLOCK_ROWS)
            scores = product(some[block], key)
            if masks is not None:
                scores[:, -masks.shape[1] :] += masks[block]
            result[block] = product(torch.softmax(scores, -1, out=scores), across)
    return results.view(heads, tokens, head_dim)


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
        if func is F.linear and _is_plain(args[0]):
            return linear(*args, **kwargs)
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
