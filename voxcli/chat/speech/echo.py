"""Keeps the program from hearing itself.

With the extra `echo`, WebRTC's canceller (livekit's audio processing module) takes what was played out of what
the microphone hears. Without it, the microphone is ignored while something plays. Where a canceller fails so
badly that the program answers itself, a loop breaker says so. All of it belongs to one thread, the listener's,
and counts samples; it knows nothing of devices, of speech or of time.

Positions are sample positions at `audio.SAMPLE_RATE` from the opening of the microphone.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.devices.echo_path import EARLIEST_SAMPLES, LATEST_SAMPLES, DelayEstimate, estimate_delay, peak_correlation
from voxcli.errors import AudioDeviceError, missing_extra

if TYPE_CHECKING:
    from livekit.rtc import AudioProcessingModule

FRAME_SAMPLES = SAMPLE_RATE // 100  # the canceller takes 10 ms, no more and no less
LAG_SAMPLES = 128  # by which it holds its output back: a block and an overlap of 64 samples each

# It finds the echo by itself, but was seen to lose one at 0 ms and from 500 ms on: what was played is then moved
# until the echo is well inside. Inside it is left alone, for each move costs a new canceller.
INSIDE_MS = (10.0, 350.0)
MOVED_TO_MS = 40.0

WINDOW_SAMPLES = 4 * SAMPLE_RATE  # for one measurement of the delay
REFRESH_SAMPLES = 2 * SAMPLE_RATE  # between two measurements: each costs some milliseconds
PART_SAMPLES = SAMPLE_RATE  # taken at a time of a long block, so that measuring keeps pace
# Where nothing comes back (headphones), the canceller would take the beginning of what is said over a reply for echo:
# in the first seconds it made a voice 25 dB fainter. So it is passed by once what was played FAR_SAMPLES long has not
# come back NEAR_SAMPLES long, which hides no delay that is looked for; an echo that is measured brings it back.
FAR_SAMPLES = SAMPLE_RATE * 4 // 10
NEAR_SAMPLES = FAR_SAMPLES + LATEST_SAMPLES
FAR_POWER = 1e-4  # -40 dBFS: played loud enough that its echo would be heard
NEAR_POWER = 1e-6  # -60 dBFS: below it no voice-activity gate opens
ECHO_POWER = 10**-4.5  # of what was played: an echo of -45 dB
REHEARSAL_SAMPLES = 2 * SAMPLE_RATE  # a new canceller hears them first: it has converged when it takes over

# What the devices hold back on both sides beyond what they name is up to 0.2 s, and a living room takes 0.2 s more
# until what is left of a word is no speech to a voice-activity detector.
TAIL_MS = 400

LOOP_TURNS = 3  # one may be alike by chance, or because somebody repeats the reply
# Over three seconds: echoes of a room 0.45 to 0.90, what a canceller that fails lets through 0.45 to 0.66; the same
# voice with other words at most 0.14, somebody who talks over an echo of -8 dB at most 0.24.
LOOP_LIKENESS = 0.33
LOOP_SAMPLES = 3 * SAMPLE_RATE

# A device asks for sound in bursts: so much has to be there before the microphone gets to it. Less than the 100 ms
# that the output holds ready, or an echo would come before its sound.
AHEAD_SAMPLES = SAMPLE_RATE * 80 // 1000
SLIP_SAMPLES = SAMPLE_RATE  # a device that is further ahead than any buffer: the microphone stood still

Setting = Literal["auto", "on", "off"]


class Timeline:
    """The last seconds of a stream, by position; what was never written is silence."""

    def __init__(self, kept_seconds: float) -> None:
        self._ring = np.zeros(round(kept_seconds * SAMPLE_RATE), np.float32)
        self._end = 0

    def write(self, position: int, samples: Samples) -> None:
        """Put samples of shape (n,) at a position; over older ones, or beyond the end with silence between."""
        end = position + len(samples)
        if end > self._end:
            self._ring[self._indices(max(self._end, end - len(self._ring)), end)] = 0
            self._end = end
        oldest = max(position, self._end - len(self._ring))
        if oldest < end:
            self._ring[self._indices(oldest, end)] = samples[oldest - position :]

    def follow(self, position: int, samples: Samples) -> None:
        """Append what another clock delivers in uneven pieces, silence included; the microphone is at `position`.

        Pieces that come too late for the microphone, or after it stood still, begin anew AHEAD_SAMPLES before it.
        """
        if self._end > position + SLIP_SAMPLES:
            self._ring[:] = 0
            self._end = position
        self.write(self._end if self._end > position else position + AHEAD_SAMPLES, samples)

    def read(self, start: int, stop: int) -> Samples:
        """Return a copy of shape (stop - start,)."""
        samples = np.zeros(stop - start, np.float32)
        first, last = max(start, self._end - len(self._ring)), min(stop, self._end)
        if first < last:
            samples[first - start : last - start] = self._ring[self._indices(first, last)]
        return samples

    def _indices(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop) % len(self._ring)


class EchoCanceller:
    """Takes the echo out of what the microphone hears.

    The caller writes `played` before the microphone's samples of the same position come, mostly by `follow`. By how
    much the echo comes later is measured, from a tenth of a second before to a second after.
    """

    def __init__(self, played: Timeline, *, suppress_noise: bool = False) -> None:
        """Load it. Noise suppression takes some 10 dB more, and something of the voice with it: off.

        Raises:
            AudioDeviceError: the extra is not installed, or its library does not load.
        """
        self.delay: DelayEstimate | None = None  # the last sure one
        self._suppress_noise = suppress_noise
        self._played = played
        self._nothing_comes_back = False
        self._shift = 0  # samples that `played` is moved by
        self._microphone = Timeline(WINDOW_SAMPLES / SAMPLE_RATE)
        self._position = 0
        self._measured_at = 0
        self._pending = np.zeros(0, np.float32)
        self._module = self._new_module()

    def clean(self, samples: Samples) -> Samples:
        """Return the next samples of the microphone without echo.

        Sample k that ever comes out is sample k that ever went in. It comes LAG_SAMPLES later, and whole frames
        at a time: with blocks that are multiples of FRAME_SAMPLES, nothing else is held back.

        Args:
            samples: shape (n,), any n.

        Raises:
            AudioDeviceError: the canceller fails.
        """
        pending = np.concatenate((self._pending, samples))
        whole = len(pending) // FRAME_SAMPLES * FRAME_SAMPLES
        self._pending = pending[whole:]
        parts = [
            self._clean(pending[first : min(whole, first + PART_SAMPLES)]) for first in range(0, whole, PART_SAMPLES)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def set_delay(self, seconds: float) -> None:
        """Say how long what is written to `played` takes to come back through the microphone."""
        delay = round(seconds * SAMPLE_RATE)
        earliest, latest = (round(limit * SAMPLE_RATE / 1000) for limit in INSIDE_MS)
        if earliest <= delay - self._shift <= latest:
            return
        self._shift = delay - round(MOVED_TO_MS * SAMPLE_RATE / 1000)
        self._module = self._new_module()
        self._cancel(max(0, self._position - REHEARSAL_SAMPLES), self._position)

    def _clean(self, frames: Samples) -> Samples:
        start, self._position = self._position, self._position + len(frames)
        self._microphone.write(start, frames)
        cancelled = self._cancel(start, self._position)
        self._nothing_comes_back = self._nothing_comes_back or self._is_free_of_echo()
        if self._nothing_comes_back:
            cancelled = self._microphone.read(start - LAG_SAMPLES, self._position - LAG_SAMPLES)
        cleaned = cancelled[max(0, LAG_SAMPLES - start) :]
        if self._position - self._measured_at >= REFRESH_SAMPLES:
            self._measured_at = self._position
            self._measure()
        return cleaned

    def _measure(self) -> None:
        start = self._position - WINDOW_SAMPLES
        played = self._played.read(start - LATEST_SAMPLES, self._position + EARLIEST_SAMPLES)
        estimate = estimate_delay(played, self._microphone.read(start, self._position))
        if estimate.is_reliable:
            self._nothing_comes_back = False
            self.delay = estimate
            self.set_delay(estimate.delay_ms / 1000)

    def _is_free_of_echo(self) -> bool:
        """Say whether something was played loud and the microphone was quiet for as long as its echo may take."""
        since = self._position - NEAR_SAMPLES
        if since < 0:
            return False
        far = float(np.sum(np.square(self._played.read(since, since + FAR_SAMPLES))))
        if far < FAR_POWER * FAR_SAMPLES:
            return False
        near = float(np.sum(np.square(self._microphone.read(since, self._position))))
        return near < max(ECHO_POWER * far, NEAR_POWER * NEAR_SAMPLES)

    def _cancel(self, start: int, stop: int) -> Samples:
        from livekit.rtc import AudioFrame

        played = _to_int16(self._played.read(start - self._shift, stop - self._shift))
        heard = _to_int16(self._microphone.read(start, stop))
        try:
            for frame in range(0, stop - start, FRAME_SAMPLES):
                window = slice(frame, frame + FRAME_SAMPLES)
                far, near = bytearray(played[window].tobytes()), bytearray(heard[window].tobytes())
                self._module.process_reverse_stream(AudioFrame(far, SAMPLE_RATE, 1, FRAME_SAMPLES))
                self._module.process_stream(AudioFrame(near, SAMPLE_RATE, 1, FRAME_SAMPLES))
                heard[window] = np.frombuffer(near, np.int16)
        except RuntimeError as error:
            raise AudioDeviceError(f"the echo canceller fails: {error}", hint='set echo = "off"') from error
        return heard.astype(np.float32) / np.float32(32768)

    def _new_module(self) -> "AudioProcessingModule":
        try:
            from livekit.rtc import AudioProcessingModule

            return AudioProcessingModule(
                echo_cancellation=True, high_pass_filter=True, noise_suppression=self._suppress_noise
            )
        except ImportError as error:  # also where its library does not load
            raise missing_extra(AudioDeviceError, "Echo cancellation", "echo") from error


def open_canceller(setting: Setting, played: Timeline) -> tuple[EchoCanceller | None, str]:
    """Return the canceller, or None for half-duplex, and a notice for the user (or "").

    Raises:
        AudioDeviceError: the setting is "on" and the extra is missing.
    """
    if setting == "off":
        return None, ""
    try:
        return EchoCanceller(played), ""
    except AudioDeviceError as error:
        if setting == "on":
            raise
        return None, f"{error.message}, so the microphone is ignored while a reply plays: {error.hint}"


def _to_int16(samples: Samples) -> NDArray[np.int16]:
    finite = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    return (np.clip(finite, -1, 1) * 32767).astype(np.int16)


class HalfDuplex:
    """Says when the microphone may be listened to: not while something plays, nor for a tail after it."""

    def __init__(self, *, tail_ms: int = TAIL_MS) -> None:
        self._tail_samples = tail_ms * SAMPLE_RATE // 1000
        self._shut_until = 0

    def is_open(self, position: int, *, playing: bool) -> bool:
        """Say it for the sample at `position`; asked for each block, in their order."""
        if playing:
            self._shut_until = position + self._tail_samples
            return False
        return position >= self._shut_until


class LoopBreaker:
    """Finds that the program answers itself: turns in a row that are what was just played."""

    def __init__(self) -> None:
        self._row = 0
        self.broken = False

    def answers_itself(self, clip: Samples, start: int, played: Timeline) -> bool:
        """Take a turn; return True once, when it is time for half-duplex.

        A turn that starts more than a second after playback is alike to nothing, and ends the row.

        Args:
            clip: the turn's utterance, shape (n,), as it left the canceller.
            start: the position of its first sample.
            played: has to reach back to a second before it.
        """
        heard = clip[:LOOP_SAMPLES]
        around = played.read(start - LATEST_SAMPLES, start + len(heard) + EARLIEST_SAMPLES)
        alike = len(heard) > 0 and peak_correlation(around, heard) >= LOOP_LIKENESS
        self._row = self._row + 1 if alike else 0
        if self.broken or self._row < LOOP_TURNS:
            return False
        self.broken = True
        return True
