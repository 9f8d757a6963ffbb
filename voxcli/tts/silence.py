"""Trims the silence around speech by its level."""

import numpy as np

from voxcli.audio.clip import Samples

SILENCE_DBFS = -60.0  # Soft first sounds, such as that of "four", rise through this level within 20 ms.
FRAME_SECONDS = 0.005  # The stretch over which a level is measured.
LEAD_SECONDS = 0.01  # Kept before the first sound, so that it does not start with a click.


def trimmed(samples: Samples, sample_rate: int, gap_seconds: float) -> Samples:
    """Return samples with at most `LEAD_SECONDS` of silence before the sound, and `gap_seconds` after it.

    Args:
        samples: float32 in [-1, 1], shape (n,).
        sample_rate: Hertz.

    Returns:
        A view of the samples; an empty one if all is silent.
    """
    frame = max(1, round(FRAME_SECONDS * sample_rate))
    frames = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    audible = np.flatnonzero(np.mean(np.square(frames), axis=1) > 10 ** (SILENCE_DBFS / 10))
    if not len(audible):
        return samples[:0]
    start = audible[0] * frame - round(LEAD_SECONDS * sample_rate)
    end = (audible[-1] + 1) * frame + round(gap_seconds * sample_rate)
    return samples[max(0, start) : end]
