"""The microphone of a conversation: one stream of 16 kHz mono whose positions stay tied to time.

It knows nothing of speech. What the device or a busy computer lost is counted and filled with silence.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.resample import StreamResampler
from voxcli.chat.devices.portaudio import BLOCK_SECONDS, Device, DeviceStream

LATENCY_SECONDS = 0.04  # what PortAudio may hold back; sound servers deliver each block as soon as it is there
QUEUE_SECONDS = 5.0  # how long the reader may be busy with something else until sound is lost
KEPT_SECONDS = 0.5  # of what was captured before the first read: a first word may have begun
LONGEST_GAP_SECONDS = 10.0  # of the silence that stands for what was lost: more than ends any utterance


@dataclass(frozen=True)
class MicrophoneBlock:
    """The next samples; blocks follow one another without a gap.

    samples: at SAMPLE_RATE, shape (n,), n may be 0
    position: of the first one, in samples since the microphone was opened
    captured_at: monotonic seconds at which the last one was captured, as far as the device knows
    """

    samples: Samples
    position: int
    captured_at: float


@dataclass(frozen=True)
class _Captured:
    """A block of the device: at `rate`, `position` samples after the stream was opened."""

    stream: int  # counts the streams
    rate: int
    position: int
    samples: NDArray[np.float32]  # shape (frames, channels)
    moment: float  # of its first sample, monotonic seconds


class Microphone:
    """An input device that stays open; one thread reads it.

    The device's thread copies its blocks into a queue. `read` mixes and resamples, which holds back 2.5 ms. A gap,
    where the queue ran over or the device lost sound or was away, becomes as much silence (at most
    LONGEST_GAP_SECONDS), so that positions go on as time does.
    """

    def __init__(
        self, device: Device, *, latency_seconds: float = LATENCY_SECONDS, queue_seconds: float = QUEUE_SECONDS
    ) -> None:
        """Open the device; see `open`."""
        self.overruns = 0  # times that sound was lost since the first read
        self._is_read = False
        self._latency_seconds = latency_seconds
        self._captured: Queue[_Captured] = Queue(round(queue_seconds / BLOCK_SECONDS))
        self._kept_blocks = round(min(KEPT_SECONDS, queue_seconds) / BLOCK_SECONDS)
        self._last: _Captured | None = None
        self._resampler = StreamResampler(SAMPLE_RATE)
        self._position = 0
        self._streams = 0
        self.open(device)

    @property
    def device(self) -> Device:
        """The device that it hears, or did last."""
        return self._stream.device

    @property
    def failure(self) -> str:
        """Why nothing is heard any more, or ""."""
        return self._stream.failure

    def open(self, device: Device) -> None:
        """Hear a device from now on; the one before has to be closed.

        Raises:
            AudioDeviceError: it can't be opened.
        """
        self._streams += 1
        self._rate = device.sample_rate
        self._stream_samples = 0
        self._ends_at = time.monotonic()  # when the last sample was captured
        self._stream = DeviceStream(device, self._take, self._latency_seconds)

    def read(self, timeout: float) -> MicrophoneBlock | None:
        """Return the next block, or None if there is none for `timeout` seconds: the device is slow, or gone.

        The first call finds the last KEPT_SECONDS before it: a model may take a minute to load.
        """
        self._is_read = True
        try:
            captured = self._captured.get(timeout=timeout)
        except Empty:
            return None
        silence = self._follow(captured)
        samples = self._resampler.push(captured.samples.mean(axis=1, dtype=np.float32))
        if silence:
            samples = np.concatenate((np.zeros(silence, np.float32), samples))
        ends_at = captured.moment + len(captured.samples) / captured.rate
        block = MicrophoneBlock(samples, self._position, ends_at - self._resampler.lag_seconds)
        self._position += len(samples)
        return block

    def close(self) -> None:
        """Close the device; give it up if it hangs. What it heard can still be read."""
        self._stream.close()

    def _follow(self, captured: _Captured) -> int:
        """Begin anew where the block does not go on where the last one ended; return the gap at SAMPLE_RATE."""
        last, self._last = self._last, captured
        if last and last.stream == captured.stream:
            gap_seconds = (captured.position - last.position - len(last.samples)) / captured.rate
            if gap_seconds == 0:
                return 0
        else:
            gap_seconds = captured.moment - last.moment - len(last.samples) / last.rate if last else 0.0
        gap_seconds += self._resampler.lag_seconds  # what it still holds back is lost, too
        self._resampler = StreamResampler(captured.rate)
        return round(min(max(0.0, gap_seconds), LONGEST_GAP_SECONDS) * SAMPLE_RATE)

    def _take(self, data: NDArray[np.float32], moment: float, overrun: bool) -> None:
        """Queue a block; on the device's thread."""
        if overrun:
            self.overruns += self._is_read
            self._stream_samples += max(0, round((moment - self._ends_at) * self._rate))
        self._ends_at = moment + len(data) / self._rate
        captured = _Captured(self._streams, self._rate, self._stream_samples, data.copy(), moment)
        self._stream_samples += len(data)
        if self._captured.qsize() >= (self._captured.maxsize if self._is_read else self._kept_blocks):
            self.overruns += self._is_read
            with suppress(Empty):  # the reader made room meanwhile
                self._captured.get_nowait()
        self._captured.put_nowait(captured)
