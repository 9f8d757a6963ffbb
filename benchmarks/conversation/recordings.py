"""Measures recordings of the two devices: when voice begins and ends, which parts of a sound are in them.

Pure functions on mono samples of shape (n,), floats in [-1, 1]; positions count samples.
"""

from dataclasses import dataclass

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples

# A sample is voiced if it is within this of the loudest one: about 18 dB below the level of active speech, near
# the margin of 15.9 dB with which ITU-T P.56 tells speech from pauses.
VOICED_DB = -30.0
AUDIBLE = 0.001  # -60 dBFS; a recording that is fainter has no voice in it
NOT_ZERO = 1e-6  # an idle device plays exact zeros
DUCKED_DB = -20.0  # against the steady reply: a fade of 10 ms passes it within its last millisecond
LEVEL_MS = 5  # window of the level: twice the period of 400 Hz
PART_MS = 200  # parts of an utterance that are compared; about a syllable
# The least likeness of a part with itself. An echo canceller turns phases and leaves magnitudes: of 251 parts of 32
# questions, the parts that chat kept were 0.997 and more alike, parts 0.1 to 0.3 s beside them at most 0.86.
LIKE = 0.93
WINDOW, HOP = 512, 128  # of the spectra by which parts are compared
BAND = slice(4, 128)  # of their bins: 125 to 4000 Hz at 16 kHz
PROBE_SAMPLES = 1024  # samples of a reply that identify a piece of it
SAME = 0.999  # the least correlation of a probe with the very same sound
FADED_SAMPLES = 3  # at an edge of a fade: its last value is 0, and those beside it may be as good as that


def voiced_span(samples: Samples) -> tuple[int, int] | None:
    """Return the positions of the first and the last voiced sample; None where there is no voice."""
    loud = np.abs(samples)
    peak = float(loud.max(initial=0.0))
    if peak < AUDIBLE:
        return None
    voiced = np.flatnonzero(loud >= peak * 10 ** (VOICED_DB / 20))
    return int(voiced[0]), int(voiced[-1])


def silent_after(samples: Samples, rate: int) -> tuple[int | None, int]:
    """Return when a steady sound falls by DUCKED_DB for LEVEL_MS, or None, and where its last audible sample is.

    samples: begins within the sound.
    """
    width = rate * LEVEL_MS // 1000
    powers = np.convolve(np.square(samples, dtype=np.float64), np.full(width, 1 / width), "valid")
    low = np.flatnonzero(powers < powers[:width].mean() * 10 ** (DUCKED_DB / 10))
    audible = np.flatnonzero(np.abs(samples) > AUDIBLE)
    return (int(low[0]) if len(low) else None), (int(audible[-1]) if len(audible) else 0)


def stretches(samples: Samples, least_gap: int, least: float = AUDIBLE) -> list[tuple[int, int]]:
    """Return where there is sound, as (start, stop); silence of fewer than `least_gap` samples belongs to it."""
    sounding = np.flatnonzero(np.abs(samples) > least)
    if not len(sounding):
        return []
    gaps = np.flatnonzero(np.diff(sounding) > least_gap)
    starts = np.concatenate(([0], gaps + 1))
    stops = np.concatenate((gaps, [len(sounding) - 1]))
    return [(int(sounding[a]), int(sounding[b]) + 1) for a, b in zip(starts, stops, strict=True)]


def delay_of(sound: Samples, recording: Samples) -> tuple[int, float]:
    """Return the position in `recording` at which a shorter sound begins, and the correlation there."""
    size = len(recording) + len(sound)
    cross = np.fft.irfft(np.fft.rfft(recording, size) * np.fft.rfft(sound, size).conj(), size)
    places = cross[: max(1, len(recording) - len(sound) + 1)]
    at = int(places.argmax())
    return at, correlation(sound, recording[at : at + len(sound)])


def correlation(first: Samples, second: Samples) -> float:
    """Return the normalised correlation of two stretches; 0 where one is silent; the longer one is cut."""
    length = min(len(first), len(second))
    first, second = first[:length].astype(np.float64), second[:length].astype(np.float64)
    norm = float(np.sqrt(np.dot(first, first) * np.dot(second, second)))
    return float(np.dot(first, second)) / norm if norm else 0.0


def likeness(first: Samples, second: Samples) -> float:
    """Return the correlation of two sounds' magnitudes over time and frequency, loudness compressed."""
    mine, theirs = _magnitudes(first), _magnitudes(second)
    return correlation((mine - mine.mean()).ravel(), (theirs - theirs.mean()).ravel())


def _magnitudes(samples: Samples) -> Samples:
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    bins = np.abs(np.fft.rfft(frames, axis=1))[:, BAND]
    return np.asarray(np.cbrt(bins.reshape(len(bins), -1, 4).mean(axis=2)), np.float32)


def parts_kept(spoken: Samples, kept: Samples) -> list[bool]:
    """Return for each PART_MS of an utterance, from its first to its last voiced sample, whether it was kept.

    Both are at 16 kHz. `kept` may have more before and after; it may not have lost or doubled anything in between. A
    part that is 25 dB fainter than the loudest is a pause, and counts as kept where the one before it was.
    """
    span = voiced_span(spoken)
    if span is None:
        return []
    voice = spoken[span[0] : span[1] + 1]
    padded = np.pad(kept, (len(voice), len(voice)))
    at, _ = delay_of(np.diff(voice), np.diff(padded))  # Differences weigh low tones less; filters turn their phases.
    size = SAMPLE_RATE * PART_MS // 1000
    parts = [(first, voice[first : first + size]) for first in range(0, max(1, len(voice) - size // 2), size)]
    loudest = max(float(np.square(part).mean()) for _, part in parts)
    found: list[bool] = []
    for first, part in parts:
        faint = float(np.square(part).mean()) < loudest / 300
        like = likeness(part, padded[at + first : at + first + len(part)]) >= LIKE
        found.append(found[-1] if faint and found else like)
    return found


@dataclass(frozen=True)
class Continuity:
    """How much of a reply is in a recording, with silences in between where it was ducked."""

    pieces: int  # stretches between silences
    missing_samples: int  # samples of the reply in no piece
    repeated_samples: int  # samples of the reply in two pieces
    foreign: int  # pieces that are not part of the reply


def continuity(reply: Samples, recording: Samples, least_gap: int) -> Continuity:
    """Follow a reply through a recording at the same rate.

    FADED_SAMPLES at each edge of a silence are too faint to be distinguished from it and do not count as missing.

    Args:
        reply: noise, or another sound that is nowhere alike to itself.
        least_gap: samples of silence that part two pieces.
    """
    expected = missing = repeated = foreign = 0
    pieces = stretches(recording, least_gap, NOT_ZERO)
    for start, stop in pieces:
        begins = _place(reply, recording[start:stop], expected)
        if begins is None:
            foreign += 1
            continue
        gap = begins - expected
        missing += max(0, gap - (2 * FADED_SAMPLES if expected else FADED_SAMPLES))
        repeated += max(0, -gap)
        expected = begins + stop - start
    missing += max(0, len(reply) - expected - FADED_SAMPLES)
    return Continuity(len(pieces), missing, repeated, foreign)


def _place(reply: Samples, piece: Samples, expected: int) -> int | None:
    """Return where in the reply a piece begins, by its middle; the expected place is tried before all others."""
    middle = max(0, (len(piece) - PROBE_SAMPLES) // 2)
    probe = piece[middle : middle + PROBE_SAMPLES]
    for slack in (FADED_SAMPLES * 2, len(reply)):
        low = max(0, expected + middle - slack)
        window = reply[low : expected + middle + slack + len(probe)]
        if len(window) >= len(probe):
            at, alike = delay_of(probe, window)
            if alike >= SAME:
                return low + at - middle
    return None
