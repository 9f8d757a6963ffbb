"""Lists audio devices and opens streams on them. No other module imports sounddevice."""

import atexit
import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxcli.chat.devices.stderr import redirect_library_messages
from voxcli.errors import AudioDeviceError

BLOCK_SECONDS = 0.01
SAMPLE_BYTES = 4  # Samples are float32.
START_SECONDS = 4.0  # The longest wait for a first block; PulseAudio's null sink takes up to two seconds.
STALL_SECONDS = 2.0  # A device that moves no block for this long has failed.
LISTING_SECONDS = 10.0  # The limit for listing devices in another process; a sound library may hang.
SANE_SECONDS = 1.0  # A latency above this, as reported by a device, is wrong.

Kind = Literal["input", "output"]

_hanging: list[threading.Thread] = []  # Threads that were abandoned while they closed a device.


@dataclass(frozen=True)
class Device:
    """An input or output device, as PortAudio names it."""

    index: int
    name: str
    channels: int
    sample_rate: int  # The device's own rate, in Hertz.
    is_default: bool
    kind: Kind
    host_api: str

    @property
    def stream_channels(self) -> int:
        """How many channels a stream has on it: one or two."""
        return min(2, self.channels)


def output_devices() -> list[Device]:
    """Return each loudspeaker once; raises AudioDeviceError where PortAudio does not work."""
    return distinct(_devices("output"))


def input_devices() -> list[Device]:
    """Return each microphone once; raises AudioDeviceError where PortAudio does not work."""
    return distinct(_devices("input"))


def find_device(kind: Kind, wanted: str | None = None) -> Device:
    """Return a device by its index or name.

    Args:
        kind: "input" or "output".
        wanted: the device's index, or a part of its name in any case; None for the default device. Of several
            devices whose names contain the part, the default one is chosen, else the one with exactly that name,
            else the first.

    Raises:
        AudioDeviceError: there is no such device; the hint names the devices that exist.
    """
    every = _devices(kind)
    found = _wanted(every, wanted.strip()) if wanted else next((each for each in every if each.is_default), None)
    if found:
        return found
    listed = distinct(every)
    names = ", ".join(f"{device.index} {device.name!r}" for device in listed)
    if not listed:
        hint = "connect a microphone" if kind == "input" else "use --no-speak, or --save-reply FILE.wav"
        raise AudioDeviceError(f"there is no audio {kind} device", hint=hint)
    what = f"no audio {kind} device is called {wanted!r}" if wanted else f"no audio {kind} device is the default"
    raise AudioDeviceError(what, hint=f"name one of: {names}")


def _wanted(devices: list[Device], wanted: str) -> Device | None:
    """Return the device with an index (in any host API) or a part of a name, or None."""
    if wanted.isdecimal() and (at := [device for device in devices if device.index == int(wanted)]):
        return at[0]
    named = [device for device in distinct(devices) if wanted.casefold() in device.name.casefold()]
    named.sort(key=lambda device: (not device.is_default, device.name.casefold() != wanted.casefold()))
    return named[0] if named else None


def distinct(devices: list[Device]) -> list[Device]:
    """Return each device once, in the given order.

    Only the default device's host API counts, where there is a default device: other host APIs list the same
    hardware again under shortened or decorated names. Of devices with equal names (a Bluetooth headset has one for
    each profile), the default one is kept, else the first.
    """
    main = next((device.host_api for device in devices if device.is_default), None)
    known: dict[str, Device] = {}
    for device in devices:
        if (main in (None, device.host_api) and device.name not in known) or device.is_default:
            known[device.name] = device
    return list(known.values())


def _devices(kind: Kind) -> list[Device]:
    sounddevice = _sounddevice()
    try:
        listed = sounddevice.query_devices()
        host_apis = sounddevice.query_hostapis()
        default = sounddevice.default.device[0 if kind == "input" else 1]
    except sounddevice.PortAudioError as error:
        raise AudioDeviceError(f"the audio devices can't be listed: {error}", hint="voxcli doctor") from error
    if sys.platform == "win32":  # PortAudio's default host API there, MME, cuts names to 31 characters.
        wasapi = [api[f"default_{kind}_device"] for api in host_apis if api["name"] == "Windows WASAPI"]
        default = next((index for index in wasapi if index >= 0), default)
    return [
        Device(
            index,
            info["name"],
            channels,
            round(info["default_samplerate"]),
            index == default,
            kind,
            host_apis[info["hostapi"]]["name"],
        )
        for index, info in enumerate(listed)
        if (channels := info[f"max_{kind}_channels"]) > 0
    ]


def has_new_devices(kind: Kind) -> bool:
    """Tell whether a newly started PortAudio would list a device that it does not list in this process.

    PortAudio reads the list of devices when it starts, so another process lists them, which takes about 0.3 s. If
    that process fails, the answer is False.

    Raises:
        AudioDeviceError: the devices can't be listed in this process.
    """
    command = [sys.executable, "-P", "-m", __name__, kind]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=LISTING_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    known = {_identity(device) for device in _devices(kind)}
    return any(line not in known for line in listing.stdout.splitlines())


def _identity(device: Device) -> str:
    """Return one line that identifies a device independently of its index."""
    return json.dumps([device.host_api, device.name, device.is_default])


def has_hanging_streams() -> bool:
    """Tell whether a stream hangs on closing, so that `refresh_devices` does nothing."""
    return any(closing.is_alive() for closing in _hanging)


def refresh_devices() -> None:
    """Restart PortAudio to update its list of devices; every stream has to be closed before.

    Does nothing while a stream hangs on closing, because PortAudio would wait for it. The devices that PortAudio
    already knows can still be opened.

    Raises:
        AudioDeviceError: PortAudio can't start.
    """
    sounddevice = _sounddevice()
    if has_hanging_streams():
        return
    try:
        if sounddevice._initialized:  # False where the last start failed.
            sounddevice._terminate()
        # sounddevice's own `_initialize` would redirect the whole program's descriptor 2 to /dev/null meanwhile.
        sounddevice._check(sounddevice._lib.Pa_Initialize(), "Error initializing PortAudio")
        sounddevice._initialized += 1
    except sounddevice.PortAudioError as error:
        raise AudioDeviceError(f"PortAudio can't start: {error}", hint="voxcli doctor") from error


# The arguments are a block to read, or a silent one to fill, which is valid during the call; the time in monotonic
# seconds at which its first sample was captured or will be played; and whether sound was lost before it.
Callback = Callable[[memoryview, float, bool], None]


def frames_of(block: memoryview | bytes, channels: int) -> NDArray[np.float32]:
    """Return the samples of a block as an array of shape (frames, channels) that shares its memory."""
    return np.frombuffer(block, np.float32).reshape(-1, channels)


class DeviceStream:
    """An open stream of blocks of BLOCK_SECONDS, at the device's own rate and with its `stream_channels`.

    A block is bytes: float32 samples, the channels interleaved. A hundred blocks a second come from each device, so
    they become arrays only where there is something to compute.

    After `close`, the callback is never called again, even if a device that hangs recovers.
    """

    def __init__(self, device: Device, callback: Callback, latency_seconds: float) -> None:
        """Open and start the stream.

        Raises:
            AudioDeviceError: the device can't be opened.
        """
        sounddevice = _sounddevice()
        self.device = device
        self._callback = callback
        self._called = time.monotonic() + START_SECONDS - STALL_SECONDS
        self._finished = threading.Event()  # Set by close(), or when the device fails.
        self._closing: threading.Thread | None = None
        self._lock = threading.Lock()  # Guards the start of `_closing`.
        self._defect: Exception | None = None  # The callback's exception.
        open_stream = sounddevice.RawInputStream if device.kind == "input" else sounddevice.RawOutputStream
        try:
            self._stream = open_stream(
                samplerate=device.sample_rate,
                blocksize=round(device.sample_rate * BLOCK_SECONDS),
                latency=latency_seconds,
                device=device.index,
                channels=device.stream_channels,
                dtype="float32",
                callback=self._on_input if device.kind == "input" else self._on_output,
                finished_callback=self._finished.set,
            )
            self._latency_seconds = self._stream.latency
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise unusable(device, str(error)) from error

    @property
    def failure(self) -> str:
        """Why the stream no longer works, or ""; raises the callback's exception, if there was one."""
        if self._defect:
            raise self._defect
        if self._finished.is_set() or self._closing:
            return "it is gone"
        return "it hangs" if self._hangs else ""

    @property
    def _hangs(self) -> bool:
        return time.monotonic() - self._called > STALL_SECONDS

    def close(self) -> None:
        """Play the device's buffer to its end and close the device, or abandon it if it hangs for STALL_SECONDS.

        Any thread may call it, and it waits for a call on another thread. PortAudio joins its own thread without a
        limit, and a second join of it, by `Pa_Terminate` for example, is undefined: the process hung or crashed. So
        nothing terminates PortAudio while a stream is abandoned.

        Where the sound server was killed, one stream in thirty did not close. Either libpulse deadlocked, or
        PortAudio 19.6's thread repeated an error message forever: the error handling of its `WaitForFrames` jumps
        to itself. Neither `abort` nor `stop` ends these. `abort` ends a thread that waits for a server that is
        stopped; PortAudio permits its cancellation there only.
        """
        with self._lock:
            if self._closing is None:
                end = self._stream.abort if self._hangs else self._stream.stop
                self._closing = threading.Thread(
                    target=self._close_stream, args=(end,), name="audio close", daemon=True
                )
                self._closing.start()
        self._closing.join(STALL_SECONDS)
        if self._closing.is_alive() and self._closing not in _hanging:
            _hanging.append(self._closing)
            _skip_exit_handler()

    def _close_stream(self, end: Callable[[], None]) -> None:
        end()
        self._stream.close()

    def _on_input(self, data: Any, _frames: int, times: Any, status: Any) -> None:
        self._called = now = time.monotonic()
        age = times.currentTime - times.inputBufferAdcTime
        moment = now - (age if 0 <= age < SANE_SECONDS else BLOCK_SECONDS)
        self._run_callback(memoryview(data), moment, lost=status.input_overflow)

    def _on_output(self, data: Any, _frames: int, times: Any, status: Any) -> None:
        self._called = now = time.monotonic()
        ahead = times.outputBufferDacTime - times.currentTime
        moment = now + (ahead if 0 <= ahead < SANE_SECONDS else self._latency_seconds)
        out = memoryview(data)
        out[:] = bytes(len(out))
        self._run_callback(out, moment, lost=status.output_underflow)

    def _run_callback(self, block: memoryview, moment: float, *, lost: bool) -> None:
        if self._closing or self._defect:
            return
        try:
            self._callback(block, moment, bool(lost))
        except Exception as error:  # noqa: BLE001 - raised again by `failure`, on a thread that reports it
            self._defect = error


@cache
def _skip_exit_handler() -> None:
    """Let the program exit while a device hangs; PortAudio's exit handler would wait for the device forever."""
    sounddevice = _sounddevice()
    atexit.unregister(sounddevice._exit_handler)
    ctypes.CDLL(sounddevice._libname)  # Keeps the library loaded, because the device's thread still runs its code.


def unusable(device: Device, reason: str) -> AudioDeviceError:
    """Return the error for a device that fails."""
    hint = "or use --no-speak" if device.kind == "output" else "or choose another: voxcli devices"
    return AudioDeviceError(
        f"the {device.kind} device {device.name!r} can't be used: {reason}", hint=f"check that it is connected, {hint}"
    )


def _sounddevice() -> Any:
    redirect_library_messages()
    try:
        import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            "the PortAudio library is missing", hint="sudo apt-get install libportaudio2 (or your system's package)"
        ) from error
    except Exception as error:  # PortAudioError has no name here, because the import failed.
        raise AudioDeviceError(f"PortAudio can't start: {error}", hint="voxcli doctor") from error
    return sounddevice


if __name__ == "__main__":  # Started by has_new_devices().
    for found in _devices("input" if sys.argv[1] == "input" else "output"):
        sys.stdout.write(_identity(found) + "\n")
