"""The microphone of a conversation: one stream of 16 kHz mono whose positions stay tied to time.

Sound that the device or a busy computer lost is counted and replaced by silence.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.resample import StreamResampler
from voxcli.chat.devices.portaudio import BLOCK_SECONDS, Device, DeviceStream

LATENCY_SECONDS = 0.04  # PortAudio may hold this much back; sound servers deliver each block at once.
QUEUE_SECONDS = 5.0  # The reader may be busy for this long before sound is lost.
KEPT_SECONDS = 0.5  # Sound kept from before the first read, in which a first word may have begun.
LONGEST_GAP_SECONDS = 10.0  # The longest silence that replaces lost sound; it ends any utterance.
SILENT_MICROPHONE = "the microphone delivers only zeros: it is muted, or the system does not permit recording"


@dataclass(frozen=True)
class MicrophoneBlock:
    """A block of samples; it begins where the block before it ended.

    samples: at SAMPLE_RATE, shape (n,); n may be 0
    position: position of the first sample, in samples since the microphone was opened
    captured_at: when the last sample was captured, in monotonic seconds, as far as the device knows
    """

    samples: Samples
    position: int
    captured_at: float


@dataclass(frozen=True)
class _Captured:
    """A block as the device delivered it: at `rate`, `position` samples after the stream was opened."""

    stream: int  # The stream's number.
    rate: int
    position: int
    samples: NDArray[np.float32]  # Shape (frames, channels).
    moment: float  # When the first sample was captured, in monotonic seconds.


class Microphone:
    """An input device that stays open; one thread reads it.

    The device's thread copies its blocks into a queue. `read` mixes them to mono and resamples them, which delays
    them by 2.5 ms. Silence of the same length (at most LONGEST_GAP_SECONDS) fills a gap where the queue overflowed,
    the device lost sound, or the device was disconnected. So positions keep pace with time.
    """

    def __init__(
        self, device: Device, *, latency_seconds: float = LATENCY_SECONDS, queue_seconds: float = QUEUE_SECONDS
    ) -> None:
        """Open the device; see `open`."""
        self.overruns = 0  # How often sound was lost since the first read.
        self._is_read = False
        self._latency_seconds = latency_seconds
        self._most_blocks = round(queue_seconds / BLOCK_SECONDS)
        self._kept_blocks = round(min(KEPT_SECONDS, queue_seconds) / BLOCK_SECONDS)
        self._news = threading.Condition()  # Guards the three fields below.
        self._captured: deque[_Captured] = deque()
        self._captured_samples = 0  # Samples of these blocks.
        self._awaited_samples = 0.0  # The reader waits for so many.
        self._last: _Captured | None = None
        self._resampler = StreamResampler(SAMPLE_RATE)
        self._position = 0
        self._streams = 0
        self.open(device)

    @property
    def device(self) -> Device:
        """The present or last device."""
        return self._stream.device

    @property
    def failure(self) -> str:
        """Why the device delivers no sound any more, or ""."""
        return self._stream.failure

    def open(self, device: Device) -> None:
        """Open a device; the one before has to be closed.

        Raises:
            AudioDeviceError: it can't be opened.
        """
        self._streams += 1
        self._rate = device.sample_rate
        self._stream_samples = 0
        self._ends_at = time.monotonic()  # When the last sample was captured.
        self._stream = DeviceStream(device, self._queue_block, self._latency_seconds)

    def read(self, timeout: float, wanted_samples: int = 1) -> MicrophoneBlock | None:
        """Return the next block, or None if none arrives within `timeout` seconds.

        The first call returns sound from up to KEPT_SECONDS before it: loading a model may take a minute.

        Args:
            wanted_samples: a thread that can do nothing with fewer samples sleeps until so many are captured, and
                receives them as one block; it may receive fewer after `timeout` seconds.
        """
        self._is_read = True
        blocks = self._take(timeout, wanted_samples * self._rate / SAMPLE_RATE)
        if not blocks:
            return None
        samples = np.concatenate([piece for run in _runs(blocks) for piece in self._resampled(run)])
        ends_at = blocks[-1].moment + len(blocks[-1].samples) / blocks[-1].rate
        block = MicrophoneBlock(samples, self._position, ends_at - self._resampler.lag_seconds)
        self._position += len(samples)
        return block

    def _take(self, timeout: float, samples: float) -> list[_Captured]:
        """Wait for so many samples at the device's rate; remove and return their blocks."""
        taken: list[_Captured] = []
        with self._news:
            self._awaited_samples = samples
            self._news.wait_for(lambda: self._captured_samples >= samples, timeout)
            while self._captured and samples > 0:
                taken.append(self._captured.popleft())
                samples -= len(taken[-1].samples)
                self._captured_samples -= len(taken[-1].samples)
        return taken

    def _resampled(self, captured: _Captured) -> list[Samples]:
        """Return the silence that replaces a gap before a block, and the block, both at SAMPLE_RATE."""
        silence = np.zeros(self._gap_before(captured), np.float32)
        return [silence, self._resampler.push(captured.samples.mean(axis=1, dtype=np.float32))]

    def close(self) -> None:
        """Close the device, or abandon it if it hangs. What it has captured can still be read."""
        self._stream.close()

    def _gap_before(self, captured: _Captured) -> int:
        """Return the gap between the last block and this one, in samples at SAMPLE_RATE.

        A gap restarts the resampler.
        """
        last, self._last = self._last, captured
        if last and last.stream == captured.stream:
            gap_seconds = (captured.position - last.position - len(last.samples)) / captured.rate
            if gap_seconds == 0:
                return 0
        else:
            gap_seconds = captured.moment - last.moment - len(last.samples) / last.rate if last else 0.0
        gap_seconds += self._resampler.lag_seconds  # The resampler's remaining samples are lost too.
        self._resampler = StreamResampler(captured.rate)
        return round(min(max(0.0, gap_seconds), LONGEST_GAP_SECONDS) * SAMPLE_RATE)

    def _queue_block(self, data: NDArray[np.float32], moment: float, overrun: bool) -> None:
        """Queue a block; called on the device's thread."""
        if overrun:
            self.overruns += self._is_read
            self._stream_samples += max(0, round((moment - self._ends_at) * self._rate))
        self._ends_at = moment + len(data) / self._rate
        captured = _Captured(self._streams, self._rate, self._stream_samples, data.copy(), moment)
        self._stream_samples += len(data)
        with self._news:
            if len(self._captured) >= (self._most_blocks if self._is_read else self._kept_blocks):
                self.overruns += self._is_read
                self._captured_samples -= len(self._captured.popleft().samples)
            self._captured.append(captured)
            self._captured_samples += len(data)
            if self._captured_samples >= self._awaited_samples:
                self._news.notify()


def _runs(blocks: list[_Captured]) -> list[_Captured]:
    """Join blocks that follow one another without a gap."""
    runs: list[list[_Captured]] = []
    end = (0, 0)
    for block in blocks:
        if end != (block.stream, block.position):
            runs.append([])
        runs[-1].append(block)
        end = block.stream, block.position + len(block.samples)
    return [replace(run[0], samples=np.concatenate([block.samples for block in run])) for run in runs]
