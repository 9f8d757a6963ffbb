"""The microphone of a conversation: one stream of 16 kHz mono whose positions stay tied to time.

Sound that the device or a busy computer lost is counted and replaced by silence.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.audio.resample import StreamResampler
from voxcli.chat.devices.portaudio import BLOCK_SECONDS, SAMPLE_BYTES, Device, DeviceStream, frames_of

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


class _Captured(NamedTuple):
    """A block as the device delivered it: at `rate`, `position` frames after the stream was opened."""

    stream: int  # The stream's number.
    rate: int
    channels: int
    position: int
    frames: int
    data: bytes  # Interleaved float32 samples.
    moment: float  # When the first frame was captured, in monotonic seconds.

    @property
    def end(self) -> int:
        """The position of the frame after the block."""
        return self.position + self.frames

    @property
    def ends_at(self) -> float:
        """When its last frame was captured, in monotonic seconds."""
        return self.moment + self.frames / self.rate

    def mixed(self) -> Samples:
        """Return its mono samples, shape (frames,)."""
        samples = frames_of(self.data, self.channels)
        return samples[:, 0] if self.channels == 1 else (samples[:, 0] + samples[:, 1]) / np.float32(2)


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
        self._captured_frames = 0  # Frames of these blocks.
        self._awaited_frames = 0.0  # The reader waits for so many.
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
        self._rate, self._channels = device.sample_rate, device.stream_channels
        self._stream_frames = 0
        self._ends_at = time.monotonic()  # When the last frame was captured.
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
        pieces = [piece for run in _runs(blocks) for piece in self._resampled(run)]
        samples = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        block = MicrophoneBlock(samples, self._position, blocks[-1].ends_at - self._resampler.lag_seconds)
        self._position += len(samples)
        return block

    def _take(self, timeout: float, frames: float) -> list[_Captured]:
        """Wait for so many frames at the device's rate; remove and return their blocks."""
        taken: list[_Captured] = []
        with self._news:
            self._awaited_frames = frames
            self._news.wait_for(lambda: self._captured_frames >= frames, timeout)
            while self._captured and frames > 0:
                taken.append(self._captured.popleft())
                frames -= taken[-1].frames
                self._captured_frames -= taken[-1].frames
        return taken

    def _resampled(self, captured: _Captured) -> list[Samples]:
        """Return the silence that replaces a gap before a block, and the block, both at SAMPLE_RATE."""
        gap = self._gap_before(captured)
        samples = self._resampler.push(captured.mixed())
        return [np.zeros(gap, np.float32), samples] if gap else [samples]

    def close(self) -> None:
        """Close the device, or abandon it if it hangs. What it has captured can still be read."""
        self._stream.close()

    def _gap_before(self, captured: _Captured) -> int:
        """Return the gap between the last block and this one, in samples at SAMPLE_RATE.

        A gap restarts the resampler.
        """
        last, self._last = self._last, captured
        if last and last.stream == captured.stream:
            gap_seconds = (captured.position - last.end) / captured.rate
            if gap_seconds == 0:
                return 0
        else:
            gap_seconds = captured.moment - last.ends_at if last else 0.0
        gap_seconds += self._resampler.lag_seconds  # The resampler's remaining samples are lost too.
        self._resampler = StreamResampler(captured.rate)
        return round(min(max(0.0, gap_seconds), LONGEST_GAP_SECONDS) * SAMPLE_RATE)

    def _queue_block(self, block: memoryview, moment: float, overrun: bool) -> None:
        """Queue a block; called on the device's thread."""
        if overrun:
            self.overruns += self._is_read
            self._stream_frames += max(0, round((moment - self._ends_at) * self._rate))
        frames = len(block) // (SAMPLE_BYTES * self._channels)
        self._ends_at = moment + frames / self._rate
        captured = _Captured(
            self._streams, self._rate, self._channels, self._stream_frames, frames, bytes(block), moment
        )
        self._stream_frames += frames
        with self._news:
            if len(self._captured) >= (self._most_blocks if self._is_read else self._kept_blocks):
                self.overruns += self._is_read
                self._captured_frames -= self._captured.popleft().frames
            self._captured.append(captured)
            self._captured_frames += frames
            if self._captured_frames >= self._awaited_frames:
                self._news.notify()


def _runs(blocks: list[_Captured]) -> list[_Captured]:
    """Join blocks that follow one another without a gap."""
    runs: list[list[_Captured]] = []
    end = (0, 0)
    for block in blocks:
        if end != (block.stream, block.position):
            runs.append([])
        runs[-1].append(block)
        end = block.stream, block.end
    return [
        run[0]._replace(frames=run[-1].end - run[0].position, data=b"".join([block.data for block in run]))
        for run in runs
    ]
