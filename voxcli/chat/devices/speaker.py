"""The loudspeaker of a conversation: a bounded queue, the exact playback position, and a tap for echo cancellation."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.resample import StreamResampler
from voxcli.chat.devices.portaudio import (
    BLOCK_SECONDS,
    SAMPLE_BYTES,
    SANE_SECONDS,
    Device,
    DeviceStream,
    find_device,
    frames_of,
    unusable,
)

# The buffer that PortAudio is asked for; it adds two blocks, and may round. While eight busy processes shared two
# cores, PulseAudio lost 0.1 s of 17 s of sound at 40 ms, and nothing at 60 ms.
LATENCY_SECONDS = 0.06
QUEUE_SECONDS = 1.0  # How far synthesis may be ahead of playback.
TAP_SECONDS = 3.0  # How long the tap keeps blocks that nobody reads.
BLOCKS_AHEAD = round(2 * SANE_SECONDS / BLOCK_SECONDS)  # More than any device buffers.


@contextmanager
def open_speaker(wanted: str | None = None) -> Iterator["OutputSpeaker"]:
    """Open the default output device, or the `wanted` one (see `find_device`), within a context.

    Raises:
        AudioDeviceError: the device is missing or can't be opened.
    """
    speaker = OutputSpeaker(find_device("output", wanted))
    try:
        yield speaker
    finally:
        speaker.close()


@dataclass(frozen=True)
class ReferenceBlock:
    """A block that was handed to the loudspeaker, silence included; it begins where the block before it ended.

    samples: at SAMPLE_RATE, shape (n,)
    position: position of the first sample, in samples since the loudspeaker was opened; it jumps only where blocks
        were dropped because nobody read them, or where the device was disconnected
    handed_at: when the device took the first sample, in monotonic seconds
    sounds_at: when the first sample is audible, in monotonic seconds, as far as the device knows
    """

    samples: Samples
    position: int
    handed_at: float
    sounds_at: float


class _Handed(NamedTuple):
    """A block as the device received it: at `rate`, `position` frames after the stream was opened."""

    stream: int  # The stream's number.
    rate: int
    position: int
    frames: int
    samples: Samples | None  # Shape (frames,); None for silence.
    handed_at: float
    sounds_at: float

    @property
    def end(self) -> int:
        """The position of the frame after the block."""
        return self.position + self.frames


class ReferenceTap:
    """The playback as an echo canceller's reference. One thread reads it; blocks that nobody reads are dropped."""

    def __init__(self) -> None:
        self._handed: deque[_Handed] = deque(maxlen=round(TAP_SECONDS / BLOCK_SECONDS))
        self._last: _Handed | None = None
        self._resampler = StreamResampler(SAMPLE_RATE)
        self._position = 0  # Position of the next sample that `read` returns.

    def put(self, handed: _Handed) -> None:
        """Add a block; called on the device's thread."""
        self._handed.append(handed)

    def read(self) -> list[ReferenceBlock]:
        """Return the blocks that were handed to the device since the last call; silent ones are joined."""
        handed = [self._handed.popleft() for _ in range(len(self._handed))]
        return [self._resampled(block) for block in _with_silence_joined(handed)]

    def _resampled(self, handed: _Handed) -> ReferenceBlock:
        self._skip_gap_before(handed)
        lag_seconds = self._resampler.lag_seconds
        silence = np.zeros(handed.frames, np.float32)
        samples = self._resampler.push(silence if handed.samples is None else handed.samples)
        block = ReferenceBlock(samples, self._position, handed.handed_at - lag_seconds, handed.sounds_at - lag_seconds)
        self._position += len(samples)
        return block

    def _skip_gap_before(self, handed: _Handed) -> None:
        """Advance the position and restart the resampler where a gap precedes the block."""
        last, self._last = self._last, handed
        if last and last.stream == handed.stream:
            missing = handed.position - last.end
            if missing == 0:
                return
        else:
            missing = round((handed.sounds_at - last.sounds_at) * handed.rate) - last.frames if last else 0
        self._position += max(0, round(missing * SAMPLE_RATE / handed.rate))
        self._resampler = StreamResampler(handed.rate)


def _with_silence_joined(blocks: list[_Handed]) -> list[_Handed]:
    """Join silent blocks that follow one another without a gap."""
    runs: list[list[_Handed]] = []
    end = None  # Where silence ends that the next block may continue.
    for block in blocks:
        if block.samples is not None or end != (block.stream, block.position):
            runs.append([])
        runs[-1].append(block)
        end = (block.stream, block.end) if block.samples is None else None
    return [run[0]._replace(frames=run[-1].end - run[0].position) for run in runs]


@dataclass(frozen=True)
class _Block:
    """Samples that wait for the device; dropped once their turn is interrupted or their device is lost."""

    samples: Samples  # Shape (n,); n is at most the stream's block size.
    interrupt: threading.Event
    lost: threading.Event

    @property
    def wanted(self) -> bool:
        return not (self.interrupt.is_set() or self.lost.is_set())


class OutputSpeaker:
    """Implements `voxcli.core.protocols.Speaker` on one output stream that stays open.

    An interrupt drops the queue within one block; the device's own buffer, about LATENCY_SECONDS, is still played.
    `duck` fades out and holds the queue instead.

    When a device fails, `play` and `wait` raise and the queue is dropped. `open` continues on another device, or on
    the same one; positions continue.
    """

    def __init__(self, device: Device, *, latency_seconds: float = LATENCY_SECONDS) -> None:
        """Open the device; see `open`."""
        self.reference = ReferenceTap()
        self.underruns = 0  # How often the device ran out of samples, as far as it reports.
        self._latency_seconds = latency_seconds
        self._blocks: Queue[_Block] = Queue(round(QUEUE_SECONDS / BLOCK_SECONDS))
        self._head: _Block | None = None  # The block that the device is taking.
        self._head_samples = 0  # Samples of it that the device has taken.
        self._cue: Samples = np.zeros(0, np.float32)  # The rest of a cue, at the device's rate.
        self._ducked = self._held = False  # The state asked for, and the state that the device has reached.
        self._rate = device.sample_rate
        self._queued_samples = self._dropped_samples = self._handed_samples = 0
        # Pairs of a time in monotonic seconds and the number of samples played by then.
        self._playback: deque[tuple[float, int]] = deque(maxlen=BLOCKS_AHEAD)
        self._streams = 0
        self._stream_frames = 0  # Frames handed to this stream, silence included.
        self.open(device)

    @property
    def device(self) -> Device:
        """The present or last device."""
        return self._stream.device

    @property
    def failure(self) -> str:
        """Why the device plays nothing any more, or ""."""
        return self._stream.failure

    @property
    def position(self) -> float:
        """Seconds of clips played since the speaker was opened, silence not counted."""
        return self._played_samples() / self._rate

    @property
    def is_playing(self) -> bool:
        """Whether sound is queued, held or playing; False where the device is lost."""
        if self._lost.is_set() or self.failure:
            return False
        wanted = self._queued_samples - self._dropped_samples
        played_long_ago = self._playback[0][1]  # Saves looking for the present position while nothing plays.
        return wanted > played_long_ago and wanted > self._played_samples()

    def duck(self) -> None:
        """Fade out within one block and hold the queue; `play` may still add to it."""
        self._ducked = True

    def unduck(self) -> None:
        """Fade in within one block, from the sample where the fade-out ended.

        This is needed after an interrupt too, or the next turn stays silent.
        """
        self._ducked = False

    def play_cue(self, clip: AudioClip) -> None:
        """Mix a short sound into what is played, at once; neither `position` nor `is_playing` changes."""
        self._cue = clip.resampled(self._rate).samples

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; see `voxcli.core.protocols.Speaker`.

        Raises:
            AudioDeviceError: the device failed.
        """
        lost, rate = self._lost, self._rate
        start = self._queued_samples - self._dropped_samples
        samples = clip.resampled(rate).samples
        size = round(rate * BLOCK_SECONDS)
        for first in range(0, len(samples), size):
            if not self._queue_block(_Block(samples[first : first + size], interrupt, lost)):
                break
        return (start + len(samples)) / rate

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is played, nothing is left to play, or `interrupt` is set.

        Raises:
            AudioDeviceError: the device failed.
        """
        lost = self._lost
        while self.position < position and not interrupt.is_set():
            self._check_device(lost)
            if not self.is_playing:
                break
            interrupt.wait(BLOCK_SECONDS)

    def open(self, device: Device) -> None:
        """Open a device; the one before has to be closed.

        Raises:
            AudioDeviceError: it can't be opened.
        """
        self._drop_queue()
        ratio = device.sample_rate / self._rate
        self._rate, self._channels = device.sample_rate, device.stream_channels
        self._queued_samples = round((self._queued_samples - self._dropped_samples) * ratio)
        self._dropped_samples = 0
        self._handed_samples = self._queued_samples
        self._playback.clear()
        self._playback.append((-math.inf, self._handed_samples))
        self._streams += 1
        self._stream_frames = 0
        self._lost = threading.Event()
        self._stream = DeviceStream(device, self._fill, self._latency_seconds)

    def close(self) -> None:
        """Drop the queue and close the device, or abandon it if it hangs."""
        self._lost.set()
        self._stream.close()
        self._drop_queue()

    def _drop_queue(self) -> None:
        """Drop all blocks of a device that is closed."""
        while self._next_block():
            self._drop_head()

    def _played_samples(self) -> int:
        now = time.monotonic()
        playback = tuple(self._playback)  # An atomic copy: the device's thread appends meanwhile.
        return next((samples for moment, samples in reversed(playback) if moment <= now), playback[0][1])

    def _queue_block(self, block: _Block) -> bool:
        """Queue a block, waiting for room; return False if its turn was interrupted meanwhile."""
        self._check_device(block.lost)
        while not block.interrupt.is_set():
            with suppress(Full):
                self._blocks.put(block, timeout=BLOCK_SECONDS)
                self._queued_samples += len(block.samples)
                return True
            self._check_device(block.lost)
        return False

    def _check_device(self, lost: threading.Event) -> None:
        """Raise AudioDeviceError if the device is lost."""
        if lost.is_set() or self.failure:
            lost.set()
            raise unusable(self.device, "it takes no more sound")

    # The device's thread calls the methods below.

    def _fill(self, out: memoryview, sounds_at: float, underrun: bool) -> None:
        self.underruns += underrun
        was_held, self._held = self._held, self._ducked
        frames = len(out) // (SAMPLE_BYTES * self._channels)
        if self._head is None and self._blocks.empty() and not len(self._cue):
            self._record_playback(None, frames, 0, sounds_at)
            return
        samples = frames_of(out, self._channels)
        count = 0
        block = self._next_block()  # Drops blocks that are no longer wanted, even while the queue is held.
        if not (was_held and self._held):
            while block and count < frames:
                part = block.samples[self._head_samples :][: frames - count]
                samples[count : count + len(part)] = part[:, np.newaxis]
                count += len(part)
                self._head_samples += len(part)
                block = self._next_block()
        if was_held != self._held and count:
            fade = np.linspace(float(self._held), float(was_held), count, dtype=np.float32)
            samples[:count] *= fade[:, np.newaxis]
        self._mix_cue(samples)
        self._record_playback(samples[:, 0].copy() if samples.any() else None, frames, count, sounds_at)

    def _mix_cue(self, out: NDArray[np.float32]) -> None:
        cue = self._cue
        part = cue[: len(out)]
        if len(part):
            out[: len(part)] += part[:, np.newaxis]
            if self._cue is cue:  # Otherwise another cue has come.
                self._cue = cue[len(part) :]

    def _record_playback(self, samples: Samples | None, frames: int, count: int, sounds_at: float) -> None:
        """Note a block that is handed to the device.

        Args:
            samples: those of the block, shape (frames,); None for silence.
            count: the samples of clips in it.
        """
        self._handed_samples += count
        handed_at = time.monotonic()
        sounds_at = max(handed_at, sounds_at)  # Some devices report a time that is just over.
        self._playback.append((sounds_at + count / self._rate, self._handed_samples))
        self.reference.put(
            _Handed(self._streams, self._rate, self._stream_frames, frames, samples, handed_at, sounds_at)
        )
        self._stream_frames += frames

    def _next_block(self) -> _Block | None:
        """Return the first block that is still wanted and has samples left, or None."""
        while self._head is None or not self._head.wanted or self._head_samples >= len(self._head.samples):
            if self._head:
                self._drop_head()
            try:
                self._head = self._blocks.get_nowait()
            except Empty:
                return None
        return self._head

    def _drop_head(self) -> None:
        """Drop the first block with the samples that the device has not taken."""
        if self._head:
            self._dropped_samples += len(self._head.samples) - self._head_samples
        self._head, self._head_samples = None, 0
