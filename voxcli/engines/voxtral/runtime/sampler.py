"""Samples the next token from logits and detects the end of a reply, on the device of the logits.

The host never waits for the device here: no value is read back, and no branch depends on one.
"""

from dataclasses import dataclass

import torch

OVER = -1  # published in place of an id once a reply is over


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled, and when a reply ends."""

    max_tokens: int
    stop_ids: frozenset[int]  # the reply ends before one of these
    temperature: float = 0.0  # 0: greedy; `top_p` and `seed` are then ignored
    top_p: float = 1.0  # sample from the smallest set of likeliest tokens with this probability
    seed: int | None = None  # the same seed, prompt and device give the same reply

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"not a way to sample: {self}")


class Sampler:
    """Samples the tokens of a reply.

    `published`, (1, 1), is where `sample_and_publish` puts each token for the host; its address never changes.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.source = torch.Generator(device)  # Random numbers; a captured graph registers the generator.
        self.published = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._over = torch.zeros(1, 1, dtype=torch.bool, device=device)
        self._stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
        self.begin(sampling.seed)

    def begin(self, seed: int | None) -> None:
        """Start a new reply."""
        self._over.fill_(False)
        if seed is None:
            self.source.seed()
        else:
            self.source.manual_seed(seed)

    def is_alike(self, sampling: Sampling) -> bool:
        """Return whether tokens are sampled in the same way, seed and length aside."""
        ours = self.sampling
        return (ours.temperature, ours.top_p, ours.stop_ids) == (
            sampling.temperature,
            sampling.top_p,
            sampling.stop_ids,
        )

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the sampled id, (1, 1), from logits, (vocabulary,)."""
        return self.sample_each(logits).view(1, 1)

    def sample_and_publish(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the sampled id, (1, 1), and publish it for the host: `OVER` instead from the first stop id on."""
        token = self.choose(logits)
        self._over |= (token == self._stops).any()
        self.published.copy_(token.masked_fill(self._over, OVER))
        return token

    def sample_each(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the sampled ids, (...), from logits, (..., vocabulary).

        With E_i drawn from an exponential distribution, the minimum of E_i / p_i is at i with probability
        p_i / sum(p). So p needs no normalization, and nothing is read back, unlike in `torch.multinomial`.
        """
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = (logits.float() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            probabilities = _nucleus(probabilities, self.sampling.top_p)
        exponential = torch.empty_like(probabilities).exponential_(generator=self.source)
        return (probabilities / exponential).argmax(-1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities, (..., vocabulary), with zero for all but the likeliest tokens that make up `top_p`."""
    falling, order = probabilities.sort(descending=True)
    before = falling.cumsum(-1) - falling  # the probability of all likelier tokens
    return torch.zeros_like(probabilities).scatter_(-1, order, falling.masked_fill(before >= top_p, 0))
