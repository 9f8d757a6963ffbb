"""A loudspeaker that may be lost while something else takes the same sound. It knows no devices."""

import threading

from voxcli.audio.clip import AudioClip
from voxcli.core.turn import Speaker
from voxcli.errors import AudioDeviceError


class FailsafeSpeaker:
    """Implements `voxcli.core.turn.Speaker` by passing all on, until that fails; from then on it only counts.

    `failure` is why, or None. The owner of the other speaker closes it.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.failure: AudioDeviceError | None = None
        self._speaker = speaker
        self._end = speaker.position  # of what was to be played

    @property
    def position(self) -> float:
        """Seconds heard; once the speaker is lost, seconds that were to be played."""
        return self._end if self.failure else self._speaker.position

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip where it can be heard."""
        self._end += clip.seconds
        if not self.failure:
            try:
                self._end = self._speaker.play(clip, interrupt)
            except AudioDeviceError as error:
                self.failure = error
        return self._end

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait for what can be heard."""
        if not self.failure:
            try:
                self._speaker.wait(position, interrupt)
            except AudioDeviceError as error:
                self.failure = error

    def close(self) -> None:
        """Nothing to close."""
