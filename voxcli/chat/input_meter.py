"""Measures the microphone's level, and tells of a microphone that delivers only zeros."""

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.levels import dbfs
from voxcli.chat.devices.microphone import SILENT_MICROPHONE
from voxcli.chat.events import InputLevel, Notice

LEVEL_SECONDS = 0.2  # between two reports of the level
SILENCE_DBFS = -96.0  # the lowest level reported: one bit of 16
ZERO_SECONDS = 3.0  # So many zeros are reported; the noise of a microphone is never zero.


class InputMeter:
    """Reports the level of a stream a few times a second. One thread uses it."""

    def __init__(self) -> None:
        self._samples, self._energy = 0, 0.0  # Number and sum of squares since the last report.
        self._zero_samples, self._zeros_reported = 0, False  # zeros since the last sample that was none

    def push(self, samples: Samples, speech_seconds: float | None) -> list[InputLevel | Notice]:
        """Measure the next samples, shape (n,), as the microphone delivers them; return what there is to report.

        Args:
            speech_seconds: the time since speech started; None while nobody speaks.
        """
        self._samples += len(samples)
        self._energy += float(np.dot(samples, samples))
        if self._samples < LEVEL_SECONDS * SAMPLE_RATE:
            return []
        self._zero_samples = 0 if self._energy else self._zero_samples + self._samples
        is_zero = self._zero_samples >= ZERO_SECONDS * SAMPLE_RATE
        level = InputLevel(max(SILENCE_DBFS, dbfs(self._energy / self._samples)), speech_seconds, is_zero)
        self._samples, self._energy = 0, 0.0
        if not is_zero or self._zeros_reported:
            return [level]
        self._zeros_reported = True  # Once: some microphones deliver zeros in every pause.
        return [level, Notice(SILENT_MICROPHONE)]
