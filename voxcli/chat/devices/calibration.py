"""Measurements on open devices: how loud the microphone is, and what comes back of a chirp.

What a recording means is known to `voxcli.chat.devices.echo_path`; this module only makes it.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.levels import SILENCE_DBFS, dbfs
from voxcli.chat.devices.echo_path import RECORD_SECONDS, Loopback, chirp, measure_loopback
from voxcli.chat.devices.microphone import Microphone, MicrophoneBlock
from voxcli.chat.devices.portaudio import START_SECONDS, unusable
from voxcli.chat.devices.speaker import OutputSpeaker

SETTLE_SECONDS = 0.5  # of sound, until both devices run evenly
FRESH_SECONDS = 0.3  # a device whose newest sample is older is still starting
SPARE_SECONDS = 0.1  # recorded beyond what is measured: times are only nearly right


@dataclass(frozen=True)
class Level:
    """How loud a stretch of sound is, in dB below full scale."""

    dbfs: float
    peak_dbfs: float


def level_of(samples: Samples) -> Level:
    """Return the level of samples of shape (n,); at least SILENCE_DBFS."""
    if not len(samples):
        return Level(SILENCE_DBFS, SILENCE_DBFS)
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return Level(dbfs(power), dbfs(float(np.abs(samples).max()) ** 2))


def levels(microphone: Microphone, every_seconds: float) -> Iterator[Level]:
    """Yield the level of each stretch of the microphone, without end.

    Raises:
        AudioDeviceError: the microphone is gone.
    """
    parts: list[Samples] = []
    count = 0
    while True:
        samples = _read(microphone).samples
        parts.append(samples)
        count += len(samples)
        if count >= every_seconds * SAMPLE_RATE:
            yield level_of(np.concatenate(parts))
            parts, count = [], 0


def measure(microphone: Microphone, speaker: OutputSpeaker) -> Loopback:
    """Play a chirp and find it in what the microphone hears; takes some four seconds.

    Delays count from when the sound is handed to the loudspeaker's device.

    Raises:
        AudioDeviceError: a device is gone, or does not start.
    """
    recorder = _Recorder(microphone, speaker)
    recorder.prefill_history()
    speaker.play(chirp(), threading.Event())
    return measure_loopback(recorder.from_first_sound(RECORD_SECONDS))


class _Recorder:
    """Keeps all that the microphone hears, and when it was captured."""

    def __init__(self, microphone: Microphone, speaker: OutputSpeaker) -> None:
        self._microphone = microphone
        self._speaker = speaker
        self._parts: list[Samples] = []
        self._samples = 0
        self._captured_at = 0.0
        self._began: list[float] = []  # when the recording began, as each block sees it

    def prefill_history(self) -> None:
        """Return when both devices run."""
        deadline = time.monotonic() + 2 * START_SECONDS
        handed_at = 0.0
        while True:
            self._record()
            handed_at = max([handed_at, *(block.handed_at for block in self._speaker.reference.read())])
            now = time.monotonic()
            if self._samples > SETTLE_SECONDS * SAMPLE_RATE and now - min(self._captured_at, handed_at) < FRESH_SECONDS:
                return
            if now > deadline:
                raise unusable(self._speaker.device, "it takes no sound")

    def from_first_sound(self, seconds: float) -> Samples:
        """Return so much of what is heard, from when the first sound is handed to the loudspeaker."""
        self._began.clear()  # what was said while a device started is not to be relied on
        deadline = time.monotonic() + seconds + 2 * START_SECONDS
        handed_at = None
        while handed_at is None or self._captured_at < handed_at + seconds + SPARE_SECONDS:
            self._record()
            handed_at = handed_at or self._first_sound()
            if time.monotonic() > deadline:
                raise unusable(self._speaker.device, "it takes no sound")
        start = max(0, round((handed_at - float(np.median(self._began))) * SAMPLE_RATE))
        return np.concatenate(self._parts)[start : start + round(seconds * SAMPLE_RATE)]

    def _record(self) -> None:
        block = _read(self._microphone)
        self._parts.append(block.samples)
        self._samples += len(block.samples)
        self._captured_at = block.captured_at
        self._began.append(block.captured_at - self._samples / SAMPLE_RATE)

    def _first_sound(self) -> float | None:
        for block in self._speaker.reference.read():
            sounding = np.flatnonzero(block.samples)
            if len(sounding):
                return block.handed_at + int(sounding[0]) / SAMPLE_RATE
        return None


def _read(microphone: Microphone) -> MicrophoneBlock:
    if block := microphone.read(START_SECONDS):
        return block
    raise unusable(microphone.device, microphone.failure or "it gives no sound")
