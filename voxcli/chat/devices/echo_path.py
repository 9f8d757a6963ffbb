"""How sound finds its way from the loudspeaker back into the microphone: pure measurements.

All samples are mono at `audio.SAMPLE_RATE`, all functions are pure. It knows nothing of devices, and nothing
of what is done about an echo: that is `voxcli.chat.speech.echo`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.levels import dbfs

# Where an echo is looked for, counted from when its sound was handed to the device. A Bluetooth loudspeaker
# lags by 0.2 to 0.4 s, a busy sound server adds as much. Before zero only where a device reports wrong times.
LATEST_SAMPLES = SAMPLE_RATE
EARLIEST_SAMPLES = SAMPLE_RATE // 10

# Peak over the rest in `estimate_delay`. Four seconds of speech, two dozen rooms: an echo of -20 dB gave 60 to 200,
# one of -40 dB 20 to 50; no echo at most 4.8, no echo and somebody talking at most 8.6.
SURE = 12.0
AUDIBLE = 0.001  # -60 dBFS
AUDIBLE_SHARE = 0.2  # of what was played: about a second of speech; less is nothing to measure with
ROOM_SAMPLES = SAMPLE_RATE * 40 // 1000  # a later reflection may be louder than the first, within this
QUIET_BIN = 0.003  # of the loudest: -50 dB; below it, whitening would only raise noise
SPEECH_HERTZ = (300, 4000)  # below, two voices of one pitch are alike

CHIRP_SECONDS = 0.5
CHIRP_HERTZ = (300, 6000)  # what small loudspeakers play and 16 kHz can hold
CHIRP_LEVEL = 0.5  # -6 dBFS peak: loud, and no loudspeaker distorts it
CHIRP_SURE = 8.0  # peak over the noise of the matched filter; the greatest of 40,000 normal values is about 4.5
TAIL_SAMPLES = SAMPLE_RATE // 2  # after the chirp, for the room to fall silent
RECORD_SECONDS = 2.5  # chirp, greatest delay, tail, and half a second of the room alone

# Replies are played at about -20 dBFS and people speak at -26, so here the echo is 6 dB below whoever interrupts.
# The canceller left of an interrupting voice's voiced frames: 94 % where the echo was 20 dB below it, 83 % at 8 dB,
# 66 % where they were equal.
FULL_DUPLEX_ECHO_DB = -12.0
# Speech is nominally at -26 dBFS (ITU-T G.191); with less than 10 dB between it and the room, it is not found reliably.
PUSH_TO_TALK_NOISE_DBFS = -36.0

Advice = Literal["full-duplex", "half-duplex", "push-to-talk"]


@dataclass(frozen=True)
class DelayEstimate:
    delay_ms: float
    confidence: float  # the peak over the root mean square of the rest

    @property
    def sure(self) -> bool:
        """Whether there was an echo to measure."""
        return self.confidence >= SURE


def estimate_delay(played: Samples, microphone: Samples) -> DelayEstimate:
    """Return by how much the microphone lags behind what was played.

    Generalised cross-correlation with phase transform (Knapp and Carter 1976): a sharp peak where a room
    smears the plain one. Where hardly anything was played, nothing was heard, or no echo came back, it is not `sure`.

    Args:
        played: shape (LATEST_SAMPLES + n + EARLIEST_SAMPLES,); begins LATEST_SAMPLES before the microphone's.
        microphone: shape (n,); two to four seconds.
    """
    if np.mean(np.abs(played) > AUDIBLE) < AUDIBLE_SHARE:
        return DelayEstimate(0.0, 0.0)
    heights = np.abs(_correlate(played, microphone, whiten=True))
    peak = int(heights.argmax())
    rest = np.delete(heights, np.s_[max(0, peak - ROOM_SAMPLES) : peak + ROOM_SAMPLES])
    noise = float(np.sqrt(np.mean(np.square(rest))))
    if not noise > 0:
        return DelayEstimate(0.0, 0.0)
    first = _first_arrival(heights, peak)
    return DelayEstimate((first - EARLIEST_SAMPLES) * 1000 / SAMPLE_RATE, float(heights[peak]) / noise)


def likeness(played: Samples, heard: Samples) -> float:
    """Return in [0, 1] how much of what was heard is one delayed copy of what was played.

    The greatest normalised cross-correlation over the delays, in SPEECH_HERTZ; shapes as in `estimate_delay`.
    """
    played, heard = _speech_band(played), _speech_band(heard)
    count = len(heard)
    energies = np.concatenate(([0.0], np.cumsum(np.square(played, dtype=np.float64))))
    windows = (energies[count:] - energies[:-count])[::-1]  # by delay, the smallest first
    if windows.max() <= 0 or not heard.any():
        return 0.0
    # A window with next to nothing in it is alike to anything by chance.
    norms = np.sqrt(np.maximum(windows, windows.max() / 100) * np.square(heard, dtype=np.float64).sum())
    return float(np.max(np.abs(_correlate(played, heard, whiten=False)) / norms))


def _speech_band(samples: Samples) -> Samples:
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(hertz < SPEECH_HERTZ[0]) | (hertz > SPEECH_HERTZ[1])] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def _correlate(played: Samples, heard: Samples, *, whiten: bool) -> NDArray[np.floating]:
    """Return the cross-correlation by delay, the first at -EARLIEST_SAMPLES; shape (LATEST + EARLIEST + 1,).

    `played` covers `heard` at each of these delays, so a transform of its own length does not wrap.
    """
    size = len(played)
    if size != LATEST_SAMPLES + len(heard) + EARLIEST_SAMPLES:
        raise ValueError("what was played has to cover what was heard at every delay")
    source = np.fft.rfft(played)
    cross = source.conj() * np.fft.rfft(heard, size)
    if whiten:
        loud = np.abs(source)
        cross = np.where(loud > QUIET_BIN * loud.max(), cross / np.maximum(np.abs(cross), 1e-12), 0)
    return np.roll(np.fft.irfft(cross, size), LATEST_SAMPLES + EARLIEST_SAMPLES)[
        : LATEST_SAMPLES + EARLIEST_SAMPLES + 1
    ]


def _first_arrival(heights: NDArray[np.floating], peak: int) -> int:
    """Return the index of the first sound that arrives at least half as loud as the loudest, shortly before it."""
    start = max(0, peak - ROOM_SAMPLES)
    return start + int(np.argmax(heights[start : peak + 1] >= heights[peak] / 2))


@dataclass(frozen=True)
class Loopback:
    """What a chirp met on its way. `delay_ms` and `echo_db` are None where it did not come back."""

    delay_ms: float | None
    echo_db: float | None  # energy that came back, reflections included, over the energy played
    noise_dbfs: float  # of the room, at least SILENCE_DBFS

    def advice(self, *, canceller: bool) -> Advice:
        """Return how to talk here; `canceller` says whether echo cancellation is installed."""
        if self.noise_dbfs > PUSH_TO_TALK_NOISE_DBFS:
            return "push-to-talk"
        if self.echo_db is None or (canceller and self.echo_db <= FULL_DUPLEX_ECHO_DB):
            return "full-duplex"
        return "half-duplex"


def chirp() -> AudioClip:
    """Return the sound to measure with: a sweep over CHIRP_HERTZ, as long in each octave, 10 ms fades."""
    low, high = CHIRP_HERTZ
    seconds = np.arange(round(CHIRP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    octaves = np.log(high / low)
    sweep = np.sin(2 * np.pi * low * CHIRP_SECONDS / octaves * np.expm1(seconds / CHIRP_SECONDS * octaves))
    fades = np.clip(np.minimum(seconds, seconds[::-1]) / 0.01, 0, 1)
    return AudioClip((CHIRP_LEVEL * fades * sweep).astype(np.float32))


def measure_loopback(recording: Samples) -> Loopback:
    """Find `chirp()` in what the microphone recorded from the moment the chirp was handed to the device.

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
    if not heights[peak] > CHIRP_SURE * np.median(matched) / 0.6745:  # the median of |normal| over its deviation
        return Loopback(None, None, dbfs(_noise_power(recording)))
    start = _first_arrival(heights, peak)
    stop = start + len(played) + TAIL_SAMPLES
    noise = _noise_power(np.delete(recording, np.s_[start:stop]))
    energy = float(np.square(played).sum())
    returned = float(np.square(recording[start:stop]).sum()) - noise * (stop - start)
    direct = float(heights[peak]) ** 2 / energy  # where the noise drowns the sum, what the matched filter saw
    return Loopback(start * 1000 / SAMPLE_RATE, 10 * float(np.log10(max(returned, direct) / energy)), dbfs(noise))


def _noise_power(samples: Samples) -> float:
    """Return the median power of 32 ms frames: a door that slams does not count."""
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    return float(np.median(np.square(frames).mean(axis=1)))
