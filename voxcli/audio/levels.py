"""Levels of sound, in dB below full scale (dBFS)."""

import math

SILENCE_DBFS = -120.0  # the floor of what is reported; a muted microphone gives it


def dbfs(power: float) -> float:
    """Return the level of a mean square of samples in [-1, 1]; at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(max(power, 1e-30)))
