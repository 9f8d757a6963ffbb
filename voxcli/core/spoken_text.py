"""Records where the pieces of a reply lie in the speaker's playback, and which of them were played."""

import math
import re
from bisect import bisect_right
from dataclasses import dataclass, replace

from voxcli.core.speakable import spoken_share

ROUNDING_SECONDS = 0.001  # a speaker that resamples rounds each clip to whole samples of its device

_HAN_KANA = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"  # written without spaces
_WORD = re.compile(rf"[^\s{_HAN_KANA}]*[\s{_HAN_KANA}]")  # with the character after it


@dataclass(frozen=True)
class SpokenPiece:
    """A piece of the reply and its place in the speaker's playback, in seconds.

    A piece without sound, such as an emoji or a rule, ends where it starts.
    """

    text: str
    start: float
    end: float  # infinite until it is known
    language: str | None = None  # None: not known

    def is_over(self, position: float) -> bool:
        """Return whether all of the piece was played once the speaker has reached `position`."""
        return position >= self.end - ROUNDING_SECONDS

    def spoken_until(self, position: float) -> str:
        """Return the words that were fully played once the speaker has reached `position`."""
        if self.is_over(position):
            return self.text
        if position <= self.start:
            return ""
        share = (position - self.start) / (self.end - self.start)
        ends = [word.end() for word in _WORD.finditer(self.text)]
        over = bisect_right(ends, share, key=lambda end: spoken_share(self.text, end, self.language))
        return self.text[: ends[over - 1]] if over else ""


class SpokenText:
    """Records the pieces of one reply as they are handed to the speaker.

    One thread adds the pieces; another may ask at any time which were played. Text that an interrupt or a failure
    kept from being played never counts as played.
    """

    def __init__(self) -> None:
        self._pieces: list[SpokenPiece] = []
        self._announced = 0  # number of pieces that newly_played() has returned
        self._limit = math.inf  # position at which the speech was stopped

    @property
    def end(self) -> float | None:
        """The position at which the last piece ends; None if there is no piece."""
        return self._pieces[-1].end if self._pieces else None

    def begin(self, piece: str, position: float, language: str | None = None) -> float:
        """Add a piece of unknown length after the last one; return its start.

        It starts at `position` if it is the first, or if the speaker has played something else since the last one.
        """
        start = max(self._pieces[-1].end, position) if self._pieces else position
        self._pieces.append(SpokenPiece(piece, start, math.inf, language))
        return start

    def finish(self, end: float) -> None:
        """Set the position at which the last piece ends."""
        self._pieces[-1] = replace(self._pieces[-1], end=end)

    def stop(self, position: float) -> None:
        """Record that speech stopped at `position`: nothing after it counts as played."""
        self._limit = min(self._limit, position)

    def text(self, position: float) -> str:
        """Stop at `position`; return the spoken text, up to the last whole word."""
        self.stop(position)
        return "".join(piece.spoken_until(self._limit) for piece in self._pieces)

    def seconds_to_next(self, position: float) -> float:
        """Return after how many seconds the next piece will have been played; infinite if it is not known."""
        following = self._pieces[self._announced :]
        return following[0].end - position if following else math.inf

    def newly_played(self, position: float) -> list[str]:
        """Return the pieces whose end the speaker has passed since the previous call."""
        passed = []
        for piece in self._pieces[self._announced :]:
            if not piece.is_over(min(position, self._limit)):
                break
            passed.append(piece.text)
        self._announced += len(passed)
        return passed
