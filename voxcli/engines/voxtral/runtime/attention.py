"""Attention of tokens to the tokens before them in the cache.

causal      consecutive tokens at a position known to the host, by the fastest kernel of the device
best        consecutive tokens at positions in a tensor that the host does not read, so that one captured graph
            serves every prompt. `masked` runs on every device and reads all the positions that it is given;
            `flash` reads only filled positions, on GPUs that have the kernel
of_slots    one token in each slot
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from voxcli.engines.voxtral.device.demand import MASK_ROWS
from voxcli.engines.voxtral.device.hardware import FLASH_CAPABILITY

TRIED_TOKENS, TRIED_START = (1, 16), 40  # the sizes that `best` tries; one query has a kernel of its own

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # queries, a layer of the cache
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # queries, keys, values
Kernel = Callable[..., torch.Tensor]  # queries, keys, values, attn_mask, with equal numbers of heads
fused: Kernel = F.scaled_dot_product_attention


class Attention(Protocol):
    """Computes attention; all arguments are on one device."""

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return outputs, (tokens, heads, head_dim).

        Args:
            queries: (heads, tokens, head_dim).
            keys: keys of the cache, (kv_heads, cached, head_dim), including those of these tokens.
            values: values of the cache, of the same shape.
            positions: consecutive positions of the tokens in the cache, (tokens,).
        """
        ...


def plain(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Implement `Kernel` with products and a softmax in float32, which every device computes."""
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2)).float()
    weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    return torch.matmul(weights.to(values.dtype), values)


def masked(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Attend with a mask over all given positions, `MASK_ROWS` queries at a time to bound the memory for scores."""
    places = torch.arange(keys.shape[1], device=keys.device)
    blocks = []
    for first in range(0, queries.shape[1], MASK_ROWS):
        rows, seen = queries[:, first : first + MASK_ROWS], positions[first : first + MASK_ROWS]
        mask = torch.zeros(seen.shape[0], keys.shape[1], dtype=queries.dtype, device=keys.device)
        mask = mask.masked_fill(places > seen[:, None], float("-inf"))
        blocks.append(grouped(rows, keys, values, mask))
    return torch.cat(blocks, 1).transpose(0, 1)


def grouped(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, kernel: Kernel = fused
) -> torch.Tensor:
    """Attend with queries that share a KV head as rows of one matrix, which avoids copies of keys and values.

    Args:
        queries: (heads, tokens, head_dim).
        keys: (kv_heads, cached, head_dim), like the values.
        mask: (tokens, cached), added to the scores.
    """
    rows = queries.reshape(keys.shape[0], -1, queries.shape[2])
    if mask is not None:
        mask = mask.repeat(queries.shape[0] // keys.shape[0], 1)
    return kernel(rows[None], keys[None], values[None], attn_mask=mask)[0].reshape(queries.shape)


def flash(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Attend with the variable-length kernel of FlashAttention, which reads the lengths from the device.

    There is one sequence. Its queries belong to its last keys, as the kernel's causal mask assumes.
    """
    tokens = queries.shape[1]
    ends = torch.arange(2, dtype=torch.int32, device=keys.device)
    attended = ends * (positions[-1:] + 1).int()
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(  # the public `varlen_attn` differs between releases
        queries.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        ends * tokens,
        attended,
        tokens,
        keys.shape[1],
        0.0,  # dropout
        True,  # causal
        False,  # no mask for debugging
    )[0]
    return out


@cache
def has_flash(device: torch.device) -> bool:
    """Return whether FlashAttention supports a device. Other kernels may copy the keys of grouped queries."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def causal(start: int, count: int, like: torch.Tensor, kernel: Kernel = fused) -> Attend:
    """Return the attention of `count` tokens to themselves and the `start` tokens before them.

    The returned function takes queries, (heads, count, head_dim), and a layer of the cache, (2, kv_heads,
    capacity, head_dim), and returns outputs, (count, heads * head_dim).

    Args:
        like: any tensor of the same number format on the same device.
    """
    extent = start + count
    by_rows = (start or kernel is not fused) and not has_flash(like.device)
    compute = _by_rows(start, count, like, kernel) if by_rows else _in_one_kernel(start, count)

    def attend(queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        keys, values = stored[:, :, :extent]
        return compute(queries, keys, values).transpose(0, 1).reshape(count, -1)

    return attend


def _in_one_kernel(start: int, count: int) -> Compute:
    mask: Any = None  # None at position 0, where kernels have a causal mode.
    if start:
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(count, start + count)
    return lambda queries, keys, values: _attended(queries, keys, values, attn_mask=mask, is_causal=not start)


def _by_rows(start: int, count: int, like: torch.Tensor, kernel: Kernel) -> Compute:
    """Attend `MASK_ROWS` queries at a time, so that each block reads only the positions it attends to.

    One small mask serves all blocks. It is numeric, because CPU kernels take twice as long with a boolean one.
    """
    on_cpu = like.device.type == "cpu"
    last = (count - 1) // MASK_ROWS * MASK_ROWS  # first row of the last block
    mask = torch.full((MASK_ROWS, start + last + MASK_ROWS), float("-inf"), dtype=like.dtype, device=like.device)
    mask.triu_(start + last + 1)

    def compute(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        blocks = []
        for first in range(0, count, MASK_ROWS):
            rows = queries[:, first : first + MASK_ROWS]
            seen = start + first + rows.shape[1]
            visible = mask[: rows.shape[1], last - first : last - first + seen]
            if on_cpu and kernel is fused:  # the CPU's fused kernel does not copy shared keys
                blocks.append(_attended(rows, keys[:, :seen], values[:, :seen], attn_mask=visible))
            else:
                blocks.append(grouped(rows, keys[:, :seen], values[:, :seen], visible, kernel))
        return torch.cat(blocks, 1)

    return compute


def _attended(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any) -> torch.Tensor:
    gqa = queries.shape[0] > keys.shape[0]
    return F.scaled_dot_product_attention(queries[None], keys[None], values[None], enable_gqa=gqa, **options)[0]


def of_slots(positions: torch.Tensor, capacity: int, extent: int, dtype: torch.dtype, kernel: Kernel = fused) -> Attend:
    """Return the attention of one token in each of the first slots, as in `TextModel.step_slots`.

    The returned function takes queries, (heads, slots, head_dim), and a layer of the cache, (2, kv_heads,
    all slots * capacity, head_dim), and returns outputs, (slots, heads * head_dim). Queries that share a KV head
    are passed to the kernel as tokens, so that the head is read once.
    """
    count = positions.shape[0]
    places = torch.arange(extent, device=positions.device)
    mask = torch.zeros(count, extent, dtype=dtype, device=positions.device)
    mask = mask.masked_fill_(places > positions[:, None], float("-inf"))[:, None, None]

    def attend(queries: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        kv_heads, head_dim = stored.shape[1], stored.shape[3]
        keys, values = stored.view(2, kv_heads, -1, capacity, head_dim).transpose(1, 2)[:, :count, :, :extent]
        by_head = queries.view(kv_heads, -1, count, head_dim).permute(2, 0, 1, 3)
        return kernel(by_head, keys, values, attn_mask=mask).reshape(count, -1)

    return attend


def best(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """Return `flash` where a trial gives the results of `masked`, else `masked`."""
    if device.type == "cuda" and torch.version.hip is None and _flash_works(heads, kv_heads, head_dim, dtype, device):
        return flash
    return masked


@torch.inference_mode()
def _flash_works(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    for tokens in TRIED_TOKENS:
        queries = torch.randn(heads, tokens, head_dim).to(device, dtype)
        keys, values = torch.randn(2, kv_heads, 2 * (TRIED_START + tokens), head_dim).to(device, dtype)
        positions = torch.arange(TRIED_START, TRIED_START + tokens, device=device)
        try:
            found = flash(queries, keys, values, positions).float()
        except Exception:  # noqa: BLE001 - the kernel does not support this GPU, head size or number format
            return False
        if not torch.allclose(found, masked(queries, keys, values, positions).float(), atol=0.02, rtol=0.02):
            return False
    return True
