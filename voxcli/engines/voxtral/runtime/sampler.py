"""How the next token is chosen from logits, and when a reply is over, all of it on the device that they are on.

Nothing here waits for the device: no value is read back, no branch depends on one. Knows nothing of
models and caches.
"""

from dataclasses import dataclass

import torch

OVER = -1  # what the host reads in place of an id once a reply is over


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_tokens: int
    stop_ids: frozenset[int]  # the reply ends before one of these
    temperature: float = 0.0  # 0: the likeliest token each time; both of the others are then ignored
    top_p: float = 1.0  # the smallest set of likeliest tokens with this probability is chosen from
    seed: int | None = None  # the same seed, prompt and device give the same reply

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"not a way to sample: {self}")


class Sampler:
    """Chooses the tokens of a reply.

    published: what `sample_and_publish` says of the reply, (1, 1), always at the same address
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.source = torch.Generator(device)  # of chance; a captured graph has to know it
        self.published = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._over = torch.zeros(1, 1, dtype=torch.bool, device=device)
        self._stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
        self.begin(sampling.seed)

    def begin(self, seed: int | None) -> None:
        """Begin another reply."""
        self._over.fill_(False)
        if seed is None:
            self.source.seed()
        else:
            self.source.manual_seed(seed)

    def is_alike(self, sampling: Sampling) -> bool:
        """Return whether replies are made in this way, seed and length aside."""
        ours = self.sampling
        return (ours.temperature, ours.top_p, ours.stop_ids) == (
            sampling.temperature,
            sampling.top_p,
            sampling.stop_ids,
        )

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the chosen id, (1, 1), from logits, (vocabulary,)."""
        return self.sample_each(logits).view(1, 1)

    def sample_and_publish(self, logits: torch.Tensor) -> torch.Tensor:
        """Do the same, and put into `published` what the host is to read: the id; `OVER` from the first stop id on."""
        token = self.choose(logits)
        self._over |= (token == self._stops).any()
        self.published.copy_(token.masked_fill(self._over, OVER))
        return token

    def sample_each(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the chosen ids, (...), from logits, (..., vocabulary).

        A token is drawn as the first of exponential clocks to ring, each running at its probability:
        the minimum of E_i / p_i is at i with probability p_i / sum(p), so p needs no normalising and
        nothing is read back, as it is by `torch.multinomial`.
        """
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = (logits.float() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            probabilities = _nucleus(probabilities, self.sampling.top_p)
        clocks = torch.empty_like(probabilities).exponential_(generator=self.source)
        return (probabilities / clocks).argmax(-1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities, (..., vocabulary), with zero for all but the likeliest that make up `top_p`."""
    falling, order = probabilities.sort(descending=True)
    before = falling.cumsum(-1) - falling  # what the likelier ones have together
    return torch.zeros_like(probabilities).scatter_(-1, order, falling.masked_fill(before >= top_p, 0))
