"""Spares the voice-activity detector the frames that are too quiet to be voice."""

from collections import deque
from collections.abc import Callable

from voxcli.audio.clip import Samples

# A frame's probability also depends on the frames before it, so the detector processes this many of them, 0.25 s,
# before the first loud one.
KEPT_FRAMES = 8


class LevelGate:
    """Runs a detector on loud frames only.

    Quiet frames are kept until a loud one follows. If at most KEPT_FRAMES were quiet, the detector has processed every
    frame by then, and the probabilities of loud frames are those of a detector without a gate.
    """

    def __init__(self, detect: Callable[[Samples], float], is_loud: Callable[[Samples], bool]) -> None:
        """Connect the parts.

        Args:
            detect: returns the probability that a frame contains speech; it receives frames in their order.
            is_loud: tells whether a frame is loud enough to be voice.
        """
        self._detect = detect
        self._is_loud = is_loud
        self._quiet: deque[Samples] = deque(maxlen=KEPT_FRAMES)

    def probability(self, frame: Samples) -> float:
        """Return the probability of speech in the next frame; 0 if it is too quiet to be voice."""
        if not self._is_loud(frame):
            self._quiet.append(frame)
            return 0.0
        while self._quiet:
            self._detect(self._quiet.popleft())
        return self._detect(frame)
