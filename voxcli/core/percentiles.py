"""Percentiles as the program reports them everywhere."""

import math
from collections.abc import Iterable


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the least value that `share` (0 to 1) of all values do not exceed: nearest rank. None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
