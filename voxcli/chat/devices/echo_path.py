"""Measures the echo path from the loudspeaker back to the microphone: delay, level and noise.

All samples are mono at `audio.SAMPLE_RATE`, and all functions are pure. `voxcli.chat.speech.echo` removes the echo.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.levels import dbfs

# The range of delays that is searched, counted from when the device receives the sound. A Bluetooth loudspeaker
# lags by 0.2 to 0.4 s, and a busy sound server adds as much. Negative delays occur where a device reports wrong times.
LATEST_SAMPLES = SAMPLE_RATE
EARLIEST_SAMPLES = SAMPLE_RATE // 10

# The lowest confidence of a usable delay estimate. Measured on four seconds of speech in two dozen rooms: 60 to 200
# for an echo of -20 dB, 20 to 50 for -40 dB, at most 4.8 without an echo, at most 8.6 with somebody talking instead.
MIN_CONFIDENCE = 12.0
AUDIBLE = 0.001  # -60 dBFS
MIN_AUDIBLE_SHARE = 0.2  # With less audible playback, about a second of speech, nothing can be measured.
REFLECTION_SAMPLES = SAMPLE_RATE * 40 // 1000  # Within this time, a reflection may be louder than the first arrival.
# A peak so near an end of the range is the slope of one outside: somebody spoke before or after the playback.
EDGE_SAMPLES = SAMPLE_RATE * 5 // 1000
MIN_BIN_MAGNITUDE = 0.003  # 50 dB below the loudest bin; whitening quieter bins would only raise noise.
# The peak correlation over three seconds was 0.45 to 0.90 for echoes in a room and 0.45 to 0.66 for the output of a
# failing canceller; at most 0.14 for the same voice with other words and 0.24 for a talker over an echo of -8 dB.
OWN_CORRELATION = 0.33
SPEECH_HERTZ = (300, 4000)  # Below this band, two voices of the same pitch correlate.

CHIRP_SECONDS = 0.5
CHIRP_HERTZ = (300, 6000)  # The band that small loudspeakers play and a sample rate of 16 kHz can hold.
CHIRP_LEVEL = 0.5  # -6 dBFS peak: loud, but not distorted by any loudspeaker.
# The lowest ratio of the matched filter's peak to its noise; the largest of 40,000 normal values is about 4.5.
MIN_CHIRP_PEAK = 8.0
TAIL_SAMPLES = SAMPLE_RATE // 2  # The time in which the room falls silent after the chirp.
RECORD_SECONDS = 2.5  # The chirp, the longest delay, the tail, and half a second of the room alone.

# Replies are played at about -20 dBFS and people speak at -26, so at this level the echo is 6 dB below an
# interrupting voice. The canceller kept 94 % of such a voice's voiced frames where the echo was 20 dB below it,
# 83 % at 8 dB, and 66 % where they were equally loud.
FULL_DUPLEX_ECHO_DB = -12.0
# Speech is nominally at -26 dBFS (ITU-T G.191). It is not detected reliably less than 10 dB above the noise.
PUSH_TO_TALK_NOISE_DBFS = -36.0

Advice = Literal["full-duplex", "half-duplex", "push-to-talk", "check-microphone"]


@dataclass(frozen=True)
class DelayEstimate:
    """The delay of an echo; valid only where `is_reliable`."""

    delay_ms: float
    confidence: float  # The correlation's peak over the root mean square of the rest.

    @property
    def is_reliable(self) -> bool:
        """Whether there was an echo to measure."""
        return self.confidence >= MIN_CONFIDENCE


def estimate_delay(played: Samples, microphone: Samples) -> DelayEstimate:
    """Return the delay between playback and its echo in the microphone.

    Uses the generalised cross-correlation with phase transform (Knapp and Carter 1976), whose peak stays sharp in a
    reverberant room. The estimate is not reliable where little was played, the microphone was silent, or no echo
    came back.

    Args:
        played: shape (LATEST_SAMPLES + n + EARLIEST_SAMPLES,); begins LATEST_SAMPLES before `microphone`.
        microphone: shape (n,); two to four seconds.
    """
    if np.mean(np.abs(played) > AUDIBLE) < MIN_AUDIBLE_SHARE:
        return DelayEstimate(0.0, 0.0)
    heights = np.abs(_correlate(played, microphone, whiten=True))
    peak = int(heights.argmax())
    rest = np.delete(heights, np.s_[max(0, peak - REFLECTION_SAMPLES) : peak + REFLECTION_SAMPLES])
    noise = float(np.sqrt(np.mean(np.square(rest))))
    if not noise > 0:
        return DelayEstimate(0.0, 0.0)
    first = _first_arrival(heights, peak)
    if first < EDGE_SAMPLES or peak >= len(heights) - EDGE_SAMPLES:
        return DelayEstimate(0.0, 0.0)
    return DelayEstimate((first - EARLIEST_SAMPLES) * 1000 / SAMPLE_RATE, float(heights[peak]) / noise)


def peak_correlation(played: Samples, microphone: Samples) -> float:
    """Return how closely the microphone's signal matches a delayed copy of the playback, in [0, 1].

    This is the largest normalised cross-correlation over all delays, in SPEECH_HERTZ. Shapes are as in
    `estimate_delay`.
    """
    played, microphone = _speech_band(played), _speech_band(microphone)
    count = len(microphone)
    energies = np.concatenate(([0.0], np.cumsum(np.square(played, dtype=np.float64))))
    windows = (energies[count:] - energies[:-count])[::-1]  # By delay, smallest first.
    if windows.max() <= 0 or not microphone.any():
        return 0.0
    # The floor keeps a nearly silent window from matching anything by chance.
    norms = np.sqrt(np.maximum(windows, windows.max() / 100) * np.square(microphone, dtype=np.float64).sum())
    return float(np.max(np.abs(_correlate(played, microphone, whiten=False)) / norms))


def resembles_playback(played: Samples, microphone: Samples) -> bool:
    """Tell whether an echo of the playback is most of what the microphone picked up; shapes as in `estimate_delay`."""
    return peak_correlation(played, microphone) >= OWN_CORRELATION


def _speech_band(samples: Samples) -> Samples:
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(hertz < SPEECH_HERTZ[0]) | (hertz > SPEECH_HERTZ[1])] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _correlate(played: Samples, microphone: Samples, *, whiten: bool) -> NDArray[np.floating]:
    """Return the cross-correlation by delay, from -EARLIEST_SAMPLES on; shape (LATEST + EARLIEST + 1,).

    `played` covers `microphone` at every delay, so a transform of its length does not wrap around.
    """
    size = len(played)
    if size != LATEST_SAMPLES + len(microphone) + EARLIEST_SAMPLES:
        raise ValueError("the playback has to cover the microphone's samples at every delay")
    source = np.fft.rfft(played)
    cross = source.conj() * np.fft.rfft(microphone, size)
    if whiten:
        magnitudes = np.abs(source)
        is_loud = magnitudes > MIN_BIN_MAGNITUDE * magnitudes.max()
        cross = np.where(is_loud, cross / np.maximum(np.abs(cross), 1e-12), 0)
    return np.roll(np.fft.irfft(cross, size), LATEST_SAMPLES + EARLIEST_SAMPLES)[
        : LATEST_SAMPLES + EARLIEST_SAMPLES + 1
    ]


def _first_arrival(heights: NDArray[np.floating], peak: int) -> int:
    """Return the index of the first value at least half as high as the peak, at most REFLECTION_SAMPLES before it."""
    start = max(0, peak - REFLECTION_SAMPLES)
    return start + int(np.argmax(heights[start : peak + 1] >= heights[peak] / 2))


@dataclass(frozen=True)
class Loopback:
    """The measured echo path. `delay_ms` and `echo_db` are None where no echo of the chirp was found."""

    delay_ms: float | None
    echo_db: float | None  # The energy of the echo, reflections included, over the energy played.
    noise_dbfs: float  # The room's noise, at least SILENCE_DBFS.
    is_zero: bool = False  # The microphone delivered nothing but zeros.

    def advice(self, *, canceller: bool) -> Advice:
        """Return the advised mode; `canceller` tells whether echo cancellation is installed."""
        if self.is_zero:
            return "check-microphone"
        if self.noise_dbfs > PUSH_TO_TALK_NOISE_DBFS:
            return "push-to-talk"
        if self.echo_db is None or (canceller and self.echo_db <= FULL_DUPLEX_ECHO_DB):
            return "full-duplex"
        return "half-duplex"


def chirp() -> AudioClip:
    """Return the test sound: a logarithmic sweep over CHIRP_HERTZ with fades of 10 ms."""
    low, high = CHIRP_HERTZ
    seconds = np.arange(round(CHIRP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    octaves = np.log(high / low)
    sweep = np.sin(2 * np.pi * low * CHIRP_SECONDS / octaves * np.expm1(seconds / CHIRP_SECONDS * octaves))
    fades = np.clip(np.minimum(seconds, seconds[::-1]) / 0.01, 0, 1)
    return AudioClip((CHIRP_LEVEL * fades * sweep).astype(np.float32))


def measure_loopback(recording: Samples) -> Loopback:
    """Find `chirp()` in a recording that starts when the output device received the chirp.

    Raises:
        ValueError: the recording is shorter than RECORD_SECONDS.
    """
    if len(recording) < round(RECORD_SECONDS * SAMPLE_RATE):
        raise ValueError(f"the recording has to last {RECORD_SECONDS} seconds")
    played = chirp().samples
    size = len(recording) + len(played)
    matched = np.abs(np.fft.irfft(np.fft.rfft(recording, size) * np.fft.rfft(played, size).conj(), size))
    heights = matched[: LATEST_SAMPLES + 1]
    peak = int(heights.argmax())
    # The median of normal noise is 0.6745 of its standard deviation.
    if not heights[peak] > MIN_CHIRP_PEAK * np.median(matched) / 0.6745:
        return Loopback(None, None, dbfs(_noise_power(recording)), is_zero=not recording.any())
    start = _first_arrival(heights, peak)
    stop = start + len(played) + TAIL_SAMPLES
    noise = _noise_power(np.delete(recording, np.s_[start:stop]))
    energy = float(np.square(played).sum())
    returned = float(np.square(recording[start:stop]).sum()) - noise * (stop - start)
    direct = float(heights[peak]) ** 2 / energy  # The matched filter's estimate, for an echo below the noise.
    return Loopback(start * 1000 / SAMPLE_RATE, 10 * float(np.log10(max(returned, direct) / energy)), dbfs(noise))


def _noise_power(samples: Samples) -> float:
    """Return the median power of 32 ms frames, which ignores short loud sounds."""
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    return float(np.median(np.square(frames).mean(axis=1)))
