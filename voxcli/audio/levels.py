"""Measures the power of sound, and converts it to levels in dB below full scale (dBFS)."""

import math

import numpy as np

from voxcli.audio.clip import Samples

SILENCE_DBFS = -120.0  # The lowest level that is reported, such as that of a muted microphone.


def power(samples: Samples) -> float:
    """Return the mean square of samples of shape (n,); NaN without samples, NaN or infinity if one is not finite."""
    return float(np.dot(samples, samples)) / len(samples) if len(samples) else math.nan


def dbfs(power: float) -> float:
    """Return the level of a power, the mean square of samples in [-1, 1]; at least SILENCE_DBFS."""
    return max(SILENCE_DBFS, 10 * math.log10(max(power, 1e-30)))
