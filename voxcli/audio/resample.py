"""Resamples a live stream with a small constant delay.

soxr's stream resampler emits its output in bursts: with 10 ms blocks from 48 kHz it was 6 to 37 ms late, too much for
a conversation. This one evaluates a windowed sinc at the positions of the output samples.
"""

from math import gcd

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, Samples

# The sinc's zero crossings on either side of its centre, at the lower of the two rates: 2.5 ms at 16 kHz.
ZERO_CROSSINGS = 40
KAISER_BETA = 8.0  # Attenuates aliases by about 80 dB.
PASS_BAND = 0.93  # Relative to half the lower rate; with this window, the stop band starts just above that half.


class StreamResampler:
    """Converts blocks of mono samples from one rate to another.

    Output sample n is the sound at n / to_rate seconds after the first input sample. So the output is late, but not
    shifted.
    """

    def __init__(self, from_rate: int, to_rate: int = SAMPLE_RATE) -> None:
        """Design the filter; rates in Hertz."""
        common = gcd(from_rate, to_rate)
        self._rates = from_rate, to_rate
        self._up, self._down = to_rate // common, from_rate // common
        band = min(1.0, to_rate / from_rate)
        self._half = round(ZERO_CROSSINGS / band)
        self._filters = _filters(self._up, self._half, PASS_BAND * band)
        self._rows, self._first_phase = self._filters[:0], 0  # The filters of the last outputs, and the first's phase.
        self._consumed, self._produced = 0, 0  # Samples.
        self._pending = np.zeros(self._half - 1, np.float32)  # Silence precedes the first sample.

    @property
    def lag_seconds(self) -> float:
        """The duration of the input not yet output; at most half the filter's length and one output sample."""
        from_rate, to_rate = self._rates
        return self._consumed / from_rate - self._produced / to_rate

    def push(self, samples: Samples) -> Samples:
        """Add samples of shape (n,); return the output that is ready, shape (m,)."""
        if self._up == self._down:
            return samples
        first = self._consumed - len(self._pending)  # The input position of the first held sample.
        held = np.concatenate((self._pending, samples))
        self._consumed += len(samples)
        ready = max(self._produced, -((self._half - self._consumed) * self._up // self._down))
        places = np.arange(self._produced, ready + 1) * self._down  # The last one only tells what has to be kept.
        starts = places // self._up - (self._half - 1) - first
        self._produced = ready
        self._pending = held[starts[-1] :]
        if len(starts) == 1 or not held.any():  # Silence costs nothing.
            return np.zeros(len(starts) - 1, np.float32)
        windows = np.ndarray(
            (len(held) + 1 - 2 * self._half, 2 * self._half), held.dtype, held, strides=held.strides * 2
        )
        return np.asarray(np.einsum("ij,ij->i", windows[starts[:-1]], self._filters_at(places[:-1])), np.float32)

    def _filters_at(self, places: NDArray[np.int64]) -> Samples:
        """Return the filter of each output; blocks of equal length mostly need the same ones again."""
        first_phase = int(places[0]) % self._up
        if first_phase != self._first_phase or len(places) > len(self._rows):
            self._rows, self._first_phase = self._filters[places % self._up], first_phase
        return self._rows[: len(places)]


def _filters(phases: int, half: int, band: float) -> Samples:
    """Return the filter for each phase between two input samples; shape (phases, 2 * half)."""
    taps = np.arange(1 - half, half + 1) - np.arange(phases)[:, np.newaxis] / phases
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (taps / half) ** 2, 0, 1)))
    filters = np.sinc(band * taps) * window
    return np.asarray(filters / filters.sum(axis=1, keepdims=True), np.float32)
