"""Keeps the microphone and the loudspeaker of a conversation alive while devices come and go.

One thread watches both. A device that is lost is opened again by itself, as PortAudio knows it, while the other one
goes on. PortAudio sees new devices only when it is started again, for which every stream has to be closed: that is
done where both are lost, or where another process finds a new device.
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
from voxcli.chat.events import Notice
from voxcli.chat.messages import ThreadCrashed, crashes_posted
from voxcli.errors import AudioDeviceError

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
TOGETHER_SECONDS = 0.1  # a sound server takes both devices along, one a little after the other
RETRY_SECONDS = 0.75  # while there is no device; each try asks every sound library anew, about 60 ms of work
LIST_SECONDS = 5.0  # between two looks for new devices while one of the two works; each takes 0.3 s of a processor


class AudioDevices:
    """The devices of a conversation, as they were asked for; a context manager.

    The microphone and the loudspeaker stay the same objects. While their device is away, `Microphone.read` gives
    nothing and `OutputSpeaker.play` raises.
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
            post: takes a notice for the user when a device went or came back; called on another thread.
            wanted_input, wanted_output: see `devices.find_device`.
            speak: False to open no loudspeaker; then `speaker` is None.

        Raises:
            AudioDeviceError: one of them is missing or can't be opened.
        """
        self._post = post
        self._wanted = {"input": wanted_input, "output": wanted_output}
        self._listed_at = -math.inf  # monotonic seconds of the last look for new devices
        self.microphone = Microphone(portaudio.find_device("input", wanted_input))
        self.speaker: OutputSpeaker | None = None
        try:
            if speak:
                self.speaker = OutputSpeaker(portaudio.find_device("output", wanted_output))
        except AudioDeviceError:
            self.microphone.close()
            raise
        self._ends: list[Microphone | OutputSpeaker] = [self.microphone, *([self.speaker] if self.speaker else [])]
        log.info("opened: %s", _names(self._ends))
        self._away: list[Microphone | OutputSpeaker] = []  # those that the user was told of
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._keep, name="audio devices", daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the devices."""
        self._closing.set()
        self._watch.join(portaudio.STALL_SECONDS)  # longer only within a sound library that hangs
        for end in self._ends:
            end.close()

    def _keep(self) -> None:
        with crashes_posted(self._post):
            pause = WATCH_SECONDS
            while not self._closing.wait(pause):
                if self._lost():
                    self._closing.wait(TOGETHER_SECONDS)
                    self._give_up(self._lost())
                elif self._away:
                    self._bring_back()
                pause = RETRY_SECONDS if self._away else WATCH_SECONDS

    def _lost(self) -> list[Microphone | OutputSpeaker]:
        """Return what is away and the user does not know."""
        return [end for end in self._ends if end.failure and end not in self._away]

    def _give_up(self, lost: list[Microphone | OutputSpeaker]) -> None:
        """Close devices that are lost, so that nothing waits for them."""
        for end in lost:
            end.close()
        self._away += lost
        self._listed_at = -math.inf
        log.info("lost: %s", _names(lost))
        self._post(Notice(f"{_names(lost)} {'is' if len(lost) == 1 else 'are'} gone; waiting for a device"))

    def _bring_back(self) -> None:
        """Try to open what is away."""
        if len(self._away) == len(self._ends) or self._has_new_devices():
            self._restart()
        back = [end for end in self._away if self._open(end)]
        self._away = [end for end in self._away if end not in back]
        if back:
            log.info("found: %s", _names(back))
            self._post(Notice(f"{_names(back)} {'is' if len(back) == 1 else 'are'} back"))

    def _has_new_devices(self) -> bool:
        """Tell, every LIST_SECONDS, whether there are new devices of the kind that is lost."""
        if time.monotonic() - self._listed_at < LIST_SECONDS:
            return False
        self._listed_at = time.monotonic()
        return portaudio.has_new_devices(self._away[0].device.kind)

    def _restart(self) -> None:
        """Let PortAudio list the devices anew; the one that works pauses for that."""
        for end in self._ends:
            end.close()
        with suppress(AudioDeviceError):
            portaudio.look_again()
        for end in self._ends:
            if end not in self._away:
                self._open(end)

    def _open(self, end: Microphone | OutputSpeaker) -> bool:
        kind = end.device.kind
        try:
            end.open(portaudio.find_device(kind, self._wanted[kind]))
        except AudioDeviceError:
            return False
        return True


def _names(ends: list[Microphone | OutputSpeaker]) -> str:
    kinds = {"input": "the microphone", "output": "the loudspeaker"}
    return " and ".join(f"{kinds[end.device.kind]} {end.device.name!r}" for end in ends)
