"""How long a silence has to last to end a turn: a fixed time, or one that follows the user's own pauses.

The silence rises at once by half of what a pause inside an utterance would have needed, and falls by a tenth of what
was not needed after each turn. So it settles where an utterance in six has a longer pause: a value between the mean
and the longest of a user's longest pauses. It counts samples and uses no clock.
"""

from dataclasses import dataclass

from voxcli.audio.clip import SAMPLE_RATE

START_MS = 350.0  # The silence before anything is known of a user.
LOWEST_MS, HIGHEST_MS = 250.0, 1000.0
FINAL_LOWEST_MS = 600.0  # The lowest where a turn that ended too early can't be taken back.
MARGIN_MS = 100.0  # A pause is followed with so much to spare: three frames.
RISE, FALL = 0.5, 0.1  # The shares of the distance that are made good after a pause, and after a turn.


@dataclass
class TurnSilence:
    """The silence that ends a turn, in milliseconds; it moves between two bounds, which are equal for a fixed one."""

    ms: float = START_MS
    lowest_ms: float = LOWEST_MS
    highest_ms: float = HIGHEST_MS

    def __post_init__(self) -> None:
        """Move a silence that is out of bounds to the nearest bound."""
        self.ms = self._bounded(self.ms)

    @classmethod
    def fixed(cls, ms: float) -> "TurnSilence":
        """Return a silence that never changes."""
        return cls(ms, ms, ms)

    @property
    def samples(self) -> int:
        """The silence in samples at SAMPLE_RATE."""
        return round(self.ms * SAMPLE_RATE / 1000)

    def add_pause(self, samples: int) -> None:
        """Follow a pause inside an utterance; where it had ended a turn, which was then taken back, this rises."""
        self.ms += RISE * max(0.0, self._needed_ms(samples) - self.ms)

    def add_turn(self, longest_pause_samples: int) -> None:
        """Follow a turn that silence ended, given the longest pause inside it; 0 if there was none."""
        self.ms -= FALL * max(0.0, self.ms - self._needed_ms(longest_pause_samples))

    def _needed_ms(self, pause_samples: int) -> float:
        return self._bounded(pause_samples * 1000 / SAMPLE_RATE + MARGIN_MS)

    def _bounded(self, ms: float) -> float:
        return min(max(ms, self.lowest_ms), self.highest_ms)
