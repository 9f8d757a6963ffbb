"""Keeps the microphone and the loudspeaker of a conversation alive while devices come and go.

PortAudio sees new devices only when it is started again, and for that every stream has to be closed: so one thread
watches both ends and reopens them together. It knows nothing of what is said.
"""

import threading
from collections.abc import Callable
from typing import Self

from voxcli.errors import AudioDeviceError
from voxcli.live import devices
from voxcli.live.microphone import Microphone
from voxcli.live.speaker import OutputSpeaker

WATCH_SECONDS = 0.25
TOGETHER_SECONDS = 0.1  # a sound server takes both devices along, one a little after the other
RETRY_SECONDS = 0.75  # while there is no device; each try asks every sound library anew, about 60 ms of work
PARTIAL_RETRY_SECONDS = 5.0  # while one of the two is missing: each try interrupts the other one


class AudioDevices:
    """The devices of a conversation, as they were asked for; a context manager.

    The microphone and the loudspeaker stay the same objects. While their device is away, `Microphone.read` gives
    nothing and `OutputSpeaker.play` raises.
    """

    def __init__(
        self,
        notify: Callable[[str], None],
        *,
        wanted_input: str | None = None,
        wanted_output: str | None = None,
        speak: bool = True,
    ) -> None:
        """Open the devices.

        Args:
            notify: takes a line for the user, when a device went or came back; called on another thread.
            wanted_input, wanted_output: see `devices.find_device`.
            speak: False to open no loudspeaker; then `speaker` is None.

        Raises:
            AudioDeviceError: one of them is missing or can't be opened.
        """
        self._notify = notify
        self._wanted = {"input": wanted_input, "output": wanted_output}
        self.microphone = Microphone(devices.find_device("input", wanted_input))
        self.speaker: OutputSpeaker | None = None
        try:
            if speak:
                self.speaker = OutputSpeaker(devices.find_device("output", wanted_output))
        except AudioDeviceError:
            self.microphone.close()
            raise
        self._ends: list[Microphone | OutputSpeaker] = [self.microphone, *([self.speaker] if self.speaker else [])]
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
        self._watch.join(devices.STALL_SECONDS)  # longer only within a sound library that hangs
        for end in self._ends:
            end.close()

    def _keep(self) -> None:
        pause = WATCH_SECONDS
        while not self._closing.wait(pause):
            if self._lost():
                self._closing.wait(TOGETHER_SECONDS)
                lost = self._lost()
                self._away += lost
                self._notify(f"{_names(lost)} {'is' if len(lost) == 1 else 'are'} gone; waiting for a device")
                pause = RETRY_SECONDS
            elif self._away:
                pause = self._reopen()
            else:
                pause = WATCH_SECONDS

    def _lost(self) -> list[Microphone | OutputSpeaker]:
        """Return what is away and the user does not know."""
        return [end for end in self._ends if end.failure and end not in self._away]

    def _reopen(self) -> float:
        """Try to open what is away; return how many seconds to wait before the next look."""
        for end in self._ends:
            end.close()
        try:
            devices.look_again()
        except AudioDeviceError:
            return RETRY_SECONDS
        opened = [end for end in self._ends if self._open(end)]
        if back := [end for end in opened if end in self._away]:
            self._away = [end for end in self._away if end not in back]
            self._notify(f"{_names(back)} {'is' if len(back) == 1 else 'are'} back")
        if not opened:
            return RETRY_SECONDS
        return WATCH_SECONDS if len(opened) == len(self._ends) else PARTIAL_RETRY_SECONDS

    def _open(self, end: Microphone | OutputSpeaker) -> bool:
        kind = end.device.kind
        try:
            end.open(devices.find_device(kind, self._wanted[kind]))
        except AudioDeviceError:
            return False
        return True


def _names(ends: list[Microphone | OutputSpeaker]) -> str:
    kinds = {"input": "the microphone", "output": "the loudspeaker"}
    return " and ".join(f"{kinds[end.device.kind]} {end.device.name!r}" for end in ends)
