"""Keeps the program from answering its own voice where no echo is cancelled: the microphone is ignored meanwhile."""

from voxcli.audio.clip import SAMPLE_RATE

# Both devices buffer up to 0.2 s more than they report. A living room takes another 0.2 s until a voice-activity
# detector no longer finds speech in the reverberation.
TAIL_MS = 400


class HalfDuplex:
    """Ignores the microphone during playback and for `tail_ms` after it."""

    def __init__(self, *, tail_ms: int = TAIL_MS) -> None:
        self._tail_samples = tail_ms * SAMPLE_RATE // 1000
        self._shut_until = 0

    def is_open(self, position: int, *, playing: bool) -> bool:
        """Tell whether the microphone counts at `position`; called for each block, in order."""
        if playing:
            self._shut_until = position + self._tail_samples
            return False
        return position >= self._shut_until
