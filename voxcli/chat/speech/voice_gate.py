"""Decides which frames are voice: probable speech that is louder than the room."""

import math

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.levels import dbfs, power

MARGIN_DB = 6.0  # Voice starts this far above the noise floor, and continues down to half of it.
RISE_DB_PER_SECOND = 2.0  # How fast the floor rises; gaps in speech lower it again.
FALL = 0.5  # The share of the distance to a quieter frame that the floor falls in each frame.
MIN_FLOOR_DBFS = -66.0  # With a correctly set gain, speech is more than 6 dB louder.
MAX_FLOOR_DBFS = -30.0  # Shouting is detected even in a very loud room.


class VoiceGate:
    """Classifies frames by their speech probability and by their level above the noise floor.

    Voice continues down to a lower probability than it needs to start. The floor falls fast and rises slowly, so it
    adapts to a fan but not to a person. A voice as faint as the room, such as one behind a wall, stays below the
    margin. So may the first frames of a soft word, which a pre-roll preserves. The floor starts at its minimum, so
    the first word is detected; it adapts to a fan within seconds.
    """

    def __init__(self, threshold: float, off_threshold: float) -> None:
        self._threshold, self._off_threshold = threshold, off_threshold
        self._floor_dbfs = MIN_FLOOR_DBFS
        self.voiced = False  # Whether the last frame was voice.

    def update(self, samples: Samples, probability: float, *, adapt: bool) -> None:
        """Classify the next frame; an empty frame or one that is not finite is not voice.

        Args:
            samples: one frame at SAMPLE_RATE, shape (n,).
            probability: of speech in it, 0 to 1.
            adapt: whether the noise floor adapts to it.
        """
        level_dbfs = _level_dbfs(samples)
        if not math.isfinite(level_dbfs):
            self.close()
            return
        needed = self._off_threshold if self.voiced else self._threshold
        self.voiced = probability >= needed and level_dbfs >= self._least_dbfs
        if adapt:
            self._adapt_floor(level_dbfs, len(samples) / SAMPLE_RATE)

    def is_loud(self, samples: Samples) -> bool:
        """Tell whether the next frame, of shape (n,), is loud enough to be voice; otherwise no probability makes it."""
        return _level_dbfs(samples) >= self._least_dbfs

    def close(self) -> None:
        """End the voice; a frame has to reach the upper threshold to start it again."""
        self.voiced = False

    @property
    def _least_dbfs(self) -> float:
        """The lowest level at which the next frame may be voice."""
        return self._floor_dbfs + (MARGIN_DB / 2 if self.voiced else MARGIN_DB)

    def _adapt_floor(self, level_dbfs: float, seconds: float) -> None:
        step = level_dbfs - self._floor_dbfs
        floor = self._floor_dbfs + (step * FALL if step < 0 else min(step, RISE_DB_PER_SECOND * seconds))
        self._floor_dbfs = min(max(floor, MIN_FLOOR_DBFS), MAX_FLOOR_DBFS)


def _level_dbfs(samples: Samples) -> float:
    """Return the level of a frame; NaN or infinity where it is empty or has samples that are not finite."""
    mean = power(samples)
    return dbfs(mean) if math.isfinite(mean) else mean
