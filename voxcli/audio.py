"""Audio as values: clips, and their way in from files and out to WAV."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz; what Voxtral's and Whisper's feature extractors and Silero expect

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AudioClip:
    """A stretch of mono audio.

    samples: float32 in [-1, 1], shape (n,)
    sample_rate: Hertz
    """

    samples: Samples
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate
