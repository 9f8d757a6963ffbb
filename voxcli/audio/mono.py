"""Joins the blocks of a recording to mono samples of one rate and of a usable level."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from voxcli.audio.decoder import Block

Samples = NDArray[np.float32]

# Samples beyond this are damage. Programs that forget to scale write 16-bit integers as floats, up to this size.
LARGEST_SAMPLE = 32_768.0
# Channels cancel each other where their mean has less than this share of the power that unrelated channels would give:
# with two, -6 dB. Opposite phase gives 0, equal channels give 2, one silent channel gives 1.
CANCELLED_POWER = 0.25
KEPT_CHANNEL_POWER = 0.5  # The channel is changed where it has less than this share of the strongest channel's power.
OVERSHOOT_SECONDS = 0.001  # Codecs exceed full scale for moments, as Opus does at the end; these are clipped.
# A peak this much louder than all but one in SPIKE_SHARE samples is damage: in speech the ratio is about 4.
SPIKE_RATIO, SPIKE_SHARE = 10.0, 1000


class MonoMix:
    """Collects blocks, whose rate and channels may change, and returns them as mono samples at one rate.

    Channels are averaged, except where they cancel each other: there the strongest one is taken. Floating-point audio
    beyond full scale is scaled down as a whole. Samples that are not numbers become silence.

    damaged_seconds: length of the samples that are not numbers, or beyond LARGEST_SAMPLE
    cancelled_seconds: length of the parts in which channels cancelled each other
    """

    def __init__(self, sample_rate: int) -> None:
        """Prepare to return samples at `sample_rate`, in Hertz."""
        self.damaged_seconds = 0.0
        self.cancelled_seconds = 0.0
        self._sample_rate = sample_rate
        self._resampling = _Resampling(sample_rate)
        self._channel: int | None = None  # The channel that was taken last in place of the mean.
        self._low, self._high = np.inf, -np.inf

    @property
    def seconds(self) -> float:
        """The length of all blocks added."""
        return self._resampling.seconds

    @property
    def varies(self) -> bool:
        """Whether there are two different samples."""
        return self._low < self._high

    def add(self, block: "Block") -> None:
        samples = self._repaired(block)
        mono = self._mixed(samples, block.sample_rate)
        self._low, self._high = min(self._low, mono.min(initial=np.inf)), max(self._high, mono.max(initial=-np.inf))
        self._resampling.add(mono, block.sample_rate)

    def finish(self) -> tuple[Samples, float]:
        """Return all samples, shape (n,), within [-1, 1], and the gain that this took: at most 1."""
        samples = self._resampling.finish()
        gain = 1.0
        is_beyond = max(-self._low, self._high) > 1  # Resampling adds an overshoot of its own.
        if is_beyond and np.count_nonzero(np.abs(samples) > 1) > OVERSHOOT_SECONDS * self._sample_rate:
            gain = 1 / max(1.0, _peak(samples))
            samples *= np.float32(gain)
        return np.clip(samples, -1, 1, out=samples), gain

    def _repaired(self, block: "Block") -> Samples:
        """Return the block with silence in place of damaged samples; counts them."""
        is_good = np.abs(block.samples) <= LARGEST_SAMPLE  # False for NaN.
        if is_good.all():
            return block.samples
        self.damaged_seconds += np.count_nonzero(~is_good.all(axis=1)) / block.sample_rate
        return np.where(is_good, block.samples, np.float32(0))

    def _mixed(self, samples: Samples, sample_rate: int) -> Samples:
        """Return the mean of the channels, or the strongest channel where they cancel each other."""
        mean: Samples = samples.mean(axis=1)
        frames, channels = samples.shape
        if channels == 1 or not frames:
            return mean
        powers = np.einsum("ij,ij->j", samples, samples)
        if float(mean @ mean) >= CANCELLED_POWER * float(powers.sum()) / channels**2:
            return mean
        self.cancelled_seconds += frames / sample_rate
        strongest, kept = int(powers.argmax()), self._channel
        if kept is None or kept >= channels or powers[kept] < KEPT_CHANNEL_POWER * powers[strongest]:
            kept = self._channel = strongest
        return samples[:, kept]


def _peak(samples: Samples) -> float:
    """Return the largest magnitude, without damage that is far above all others."""
    magnitudes = np.abs(samples)
    peak = float(magnitudes.max())
    rank = len(magnitudes) - 1 - len(magnitudes) // SPIKE_SHARE
    usual = float(np.partition(magnitudes, rank)[rank])
    return usual if peak > SPIKE_RATIO * usual else peak


class _Resampling:
    """Collects mono blocks, whose rate may change, and returns them at one rate."""

    def __init__(self, target_rate: int) -> None:
        self._target_rate = target_rate
        self._parts: list[Samples] = []
        self._stream: Any = None
        self._sample_rate = target_rate  # The last block's rate.
        self._frames = 0  # Frames added since the rate changed.
        self._seconds_before = 0.0  # Seconds added before the rate changed.

    @property
    def seconds(self) -> float:
        """The length of all blocks added."""
        return self._seconds_before + self._frames / self._sample_rate

    def add(self, block: Samples, sample_rate: int) -> None:
        if sample_rate != self._sample_rate:
            self._change_rate(sample_rate)
        self._frames += len(block)
        self._parts.append(self._stream.resample_chunk(block) if self._stream else block)

    def finish(self) -> Samples:
        """Return all samples, shape (n,)."""
        self._change_rate(self._target_rate)
        return np.concatenate(self._parts) if self._parts else np.empty(0, np.float32)

    def _change_rate(self, sample_rate: int) -> None:
        if self._stream:
            self._parts.append(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
            self._stream = None
        if sample_rate != self._target_rate:
            import soxr

            self._stream = soxr.ResampleStream(sample_rate, self._target_rate, 1, dtype="float32")
        self._seconds_before, self._frames, self._sample_rate = self.seconds, 0, sample_rate
