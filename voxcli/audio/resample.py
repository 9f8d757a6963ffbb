"""Resampling of a stream that never ends, with a small constant delay.

soxr's stream resampler hands its output out in bursts: with 10 ms blocks from 48 kHz it came 6 to 37 ms late,
which a conversation hears. This one is a windowed sinc, evaluated where the output samples lie. It knows no devices.
"""

from math import gcd

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples

# Of the sinc on either side of its middle, at the lower of the two rates: 2.5 ms at 16 kHz.
ZERO_CROSSINGS = 40
KAISER_BETA = 8.0  # what aliases is some 80 dB down
PASS_BAND = 0.93  # of the lower rate's half; with this window the stop band begins just beyond that half


class StreamResampler:
    """Takes blocks of mono samples at one rate, gives the same sound at another.

    Output sample n is the sound at n / to_rate seconds from the first input sample: nothing is shifted, only late.
    """

    def __init__(self, from_rate: int, to_rate: int = SAMPLE_RATE) -> None:
        """Design the filter; rates in Hertz."""
        common = gcd(from_rate, to_rate)
        self._rates = from_rate, to_rate
        self._up, self._down = to_rate // common, from_rate // common
        band = min(1.0, to_rate / from_rate)
        self._half = round(ZERO_CROSSINGS / band)
        self._filters = _filters(self._up, self._half, PASS_BAND * band)
        self._taken, self._given = 0, 0
        self._pending = np.zeros(self._half - 1, np.float32)  # before the first sample there was silence

    @property
    def lag_seconds(self) -> float:
        """How much of what was taken is still to be given; at most `half` input samples and one output sample."""
        from_rate, to_rate = self._rates
        return self._taken / from_rate - self._given / to_rate

    def push(self, samples: Samples) -> Samples:
        """Take samples of shape (n,); return those that are ready, shape (m,)."""
        if self._up == self._down:
            return samples
        first = self._taken - len(self._pending)  # input position of the first sample that is held
        held = np.concatenate((self._pending, samples))
        self._taken += len(samples)
        ready = max(self._given, -((self._half - self._taken) * self._up // self._down))
        places = np.arange(self._given, ready + 1) * self._down  # the last one only says what has to be kept
        starts = places // self._up - (self._half - 1) - first
        self._given = ready
        self._pending = held[starts[-1] :]
        if len(starts) == 1:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(held, 2 * self._half)[starts[:-1]]
        return np.asarray(np.einsum("ij,ij->i", windows, self._filters[places[:-1] % self._up]), np.float32)


def _filters(phases: int, half: int, band: float) -> Samples:
    """Return the filter for each place between two input samples; shape (phases, 2 * half)."""
    taps = np.arange(1 - half, half + 1) - np.arange(phases)[:, np.newaxis] / phases
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (taps / half) ** 2, 0, 1)))
    filters = np.sinc(band * taps) * window
    return np.asarray(filters / filters.sum(axis=1, keepdims=True), np.float32)
