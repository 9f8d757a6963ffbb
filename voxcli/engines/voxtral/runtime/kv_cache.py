"""The KV cache: keys and values of the tokens that a text model was fed, and the ids of these tokens.

The memory is allocated once and stays where it is, so that a captured graph may point into it. Buckets
are views: growing from one to the next copies nothing. Two tokens are the same if their ids are.
"""

from collections.abc import Sequence
from copy import copy
from itertools import takewhile
from typing import Self

import torch

SMALLEST_BUCKET = 1024  # tokens


class Cache:
    """Keys and values of `len(tokens)` tokens, from position 0 on."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        rotation: torch.Tensor,
        smallest_bucket: int = SMALLEST_BUCKET,
    ) -> None:
        """Allocate memory for `capacity` tokens, filled with zeros.

        Attention reads a bucket beyond its tokens. What is masked there gets a weight of zero, and zero times a
        NaN that was left in memory would be NaN. Writing the zeros makes the system provide the memory now, and
        not page by page while somebody talks.

        Args:
            rotation: cosines and signed sines of the rotary embedding, (2, positions, head_dim).
            smallest_bucket: length of the shortest bucket in tokens; each further one is twice as long.
        """
        self.capacity = capacity
        self.rotation = rotation
        self.positions = torch.arange(rotation.shape[1], device=rotation.device)
        self._smallest_bucket = smallest_bucket
        self.memory = rotation.new_empty(layers, 2, kv_heads, capacity, head_dim).zero_()
        self.layers = self.memory.unbind()  # (2, kv_heads, capacity, head_dim) each
        self.tokens: list[int] = []

    def part(self, start: int, capacity: int) -> Self:
        """Return an empty cache that lies within this one, `capacity` positions from `start` on."""
        part = copy(self)
        part.capacity, part.tokens = capacity, []
        part.memory = self.memory[:, :, :, start : start + capacity]
        part.layers = part.memory.unbind()
        return part

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return len(self.tokens)

    def positions_from(self, start: int, count: int) -> tuple[torch.Tensor, ...]:
        """Return `count` positions from `start` on, (1,) each, as views of one tensor on the device."""
        return self.positions.narrow(0, start, count).chunk(count) if count else ()

    def extend(self, tokens: Sequence[int]) -> None:
        """Record the ids of tokens whose keys and values were written after the last one."""
        if len(self.tokens) + len(tokens) > self.capacity:
            raise ValueError(f"{len(self.tokens)} and {len(tokens)} tokens don't fit into {self.capacity}")
        self.tokens += tokens

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        del self.tokens[max(0, length) :]

    def common(self, tokens: Sequence[int]) -> int:
        """Return the length of the common prefix of `tokens` and the cached tokens."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, tokens, strict=False)))

    def bucket(self, length: int) -> int:
        """Return the length of the smallest bucket with room for `length` tokens: 1k, 2k, 4k, ... or the capacity."""
        size = self._smallest_bucket
        while size < length:
            size *= 2
        return min(size, self.capacity)

    @property
    def buckets(self) -> list[int]:
        """All lengths that `bucket` returns, ascending."""
        sizes = [self.bucket(1)]
        while sizes[-1] < self.capacity:
            sizes.append(self.bucket(sizes[-1] + 1))
        return sizes
