"""Detects an echo canceller that fails so badly that the program answers itself."""

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.devices.echo_path import EARLIEST_SAMPLES, LATEST_SAMPLES, resembles_playback
from voxcli.chat.speech.echo import Timeline

LOOP_TURNS = 3  # One turn may match by chance, or because somebody repeats the reply.
LOOP_SAMPLES = 3 * SAMPLE_RATE


class LoopBreaker:
    """Detects that the program answers itself: consecutive turns that match the playback. One thread uses it."""

    def __init__(self) -> None:
        self._echoes = 0  # Consecutive turns that were an echo.
        self._is_reported = False

    def answers_itself(self, clip: Samples, start: int, played: Timeline) -> bool:
        """Check the next turn; return True once, when LOOP_TURNS consecutive turns were echoes.

        A turn that starts more than a second after playback matches nothing, so it resets the count.

        Args:
            clip: the turn's utterance, shape (n,), as it left the canceller.
            start: the position of its first sample.
            played: the playback, from one second before `start` on.
        """
        beginning = clip[:LOOP_SAMPLES]
        around = played.read(start - LATEST_SAMPLES, start + len(beginning) + EARLIEST_SAMPLES)
        is_echo = len(beginning) > 0 and resembles_playback(around, beginning)
        self._echoes = self._echoes + 1 if is_echo else 0
        if self._is_reported or self._echoes < LOOP_TURNS:
            return False
        self._is_reported = True
        return True
