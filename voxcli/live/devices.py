"""Audio devices; the only module that imports sounddevice. It knows nothing of speech or turns.

Callbacks only move data: a block that was made ready beforehand goes out, a counter goes up.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any, Literal

import numpy as np

from voxcli.audio import AudioClip, Samples
from voxcli.errors import AudioDeviceError

BLOCK_SECONDS = 0.02  # an interrupt is heard within one block
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
    """Return the loudspeakers; raises AudioDeviceError where PortAudio is missing."""
    return _devices("output")


def input_devices() -> list[Device]:
    """Return the microphones; raises AudioDeviceError where PortAudio is missing."""
    return _devices("input")


def _devices(kind: Literal["input", "output"]) -> list[Device]:
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0 if kind == "input" else 1]
    return [
        Device(index, info["name"], channels, round(info["default_samplerate"]), index == default)
        for index, info in enumerate(sounddevice.query_devices())
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
    """Implements `voxcli.turn.Speaker` on one output stream that stays open."""

    def __init__(self, device: Device) -> None:
        sounddevice = _sounddevice()
        self._device = device
        self._block_samples = round(device.sample_rate * BLOCK_SECONDS)
        self._blocks: Queue[_Block] = Queue(round(QUEUE_SECONDS / BLOCK_SECONDS))
        self._queued_samples = 0
        self._played_samples = 0
        self._dropped_samples = 0
        try:
            with _quiet():
                self._stream = sounddevice.OutputStream(
                    samplerate=device.sample_rate,
                    blocksize=self._block_samples,
                    device=device.index,
                    channels=min(2, device.channels),
                    dtype="float32",
                    callback=self._callback,
                )
                self._stream.start()
        except sounddevice.PortAudioError as error:
            raise _unusable(device, error) from error

    @property
    def position(self) -> float:
        """Seconds of sound handed to the device since it was opened."""
        return self._played_samples / self._device.sample_rate

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; see `voxcli.turn.Speaker`.

        Raises:
            AudioDeviceError: the device takes no more sound.
        """
        samples = clip.resampled(self._device.sample_rate).samples
        for start in range(0, len(samples), self._block_samples):
            block = samples[start : start + self._block_samples]
            self._put(_Block(block, interrupt))
            self._queued_samples += len(block)
        return (self._queued_samples - self._dropped_samples) / self._device.sample_rate

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is reached or `interrupt` is set."""
        while self.position < position and not interrupt.wait(BLOCK_SECONDS):
            self._check()

    def close(self) -> None:
        """Play what was handed over and close the device."""
        self._stream.stop()
        self._stream.close()

    def _put(self, block: _Block) -> None:
        try:
            self._blocks.put(block, timeout=STALL_SECONDS)
        except Full as error:
            raise _unusable(self._device, error) from error

    def _check(self) -> None:
        if not self._stream.active:
            raise _unusable(self._device, RuntimeError("the stream has stopped"))

    def _callback(self, out: Any, _frames: int, _time: object, _status: object) -> None:
        block = self._next_block()
        count = len(block.samples) if block else 0
        if block:
            out[:count] = block.samples[:, np.newaxis]
        out[count:] = 0
        self._played_samples += count

    def _next_block(self) -> _Block | None:
        try:
            while (block := self._blocks.get_nowait()).interrupt.is_set():
                self._dropped_samples += len(block.samples)
        except Empty:
            return None
        return block


def _unusable(device: Device, error: Exception) -> AudioDeviceError:
    failure = AudioDeviceError(
        f"the output device {device.name!r} can't be used: {error or 'it takes no sound'}",
        hint="check that it is connected, or use --no-speak",
    )
    failure.__cause__ = error
    return failure


def _sounddevice() -> Any:
    try:
        with _quiet():
            import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            "the PortAudio library is missing", hint="sudo apt-get install libportaudio2 (or your system's package)"
        ) from error
    return sounddevice


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the sound libraries' own messages off stderr: ALSA prints dozens where there is no card."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
