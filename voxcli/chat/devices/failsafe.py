"""A speaker that stays usable when its device fails."""

import threading

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Speaker
from voxcli.errors import AudioDeviceError


class FailsafeSpeaker:
    """Implements `voxcli.core.protocols.Speaker` on another speaker; once that one fails, clips are only counted.

    `failure` is the error, or None. The owner of the other speaker closes it.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.failure: AudioDeviceError | None = None
        self._speaker = speaker
        self._end = speaker.position  # The position at which everything queued will have been played.

    @property
    def position(self) -> float:
        """Seconds played; after a failure, seconds queued."""
        return self._end if self.failure else self._speaker.position

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; after a failure, only count its length."""
        self._end += clip.seconds
        if not self.failure:
            try:
                self._end = self._speaker.play(clip, interrupt)
            except AudioDeviceError as error:
                self.failure = error
        return self._end

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait until `position` is played; return at once after a failure."""
        if not self.failure:
            try:
                self._speaker.wait(position, interrupt)
            except AudioDeviceError as error:
                self.failure = error

    def close(self) -> None:
        """Do nothing: the owner of the other speaker closes it."""
