"""Intervals and tests for shares of right answers."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(right: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the score interval of a share; (0, 1) without trials.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American
    Statistical Association 22 (1927). It holds for small numbers and for shares near 0 and 1, where the normal
    approximation does not.
    """
    if total == 0:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), right / total
    center = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, min(share, (center - half) / scale)), min(1.0, max(share, (center + half) / scale))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the probability of a difference between paired answers that is at least as large, if there is none.

    The exact test of Q. McNemar (Psychometrika 12, 1947): of the questions that exactly one way answered rightly, each
    is a fair coin.
    """
    count = only_first + only_second
    tail = sum(math.comb(count, number) for number in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << count))
