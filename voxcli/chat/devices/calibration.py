"""Calibration: measures the microphone's level, and records a chirp that the loudspeaker plays.

`voxcli.chat.devices.echo_path` evaluates the recording.
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

SETTLE_SECONDS = 0.5  # Both devices run evenly after this much sound.
FRESH_SECONDS = 0.3  # A device whose newest sample is older is still starting.
SPARE_SECONDS = 0.1  # Extra recording time, because device times are approximate.


@dataclass(frozen=True)
class Level:
    """The mean and peak level of a stretch of sound, in dBFS."""

    dbfs: float
    peak_dbfs: float
    is_zero: bool = False  # Every sample is zero, which the noise of a microphone never is.


def level_of(samples: Samples) -> Level:
    """Return the level of samples of shape (n,), at least SILENCE_DBFS."""
    if not len(samples):
        return Level(SILENCE_DBFS, SILENCE_DBFS, is_zero=True)
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return Level(dbfs(power), dbfs(float(np.abs(samples).max()) ** 2), is_zero=not power)


def levels(microphone: Microphone, every_seconds: float) -> Iterator[Level]:
    """Yield the microphone's level every `every_seconds` seconds, forever.

    Raises:
        AudioDeviceError: the microphone was disconnected.
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
    """Play a chirp and find it in the microphone's signal. Takes about four seconds.

    The delay is counted from when the loudspeaker's device receives the sound.

    Raises:
        AudioDeviceError: a device was disconnected, or does not start.
    """
    recorder = _Recorder(microphone, speaker)
    recorder.wait_until_steady()
    speaker.play(chirp(), threading.Event())
    return measure_loopback(recorder.from_first_sound(RECORD_SECONDS))


class _Recorder:
    """Records the microphone, and keeps track of when each sample was captured."""

    def __init__(self, microphone: Microphone, speaker: OutputSpeaker) -> None:
        self._microphone = microphone
        self._speaker = speaker
        self._parts: list[Samples] = []
        self._samples = 0
        self._captured_at = 0.0
        self._start_estimates: list[float] = []  # The recording's start in monotonic seconds, one estimate per block.

    def wait_until_steady(self) -> None:
        """Record until both devices run evenly."""
        deadline = time.monotonic() + 2 * START_SECONDS
        handed_at = 0.0
        while True:
            self._record()
            handed_at = max([handed_at, *(block.handed_at for block in self._speaker.reference.read())])
            now = time.monotonic()
            if self._samples > SETTLE_SECONDS * SAMPLE_RATE and now - min(self._captured_at, handed_at) < FRESH_SECONDS:
                return
            if now > deadline:
                raise unusable(self._speaker.device, "it accepts no sound")

    def from_first_sound(self, seconds: float) -> Samples:
        """Return `seconds` of recording, from when the loudspeaker receives its first sound."""
        self._start_estimates.clear()  # The times of a starting device are unreliable.
        deadline = time.monotonic() + seconds + 2 * START_SECONDS
        handed_at = None
        while handed_at is None or self._captured_at < handed_at + seconds + SPARE_SECONDS:
            self._record()
            handed_at = handed_at or self._first_sound_at()
            if time.monotonic() > deadline:
                raise unusable(self._speaker.device, "it accepts no sound")
        start = max(0, round((handed_at - float(np.median(self._start_estimates))) * SAMPLE_RATE))
        return np.concatenate(self._parts)[start : start + round(seconds * SAMPLE_RATE)]

    def _record(self) -> None:
        block = _read(self._microphone)
        self._parts.append(block.samples)
        self._samples += len(block.samples)
        self._captured_at = block.captured_at
        self._start_estimates.append(block.captured_at - self._samples / SAMPLE_RATE)

    def _first_sound_at(self) -> float | None:
        """Return when the loudspeaker received its first sound, in monotonic seconds."""
        for block in self._speaker.reference.read():
            nonzero = np.flatnonzero(block.samples)
            if len(nonzero):
                return block.handed_at + int(nonzero[0]) / SAMPLE_RATE
        return None


def _read(microphone: Microphone) -> MicrophoneBlock:
    if block := microphone.read(START_SECONDS):
        return block
    raise unusable(microphone.device, microphone.failure or "it delivers no sound")
