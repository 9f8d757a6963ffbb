"""Keeps the program from answering its own voice: echo cancellation.

With the extra `echo`, WebRTC's echo canceller (livekit's audio processing module) removes the playback from the
microphone's signal. Without it, the microphone is ignored during playback (`voxcli.chat.speech.half_duplex`). All
classes belong to one thread, the listener's. `voxcli.chat.speech.loop_breaker` detects a canceller that fails.

Positions count samples at `audio.SAMPLE_RATE` since the microphone was opened.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.devices.echo_path import (
    EARLIEST_SAMPLES,
    LATEST_SAMPLES,
    DelayEstimate,
    estimate_delay,
)
from voxcli.chat.speech import double_talk
from voxcli.errors import AudioDeviceError, missing_extra

if TYPE_CHECKING:
    from livekit.rtc import AudioProcessingModule

log = logging.getLogger(__name__)

FRAME_SAMPLES = SAMPLE_RATE // 100  # The canceller processes frames of exactly 10 ms.
LAG_SAMPLES = 128  # The canceller's delay: a block and an overlap of 64 samples each.
SUPPRESSION_SAMPLES = 96  # What noise suppression adds to it: a window of 256 samples, less a frame.

# The canceller finds the echo's delay itself, but failed in tests at 0 ms and from 500 ms on. Outside the first range,
# the reference is shifted until the delay is the second value. Inside, it stays: each shift needs a new canceller.
GOOD_DELAY_MS = (10.0, 350.0)
SHIFTED_DELAY_MS = 40.0

WINDOW_SAMPLES = 4 * SAMPLE_RATE  # The length of one delay measurement.
REFRESH_SAMPLES = 2 * SAMPLE_RATE  # The interval between measurements, each of which takes some milliseconds.
PART_SAMPLES = SAMPLE_RATE  # Longer blocks are processed in parts, so that measurements keep pace.
# Without an echo (headphones), the canceller takes the start of an interruption for echo: in the first seconds it made
# a voice 25 dB fainter. So it is bypassed once FAR_SAMPLES of playback have returned nothing within NEAR_SAMPLES, which
# covers every delay that is searched. A measured echo ends the bypass.
FAR_SAMPLES = SAMPLE_RATE * 4 // 10
NEAR_SAMPLES = FAR_SAMPLES + LATEST_SAMPLES
FAR_POWER = 1e-4  # -40 dBFS: playback this loud has an audible echo.
NEAR_POWER = 1e-6  # -60 dBFS: below it, the voice gate finds no voice.
ECHO_POWER = 10**-4.5  # The power of an echo of -45 dB, relative to the playback.
# While nothing is known of the echo, a person is found by comparing the microphone's signal with the playback, at these
# intervals. The canceller then steps aside. If something still plays after STOP_SAMPLES, it was no person, or another
# reply has begun: a person's first voiced frame ducks the playback.
LISTEN_SAMPLES = SAMPLE_RATE // 10
STOP_SAMPLES = SAMPLE_RATE // 4
CONVERGENCE_SAMPLES = 2 * SAMPLE_RATE  # A new canceller processes these first, so that it has converged when used.

# The canceller rests once its delayed reference has been silent for so long: nothing is left to cancel, and what it has
# learned stays. It then processes CATCH_UP_SAMPLES of the signal before it continues.
REST_SAMPLES = SAMPLE_RATE
CATCH_UP_SAMPLES = SAMPLE_RATE // 4
# While it rests, a filter with the impulse response of its high-pass filter, cut after 80 ms (-50 dB), replaces it: the
# filter takes a fifth of the processor time of WebRTC's own.
RESPONSE_SAMPLES = SAMPLE_RATE * 80 // 1000

# A device takes sound in bursts, so the reference is kept this far ahead of the microphone. This is less than the
# 100 ms that the output buffers; otherwise an echo would precede its reference.
AHEAD_SAMPLES = SAMPLE_RATE * 80 // 1000
SLIP_SAMPLES = SAMPLE_RATE  # A reference further ahead than any buffer means that the microphone paused.

Setting = Literal["auto", "on", "off"]


class Timeline:
    """The last seconds of a stream, addressed by position; positions never written are silence."""

    def __init__(self, kept_seconds: float) -> None:
        self._ring = np.zeros(round(kept_seconds * SAMPLE_RATE), np.float32)
        self._end = 0
        self.sound_end = -len(self._ring)  # The end of the last write that was not silent.

    def write(self, position: int, samples: Samples) -> None:
        """Write samples of shape (n,) at a position, over older ones; silence fills a gap after the end."""
        end = position + len(samples)
        if end > self._end:
            if position > self._end:
                self._ring[self._indices(max(self._end, end - len(self._ring)), end)] = 0
            self._end = end
        if samples.any():
            self.sound_end = max(self.sound_end, end)
        oldest = max(position, self._end - len(self._ring))
        if oldest < end:
            self._ring[self._indices(oldest, end)] = samples[oldest - position :]

    def append_playback(self, position: int, samples: Samples) -> None:
        """Append playback, silence included, that a device takes in bursts; the microphone is at `position`.

        Playback that is too late for the microphone, or comes after the microphone paused, is written AHEAD_SAMPLES
        after `position`.
        """
        if self._end > position + SLIP_SAMPLES:
            self._ring[:] = 0
            self._end = position
            self.sound_end = min(self.sound_end, position)
        self.write(self._end if self._end > position else position + AHEAD_SAMPLES, samples)

    def read(self, start: int, stop: int) -> Samples:
        """Return a copy of shape (stop - start,)."""
        samples = np.zeros(stop - start, np.float32)
        first, last = max(start, self._end - len(self._ring)), min(stop, self._end)
        if first < last:
            samples[first - start : last - start] = self._ring[self._indices(first, last)]
        return samples

    def _indices(self, start: int, stop: int) -> slice | NDArray[np.int64]:
        first, size = start % len(self._ring), len(self._ring)
        return slice(first, first + stop - start) if first + stop - start <= size else np.arange(start, stop) % size


class EchoCanceller:
    """Removes the echo from the microphone's signal.

    The caller writes `played` before it passes the microphone's samples of the same position. The echo's delay is
    measured, in a range from -0.1 to 1 second.
    """

    def __init__(
        self,
        played: Timeline,
        new_module: "Callable[[], AudioProcessingModule] | None" = None,
        *,
        noise_suppression: bool = False,
        gain_control: bool = False,
    ) -> None:
        """Load the canceller.

        Args:
            played: the playback, by the microphone's positions.
            new_module: makes a module that has adapted to nothing yet; None for WebRTC's echo cancellation.
            noise_suppression: whether noise is suppressed too, which delays the output by SUPPRESSION_SAMPLES.
            gain_control: whether the level is adjusted too.

        Raises:
            AudioDeviceError: the extra is not installed, or its library does not load.
        """
        self.delay: DelayEstimate | None = None  # The last reliable estimate.
        load = partial(load_audio_processing, noise_suppression=noise_suppression, gain_control=gain_control)
        self._new_module = new_module or load
        self._bypass_module = load(echo_cancellation=False) if noise_suppression or gain_control else None
        self._lag_samples = LAG_SAMPLES + (SUPPRESSION_SAMPLES if noise_suppression else 0)
        self._played = played
        self._bypassed = False  # No echo returns.
        self._spoken_at: int | None = None  # Where a person was found, so that the canceller steps aside.
        self._listened_at = 0  # Where a person was last looked for.
        self._rested_until = 0  # The position up to which the canceller has rested.
        self._shift = 0  # The shift of the reference, in samples.
        self._microphone = Timeline(WINDOW_SAMPLES / SAMPLE_RATE)
        self._position = 0
        self._measured_at = 0
        self._pending = np.zeros(0, np.float32)
        self._module = self._new_module()
        self._cancelled_to = 0  # The position up to which the module has processed the signal.
        self._response = high_pass_response()

    def clean(self, samples: Samples) -> Samples:
        """Return the microphone's next samples without echo.

        Output sample k is input sample k without its echo, delayed by LAG_SAMPLES, and by SUPPRESSION_SAMPLES where
        noise is suppressed. Only whole frames are processed: blocks that are no multiples of FRAME_SAMPLES are
        delayed further.

        Args:
            samples: shape (n,), any n.

        Raises:
            AudioDeviceError: the canceller fails.
        """
        pending = np.concatenate((self._pending, samples))
        whole = len(pending) // FRAME_SAMPLES * FRAME_SAMPLES
        self._pending = pending[whole:]
        starts = range(0, whole, PART_SAMPLES)
        parts = [self._clean_frames(pending[start : min(whole, start + PART_SAMPLES)]) for start in starts]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def restore_speech(self, most: int) -> Samples | None:
        """Return the end of the output again, without cancellation, because the output has turned out to hold speech.

        A new canceller attenuates a voice over the playback whether there is an echo or not. Where nothing is known of
        the echo's path and the microphone's signal since the playback began does not resemble it, the canceller steps
        aside, and what it has processed is returned: at most the last `most` samples and MOST_SAMPLES. Otherwise
        returns None.

        Raises:
            AudioDeviceError: noise suppression or gain control fails.
        """
        if self._spoken_at is None and self._knows_nothing and double_talk.is_person(*self._since_rest()):
            log.debug("speech over the playback: the canceller steps aside")
            self._spoken_at = self._position
        if self._spoken_at is None:
            return None
        start = max(self._rested_until, self._position - double_talk.MOST_SAMPLES)
        lead = min(start, CATCH_UP_SAMPLES)  # What suppresses noise has to catch up.
        restored = self._without_canceller(start - lead, self._position)[lead:]
        return restored[max(0, self._lag_samples - start, len(restored) - most) :]

    def set_delay(self, seconds: float) -> None:
        """Set the delay between `played` and its echo in the microphone."""
        delay = round(seconds * SAMPLE_RATE)
        earliest, latest = (round(limit * SAMPLE_RATE / 1000) for limit in GOOD_DELAY_MS)
        if earliest <= delay - self._shift <= latest:
            return
        self._shift = delay - round(SHIFTED_DELAY_MS * SAMPLE_RATE / 1000)
        self._module = self._new_module()
        self._cancelled_to = max(0, self._position - CONVERGENCE_SAMPLES)
        self._cancel(self._cancelled_to, self._position)

    def _clean_frames(self, frames: Samples) -> Samples:
        start, self._position = self._position, self._position + len(frames)
        self._microphone.write(start, _bounded(frames))
        is_at_rest = start - self._shift >= self._played.sound_end + REST_SAMPLES
        if is_at_rest:
            self._rested_until = self._position
        if self._spoken_at is not None and (is_at_rest or self._played.sound_end > self._spoken_at + STOP_SAMPLES):
            self._spoken_at = None
        cancelled = None if is_at_rest else self._cancel(start, self._position)
        if not self._bypassed and self._is_free_of_echo():
            log.debug("no echo: the canceller is bypassed")
            self._bypassed = True
        self._look_for_a_person()
        if cancelled is None or self._bypassed or self._spoken_at is not None:
            cancelled = self._without_canceller(start, self._position)
        cleaned = cancelled[max(0, self._lag_samples - start) :]
        if self._position - self._measured_at >= REFRESH_SAMPLES:
            self._measured_at = self._position
            self._measure_delay()
        return cleaned

    def _measure_delay(self) -> None:
        start = self._position - WINDOW_SAMPLES
        if self._played.sound_end <= start - LATEST_SAMPLES:
            return
        played = self._played.read(start - LATEST_SAMPLES, self._position + EARLIEST_SAMPLES)
        estimate = estimate_delay(played, self._microphone.read(start, self._position))
        if estimate.is_reliable:
            log.debug("echo after %.0f ms", estimate.delay_ms)
            self._bypassed, self._spoken_at = False, None
            self.delay = estimate
            self.set_delay(estimate.delay_ms / 1000)

    def _is_free_of_echo(self) -> bool:
        """Tell whether loud playback has returned no echo within the longest delay."""
        since = self._position - NEAR_SAMPLES
        if since < 0 or self._played.sound_end <= since:
            return False
        far = float(np.sum(np.square(self._played.read(since, since + FAR_SAMPLES))))
        if far < FAR_POWER * FAR_SAMPLES:
            return False
        near = float(np.sum(np.square(self._microphone.read(since, self._position))))
        return near < max(ECHO_POWER * far, NEAR_POWER * NEAR_SAMPLES)

    @property
    def _knows_nothing(self) -> bool:
        """Whether the canceller is at work and knows neither of an echo nor that there is none."""
        return self.delay is None and not self._bypassed and self._rested_until < self._position

    def _look_for_a_person(self) -> None:
        """Step aside for a loud person, whose voice the canceller might hide from the detector for a second or more."""
        if self._spoken_at is None and self._knows_nothing and self._position >= self._listened_at + LISTEN_SAMPLES:
            self._listened_at = self._position
            if double_talk.is_loud_person(*self._since_rest()):
                log.debug("a loud person: the canceller steps aside")
                self._spoken_at = self._position

    def _since_rest(self) -> tuple[Samples, Samples]:
        """Return the playback and the microphone's signal since the canceller rested, as `double_talk` needs them."""
        samples = max(self._position - self._rested_until, double_talk.LEAST_SAMPLES)
        start = self._position - min(samples, double_talk.MOST_SAMPLES)
        played = self._played.read(start - LATEST_SAMPLES, self._position + EARLIEST_SAMPLES)
        return played, self._microphone.read(start, self._position)

    def _cancel(self, start: int, stop: int) -> Samples:
        """Return a stretch of the signal without echo, delayed by LAG_SAMPLES."""
        first = min(start, max(self._cancelled_to, start - CATCH_UP_SAMPLES))
        self._cancelled_to = stop
        played = self._played.read(first - self._shift, stop - self._shift)
        return _process(self._module, self._microphone.read(first, stop), played)[start - first :]

    def _without_canceller(self, start: int, stop: int) -> Samples:
        """Return a stretch of the signal as the canceller would return it where there is no echo."""
        start, stop = start - LAG_SAMPLES, stop - LAG_SAMPLES
        if self._bypass_module:
            return _process(self._bypass_module, self._microphone.read(start, stop))
        samples = self._microphone.read(start - len(self._response) + 1, stop)
        if not samples.any():
            return np.zeros(stop - start, np.float32)
        return _bounded(np.convolve(samples, self._response, "valid").astype(np.float32))


def _process(module: "AudioProcessingModule", samples: Samples, played: Samples | None = None) -> Samples:
    """Return what a module makes of the microphone's samples and of the playback, frame by frame.

    Raises:
        AudioDeviceError: the module fails.
    """
    from livekit.rtc import AudioFrame

    captured = _to_int16(samples)
    far_end = None if played is None else _to_int16(played)
    try:
        for start in range(0, len(captured), FRAME_SAMPLES):
            window = slice(start, start + FRAME_SAMPLES)
            if far_end is not None:
                far = AudioFrame(bytearray(far_end[window].tobytes()), SAMPLE_RATE, 1, FRAME_SAMPLES)
                module.process_reverse_stream(far)
            near = bytearray(captured[window].tobytes())
            module.process_stream(AudioFrame(near, SAMPLE_RATE, 1, FRAME_SAMPLES))
            captured[window] = np.frombuffer(near, np.int16)
    except RuntimeError as error:
        raise AudioDeviceError(f"the echo canceller fails: {error}", hint='set echo = "off"') from error
    return captured.astype(np.float32) / np.float32(32768)


def high_pass_response() -> Samples:
    """Return the impulse response of WebRTC's high-pass filter, which its echo cancellation includes."""
    from livekit.rtc import AudioProcessingModule

    impulse = np.zeros(RESPONSE_SAMPLES, np.float32)
    impulse[0] = 0.5
    return np.asarray(_process(AudioProcessingModule(high_pass_filter=True), impulse) / impulse[0], np.float32)


def load_audio_processing(
    *, echo_cancellation: bool = True, noise_suppression: bool = False, gain_control: bool = False
) -> "AudioProcessingModule":
    """Return a module of WebRTC's audio processing.

    Raises:
        AudioDeviceError: the extra is not installed, or its library does not load.
    """
    try:
        from livekit.rtc import AudioProcessingModule

        return AudioProcessingModule(
            echo_cancellation=echo_cancellation,
            noise_suppression=noise_suppression,
            high_pass_filter=True,
            auto_gain_control=gain_control,
        )
    except ImportError as error:  # Also raised where its library does not load.
        raise missing_extra(AudioDeviceError, "Echo cancellation", "echo") from error


def open_canceller(
    setting: Setting, played: Timeline, *, noise_suppression: bool = False, gain_control: bool = False
) -> tuple[EchoCanceller | None, str]:
    """Return the echo canceller, or None for half-duplex, and a notice for the user or "".

    Args:
        noise_suppression: whether it suppresses noise too.
        gain_control: whether it adjusts the level too.

    Raises:
        AudioDeviceError: the setting is "on" and the extra is missing.
    """
    if setting == "off":
        return None, ""
    try:
        return EchoCanceller(played, noise_suppression=noise_suppression, gain_control=gain_control), ""
    except AudioDeviceError as error:
        if setting == "on":
            raise
        return None, f"{error.message}, so the microphone is ignored while a reply plays: {error.hint}"


def _to_int16(samples: Samples) -> NDArray[np.int16]:
    return (_bounded(samples) * 32767).astype(np.int16)


def _bounded(samples: Samples) -> Samples:
    """Return samples in [-1, 1]; those that are no numbers become 0."""
    if not np.isfinite(samples).all():
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.asarray(samples.clip(-1, 1), np.float32)
