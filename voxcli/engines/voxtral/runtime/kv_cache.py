"""What a text model remembers of the tokens it was fed: keys and values, and which tokens they are of.

The memory is allocated once and stays where it is, so that a captured graph may point into it. Buckets
are views: growing from one to the next copies nothing. Knows nothing of models, prompts or clips; a
token is an integer, and two tokens are the same if their integers are.
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
        dtype: torch.dtype,
        device: torch.device,
        smallest_bucket: int = SMALLEST_BUCKET,
    ) -> None:
        """Allocate room for `capacity` tokens.

        Zeros, because a bucket is read beyond what is filled: what is masked there gets a weight of
        zero, and zero times a NaN that was left in memory would be NaN. They are written, not asked
        for, so that the system gives the memory now and not little by little while somebody talks.
        """
        self.capacity = capacity
        self._smallest_bucket = smallest_bucket
        self.memory = torch.empty(layers, 2, kv_heads, capacity, head_dim, dtype=dtype, device=device).zero_()
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
        """How many tokens are cached."""
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Say which tokens the positions after the last one hold now."""
        if len(self.tokens) + len(tokens) > self.capacity:
            raise ValueError(f"{len(self.tokens)} and {len(tokens)} tokens don't fit into {self.capacity}")
        self.tokens += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; nothing happens where there are no more."""
        del self.tokens[max(0, length) :]

    def common(self, tokens: Sequence[int]) -> int:
        """Return how many tokens at the start are those that are cached."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, tokens, strict=False)))

    def bucket(self, length: int) -> int:
        """Return the smallest length of a view that holds so many tokens: 1k, 2k, 4k, ... or all."""
        size = self._smallest_bucket
        while size < length:
            size *= 2
        return min(size, self.capacity)

    @property
    def buckets(self) -> list[int]:
        """All lengths that `bucket` returns."""
        sizes = [self.bucket(1)]
        while sizes[-1] < self.capacity:
            sizes.append(self.bucket(sizes[-1] + 1))
        return sizes
