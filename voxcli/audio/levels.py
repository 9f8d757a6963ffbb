"""Converts sound power to levels in dB below full scale (dBFS)."""

import math

SILENCE_DBFS = -120.0  # The lowest level that is reported, such as that of a muted microphone.


def dbfs(power: float) -> float:
    """Return the level of a power, the mean square of samples in [-1, 1]; at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(max(power, 1e-30)))
