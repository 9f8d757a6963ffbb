"""Hot-plug: reopens the microphone and the loudspeaker when their devices disappear and come back.

One thread watches both. A lost device is reopened on its own while the other one keeps running. PortAudio sees new
devices only after a restart, which needs every stream closed. So PortAudio is restarted only where both devices are
lost, or where another process finds a new device.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from voxcli.chat.devices import portaudio
from voxcli.chat.devices.microphone import Microphone
from voxcli.chat.devices.speaker import OutputSpeaker
from voxcli.chat.events import DevicesChanged, Notice
from voxcli.chat.messages import ThreadCrashed, crashes_posted
from voxcli.errors import AudioDeviceError

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
TOGETHER_SECONDS = 0.1  # When a sound server ends, both devices fail within this time.
RETRY_SECONDS = 0.75  # Between attempts to reopen a device; an attempt takes about 60 ms of processor time.
LIST_SECONDS = 5.0  # Between searches for new devices while one device works; a search takes 0.3 s of processor time.


class AudioDevices:
    """The microphone and the loudspeaker of a conversation; a context manager.

    Both objects outlive their devices. While a device is lost, `Microphone.read` returns None and
    `OutputSpeaker.play` raises.
    """

    def __init__(
        self,
        post: Callable[[Notice | ThreadCrashed], None],
        *,
        wanted_input: str | None = None,
        wanted_output: str | None = None,
        speak: bool = True,
    ) -> None:
        """Open the devices.

        Args:
            post: receives a notice for the user when a device is lost or back; called on another thread.
            wanted_input, wanted_output: see `portaudio.find_device`.
            speak: False to open no loudspeaker; `speaker` is then None.

        Raises:
            AudioDeviceError: a device is missing or can't be opened.
        """
        self._post = post
        self._wanted = {"input": wanted_input, "output": wanted_output}
        self._listed_at = -math.inf  # Time of the last search for new devices, in monotonic seconds.
        self.microphone = Microphone(portaudio.find_device("input", wanted_input))
        self.speaker: OutputSpeaker | None = None
        try:
            if speak:
                self.speaker = OutputSpeaker(portaudio.find_device("output", wanted_output))
        except AudioDeviceError:
            self.microphone.close()
            raise
        self._devices: list[Microphone | OutputSpeaker] = [self.microphone, *([self.speaker] if self.speaker else [])]
        log.info("opened: %s", _names(self._devices))
        self._lost: list[Microphone | OutputSpeaker] = []  # The lost devices that the user knows of.
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_devices, name="audio devices", daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the devices."""
        self._closing.set()
        self._watch.join(portaudio.STALL_SECONDS)  # A sound library that hangs takes longer.
        for device in self._devices:
            device.close()

    def _watch_devices(self) -> None:
        with crashes_posted(self._post):
            pause = WATCH_SECONDS
            while not self._closing.wait(pause):
                if self._newly_lost():
                    self._closing.wait(TOGETHER_SECONDS)
                    self._on_devices_lost(self._newly_lost())
                elif self._lost:
                    self._reopen_lost_devices()
                pause = RETRY_SECONDS if self._lost else WATCH_SECONDS

    def _newly_lost(self) -> list[Microphone | OutputSpeaker]:
        """Return the devices that have failed since the last notice."""
        return [device for device in self._devices if device.failure and device not in self._lost]

    def _on_devices_lost(self, lost: list[Microphone | OutputSpeaker]) -> None:
        """Close lost devices, so that no thread waits for them, and notify the user."""
        for device in lost:
            device.close()
        self._lost += lost
        self._listed_at = -math.inf
        log.info("lost: %s", _names(lost))
        known = " that is known; to find a new one, start the chat again" if portaudio.has_hanging_streams() else ""
        self._post_change(f"{_names(lost)} {'is' if len(lost) == 1 else 'are'} gone; waiting for a device{known}")

    def _reopen_lost_devices(self) -> None:
        """Try to reopen the lost devices; notify the user of those that are back."""
        if len(self._lost) == len(self._devices) or self._has_new_devices():
            self._restart_portaudio()
        back = [device for device in self._lost if self._open(device)]
        self._lost = [device for device in self._lost if device not in back]
        if back:
            log.info("found: %s", _names(back))
            self._post_change(f"{_names(back)} {'is' if len(back) == 1 else 'are'} back")

    def _post_change(self, text: str) -> None:
        self._post(DevicesChanged(text, tuple(device.device.kind for device in self._lost)))

    def _has_new_devices(self) -> bool:
        """Tell whether there are new devices of the lost kind; searches at most every LIST_SECONDS."""
        if time.monotonic() - self._listed_at < LIST_SECONDS:
            return False
        self._listed_at = time.monotonic()
        return portaudio.has_new_devices(self._lost[0].device.kind)

    def _restart_portaudio(self) -> None:
        """Make PortAudio list the devices again; a working device pauses meanwhile."""
        for device in self._devices:
            device.close()
        with suppress(AudioDeviceError):
            portaudio.refresh_devices()
        for device in self._devices:
            if device not in self._lost:
                self._open(device)

    def _open(self, device: Microphone | OutputSpeaker) -> bool:
        """Open a device again; return whether it opened."""
        kind = device.device.kind
        try:
            device.open(portaudio.find_device(kind, self._wanted[kind]))
        except AudioDeviceError:
            return False
        return True


def _names(devices: list[Microphone | OutputSpeaker]) -> str:
    """Return the kinds and names of devices, for a notice."""
    kinds = {"input": "the microphone", "output": "the loudspeaker"}
    return " and ".join(f"{kinds[each.device.kind]} {each.device.name!r}" for each in devices)
