"""The loudspeaker of a conversation: a bounded queue, the exact position of what was heard, and a tap of it.

It knows nothing of replies or echo; the thread that ducks it has its own reasons.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.resample import StreamResampler
from voxcli.chat.devices.portaudio import BLOCK_SECONDS, SANE_SECONDS, Device, DeviceStream, find_device, unusable

# What PortAudio is asked to hold ready; it holds two blocks more, and may round. While eight busy processes shared
# two cores, PulseAudio lost 0.1 s of 17 s of sound at 40 ms, and nothing at 60.
LATENCY_SECONDS = 0.06
QUEUE_SECONDS = 1.0  # how far synthesis may be ahead of the ear
TAP_SECONDS = 3.0  # how long the tap keeps what nobody reads
BLOCKS_AHEAD = round(2 * SANE_SECONDS / BLOCK_SECONDS)  # more than any device holds


@contextmanager
def open_speaker(wanted: str | None = None) -> Iterator["OutputSpeaker"]:
    """Open an output device for the time of the context: the default one, or see `find_device`.

    Raises:
        AudioDeviceError: there is none, or it can't be opened.
    """
    speaker = OutputSpeaker(find_device("output", wanted))
    try:
        yield speaker
    finally:
        speaker.close()


@dataclass(frozen=True)
class ReferenceBlock:
    """What was handed to the loudspeaker, silence included; blocks follow one another without a gap.

    samples: at SAMPLE_RATE, shape (n,)
    position: of the first one, in samples since the loudspeaker was opened; it jumps only where blocks were
        lost because nobody read them, or where the device was away
    handed_at: monotonic seconds at which the device took the first sample
    sounds_at: monotonic seconds at which it sounds, as far as the device knows
    """

    samples: Samples
    position: int
    handed_at: float
    sounds_at: float


@dataclass(frozen=True)
class _Handed:
    """A block of the device: at `rate`, `position` samples after the stream was opened."""

    stream: int  # counts the streams
    rate: int
    position: int
    samples: Samples
    handed_at: float
    sounds_at: float


class ReferenceTap:
    """What is played, for an echo canceller. One thread reads; what nobody reads is forgotten."""

    def __init__(self) -> None:
        self._handed: deque[_Handed] = deque(maxlen=round(TAP_SECONDS / BLOCK_SECONDS))
        self._last: _Handed | None = None
        self._resampler = StreamResampler(SAMPLE_RATE)
        self._position = 0  # of the next sample that is given

    def put(self, handed: _Handed) -> None:
        """Take a block; on the device's thread."""
        self._handed.append(handed)

    def read(self) -> list[ReferenceBlock]:
        """Return what was handed to the device since the last time."""
        return [self._resampled(self._handed.popleft()) for _ in range(len(self._handed))]

    def _resampled(self, handed: _Handed) -> ReferenceBlock:
        self._follow(handed)
        lag_seconds = self._resampler.lag_seconds
        samples = self._resampler.push(handed.samples)
        block = ReferenceBlock(samples, self._position, handed.handed_at - lag_seconds, handed.sounds_at - lag_seconds)
        self._position += len(samples)
        return block

    def _follow(self, handed: _Handed) -> None:
        """Begin anew where the block does not go on where the last one ended."""
        last, self._last = self._last, handed
        if last and last.stream == handed.stream:
            missing = handed.position - last.position - len(last.samples)
            if missing == 0:
                return
        else:
            missing = round((handed.sounds_at - last.sounds_at) * handed.rate) - len(last.samples) if last else 0
        self._position += max(0, round(missing * SAMPLE_RATE / handed.rate))
        self._resampler = StreamResampler(handed.rate)


@dataclass(frozen=True)
class _Block:
    """Samples that wait for the device; dropped once their turn is interrupted, or their device is lost."""

    samples: Samples  # shape (at most the stream's block size,)
    interrupt: threading.Event
    lost: threading.Event

    @property
    def wanted(self) -> bool:
        return not (self.interrupt.is_set() or self.lost.is_set())


class OutputSpeaker:
    """Implements `voxcli.core.turn.Speaker` on one output stream that stays open.

    An interrupt drops what is queued within one block; what lies in the device's own buffer, some
    LATENCY_SECONDS, is still heard. `duck()` does not drop it but holds it, and fades.

    A device that fails makes `play` and `wait` raise, and what was queued is dropped. `open` begins on another
    device, or on the same one again; positions go on.
    """

    def __init__(self, device: Device, *, latency_seconds: float = LATENCY_SECONDS) -> None:
        """Open the device; see `open`."""
        self.reference = ReferenceTap()
        self.underruns = 0  # times the device ran dry, as far as it says
        self._latency_seconds = latency_seconds
        self._blocks: Queue[_Block] = Queue(round(QUEUE_SECONDS / BLOCK_SECONDS))
        self._head: _Block | None = None  # begun by the device
        self._head_samples = 0  # that it has taken of it
        self._ducked = self._held = False  # wanted, and reached
        self._rate = device.sample_rate
        self._queued_samples = self._dropped_samples = self._handed_samples = 0
        self._sounding: deque[tuple[float, int]] = deque(maxlen=BLOCKS_AHEAD)  # when how many have been heard
        self._streams = 0
        self._stream_samples = 0  # handed to this stream, silence included
        self.open(device)

    @property
    def device(self) -> Device:
        """The device that it plays on, or did last."""
        return self._stream.device

    @property
    def failure(self) -> str:
        """Why nothing is heard any more, or ""."""
        return self._stream.failure

    @property
    def position(self) -> float:
        """Seconds of sound that were heard since the speaker was opened, silence not counted."""
        return self._heard_samples() / self._rate

    @property
    def is_playing(self) -> bool:
        """Whether sound is queued, held or heard now; nothing is where the device is lost."""
        is_lost = self._lost.is_set() or bool(self.failure)
        return not is_lost and self._queued_samples - self._dropped_samples > self._heard_samples()

    def duck(self) -> None:
        """Fade to silence within a block, and hold what is queued; `play` may fill the queue meanwhile."""
        self._ducked = True

    def unduck(self) -> None:
        """Swell within a block and go on from the sample where the fade ended.

        After an interrupt too, or nothing of the next turn is heard.
        """
        self._ducked = False

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; see `voxcli.core.turn.Speaker`.

        Raises:
            AudioDeviceError: the device takes no more sound.
        """
        lost, rate = self._lost, self._rate
        start = self._queued_samples - self._dropped_samples
        samples = clip.resampled(rate).samples
        size = round(rate * BLOCK_SECONDS)
        for first in range(0, len(samples), size):
            if not self._put(_Block(samples[first : first + size], interrupt, lost)):
                break
        return (start + len(samples)) / rate

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is reached, nothing more is to be heard or `interrupt` is set.

        Raises:
            AudioDeviceError: the device takes no more sound.
        """
        lost = self._lost
        while self.position < position and not interrupt.is_set():
            self._check(lost)
            if not self.is_playing:
                break
            interrupt.wait(BLOCK_SECONDS)

    def open(self, device: Device) -> None:
        """Play on a device from now on; the one before has to be closed.

        Raises:
            AudioDeviceError: it can't be opened.
        """
        self._drop_queue()
        ratio = device.sample_rate / self._rate
        self._rate = device.sample_rate
        self._queued_samples = round((self._queued_samples - self._dropped_samples) * ratio)
        self._dropped_samples = 0
        self._handed_samples = self._queued_samples
        self._sounding.clear()
        self._sounding.append((-math.inf, self._handed_samples))
        self._streams += 1
        self._stream_samples = 0
        self._lost = threading.Event()
        self._stream = DeviceStream(device, self._fill, self._latency_seconds)

    def close(self) -> None:
        """Close the device and drop what is queued; give the device up if it hangs."""
        self._lost.set()
        self._stream.close()
        self._drop_queue()

    def _drop_queue(self) -> None:
        """Forget what waits for a device that is closed."""
        while self._next_block():
            self._drop_head()

    def _heard_samples(self) -> int:
        now = time.monotonic()
        sounding = tuple(self._sounding)  # one step for the interpreter; the device's thread appends
        return next((handed for moment, handed in reversed(sounding) if moment <= now), sounding[0][1])

    def _put(self, block: _Block) -> bool:
        """Queue a block, waiting for room; return False if it was interrupted meanwhile."""
        self._check(block.lost)
        while not block.interrupt.is_set():
            with suppress(Full):
                self._blocks.put(block, timeout=BLOCK_SECONDS)
                self._queued_samples += len(block.samples)
                return True
            self._check(block.lost)
        return False

    def _check(self, lost: threading.Event) -> None:
        if lost.is_set() or self.failure:
            lost.set()
            raise unusable(self.device, "it takes no more sound")

    # On the device's thread from here on.

    def _fill(self, out: NDArray[np.float32], sounds_at: float, underrun: bool) -> None:
        was_held, self._held = self._held, self._ducked
        count = 0
        block = self._next_block()
        if not (was_held and self._held):
            while block and count < len(out):
                part = block.samples[self._head_samples :][: len(out) - count]
                out[count : count + len(part)] = part[:, np.newaxis]
                count += len(part)
                self._head_samples += len(part)
                block = self._next_block()
        if was_held != self._held and count:
            fade = np.linspace(float(self._held), float(was_held), count, dtype=np.float32)
            out[:count] *= fade[:, np.newaxis]
        out[count:] = 0
        self._account(out, count, sounds_at, underrun)

    def _account(self, out: NDArray[np.float32], count: int, sounds_at: float, underrun: bool) -> None:
        self.underruns += underrun
        self._handed_samples += count
        self._sounding.append((sounds_at + count / self._rate, self._handed_samples))
        mono = out[:, 0].copy()
        self.reference.put(_Handed(self._streams, self._rate, self._stream_samples, mono, time.monotonic(), sounds_at))
        self._stream_samples += len(mono)

    def _next_block(self) -> _Block | None:
        """Return the first block that is still wanted and not taken to its end."""
        while self._head is None or not self._head.wanted or self._head_samples >= len(self._head.samples):
            if self._head:
                self._drop_head()
            try:
                self._head = self._blocks.get_nowait()
            except Empty:
                return None
        return self._head

    def _drop_head(self) -> None:
        """Be done with the first block; what the device did not take of it is never heard."""
        if self._head:
            self._dropped_samples += len(self._head.samples) - self._head_samples
        self._head, self._head_samples = None, 0
