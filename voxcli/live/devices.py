"""Audio devices; the only module that imports sounddevice. It knows nothing of speech or turns.

Callbacks only move data: a block that was made ready beforehand goes out, a counter goes up.
"""

import atexit
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any, Literal

import numpy as np

from voxcli.audio import AudioClip, Samples
from voxcli.errors import AudioDeviceError

BLOCK_SECONDS = 0.02
# What the device holds ready. PortAudio's own choice for PulseAudio, 40 ms, lost a quarter of the sound
# while three busy processes shared two cores; 100 ms lost none.
LATENCY_SECONDS = 0.1
SPARE_BLOCKS = 2  # that a device holds beyond the latency that it names
QUEUE_SECONDS = 1.0  # how far synthesis may be ahead of the ear
STALL_SECONDS = 2.0  # a device that took no block for so long is gone


@dataclass(frozen=True)
class Device:
    """An input or output device, as PortAudio names it."""

    index: int
    name: str
    channels: int
    sample_rate: int  # Hertz; the device's own
    is_default: bool


def output_devices() -> list[Device]:
    """Return the loudspeakers; raises AudioDeviceError where PortAudio does not work."""
    return _devices("output")


def input_devices() -> list[Device]:
    """Return the microphones; raises AudioDeviceError where PortAudio does not work."""
    return _devices("input")


def _devices(kind: Literal["input", "output"]) -> list[Device]:
    sounddevice = _sounddevice()
    try:
        listed = sounddevice.query_devices()
        default = sounddevice.default.device[0 if kind == "input" else 1]
    except sounddevice.PortAudioError as error:
        raise AudioDeviceError(f"the audio devices can't be listed: {error}", hint="voxcli doctor") from error
    return [
        Device(index, info["name"], channels, round(info["default_samplerate"]), index == default)
        for index, info in enumerate(listed)
        if (channels := info[f"max_{kind}_channels"]) > 0
    ]


@contextmanager
def open_speaker() -> Iterator["OutputSpeaker"]:
    """Open the default output device for the time of the context.

    Raises:
        AudioDeviceError: there is none, or it can't be opened.
    """
    default = next((device for device in output_devices() if device.is_default), None)
    if default is None:
        raise AudioDeviceError("there is no audio output device", hint="use --no-speak, or --save-reply FILE.wav")
    speaker = OutputSpeaker(default)
    try:
        yield speaker
    finally:
        speaker.close()


@dataclass(frozen=True)
class _Block:
    samples: Samples  # shape (at most the stream's block size,)
    interrupt: threading.Event


class OutputSpeaker:
    """Implements `voxcli.turn.Speaker` on one output stream that stays open.

    An interrupt drops what is queued within one block; what lies in the device's own buffer, some
    LATENCY_SECONDS, is still heard.
    """

    def __init__(self, device: Device) -> None:
        sounddevice = _sounddevice()
        self._device = device
        self._block_samples = round(device.sample_rate * BLOCK_SECONDS)
        self._blocks: Queue[_Block] = Queue(round(QUEUE_SECONDS / BLOCK_SECONDS))
        self._queued_samples = 0
        self._dropped_samples = 0
        self._handed_samples = 0  # to the device, which plays them a little later
        self._called = time.monotonic()  # when the device last asked for a block
        try:
            with _quiet():
                self._stream = sounddevice.OutputStream(
                    samplerate=device.sample_rate,
                    blocksize=self._block_samples,
                    latency=LATENCY_SECONDS,
                    device=device.index,
                    channels=min(2, device.channels),
                    dtype="float32",
                    callback=self._callback,
                )
                blocks_ahead = math.ceil(self._stream.latency / BLOCK_SECONDS) + SPARE_BLOCKS
                self._handed_before = deque([0] * blocks_ahead, blocks_ahead)  # the first is what is heard by now
                self._stream.start()
        except sounddevice.PortAudioError as error:
            raise _unusable(device, str(error)) from error

    @property
    def position(self) -> float:
        """Seconds of sound that were heard since the device was opened."""
        return self._handed_before[0] / self._device.sample_rate

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; see `voxcli.turn.Speaker`.

        Raises:
            AudioDeviceError: the device takes no more sound.
        """
        start = self._queued_samples - self._dropped_samples
        samples = clip.resampled(self._device.sample_rate).samples
        for first in range(0, len(samples), self._block_samples):
            if not self._put(_Block(samples[first : first + self._block_samples], interrupt)):
                break
        return (start + len(samples)) / self._device.sample_rate

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is reached or `interrupt` is set.

        Raises:
            AudioDeviceError: the device takes no more sound.
        """
        while self.position < position and not interrupt.wait(BLOCK_SECONDS):
            self._check()

    def close(self) -> None:
        """Close the device; give it up if it hangs."""
        closing = threading.Thread(target=self._close_stream, name="audio close", daemon=True)
        closing.start()
        closing.join(STALL_SECONDS)
        if closing.is_alive():  # PortAudio waits for such a device for ever, and would again when the program ends
            atexit.unregister(_sounddevice()._exit_handler)

    def _close_stream(self) -> None:
        self._stream.stop()
        self._stream.close()

    def _put(self, block: _Block) -> bool:
        """Queue a block, waiting for room; return False if it was interrupted meanwhile."""
        while not block.interrupt.is_set():
            try:
                self._blocks.put(block, timeout=BLOCK_SECONDS)
            except Full:
                self._check()
            else:
                self._queued_samples += len(block.samples)
                return True
        return False

    def _check(self) -> None:
        if not self._stream.active or time.monotonic() - self._called > STALL_SECONDS:
            raise _unusable(self._device, "it takes no more sound")

    def _callback(self, out: Any, _frames: int, _time: object, _status: object) -> None:
        block = self._next_block()
        count = len(block.samples) if block else 0
        if block:
            out[:count] = block.samples[:, np.newaxis]
        out[count:] = 0
        self._handed_samples += count
        self._handed_before.append(self._handed_samples)
        self._called = time.monotonic()

    def _next_block(self) -> _Block | None:
        try:
            while (block := self._blocks.get_nowait()).interrupt.is_set():
                self._dropped_samples += len(block.samples)
        except Empty:
            return None
        return block


def _unusable(device: Device, reason: str) -> AudioDeviceError:
    return AudioDeviceError(
        f"the output device {device.name!r} can't be used: {reason}",
        hint="check that it is connected, or use --no-speak",
    )


def _sounddevice() -> Any:
    try:
        with _quiet():
            import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            "the PortAudio library is missing", hint="sudo apt-get install libportaudio2 (or your system's package)"
        ) from error
    except Exception as error:  # its PortAudioError, which can't be named when the module can't be imported
        raise AudioDeviceError(f"PortAudio can't start: {error}", hint="voxcli doctor") from error
    return sounddevice


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the sound libraries' own messages off stderr: ALSA prints dozens where there is no card."""
    try:
        saved = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
