"""Which frames are voice: likely speech that stands out from the room.

Pure: it knows the present frame and how loud the room is, and nothing of utterances.
"""

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.levels import dbfs

MARGIN_DB = 6.0  # above the noise floor a frame can become voice; half of it, and it can stay voice
RISE_DB = 2.0  # a second: slower than speech, whose gaps pull the floor down again
FALL = 0.5  # of the way to a quieter frame, each frame
QUIETEST_DBFS = -66.0  # of the floor: 6 dB above it no microphone has speech, unless its gain is wrong
LOUDEST_DBFS = -30.0  # of the floor: whoever shouts is always heard


class VoiceGate:
    """Voice by probability, with a lower threshold to stay voice, and by level above the noise floor.

    The floor follows quieter frames at once and louder ones slowly, so that it learns the fan and not the
    person. A voice as faint as the room, as from behind a wall, does not reach the margin. Nor may the
    first frames of a soft word: whoever keeps a pre-roll has them. The floor begins at its quietest, so
    that the first word is heard; a fan is learned in seconds, and is hardly ever taken for speech anyway.
    """

    def __init__(self, threshold: float, off_threshold: float) -> None:
        self._threshold, self._off_threshold = threshold, off_threshold
        self._floor_dbfs = QUIETEST_DBFS
        self.voiced = False  # the last frame was voice

    def hear(self, samples: Samples, probability: float, *, learn: bool) -> None:
        """Update `voiced`, and the floor where `learn`; a frame that is empty or not finite is no voice.

        samples: one frame at SAMPLE_RATE, shape (n,)
        probability: that it has speech, 0 to 1
        """
        power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else float("nan")
        if not np.isfinite(power):
            self.close()
            return
        level_dbfs = dbfs(power)
        needed, margin = (self._off_threshold, MARGIN_DB / 2) if self.voiced else (self._threshold, MARGIN_DB)
        self.voiced = probability >= needed and level_dbfs >= self._floor_dbfs + margin
        if learn:
            self._learn(level_dbfs, len(samples) / SAMPLE_RATE)

    def close(self) -> None:
        """Call nothing voice until a frame reaches the upper threshold again."""
        self.voiced = False

    def _learn(self, level_dbfs: float, seconds: float) -> None:
        step = level_dbfs - self._floor_dbfs
        floor = self._floor_dbfs + (step * FALL if step < 0 else min(step, RISE_DB * seconds))
        self._floor_dbfs = min(max(floor, QUIETEST_DBFS), LOUDEST_DBFS)
