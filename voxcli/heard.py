"""What was heard of a reply: a piece of its text, and where it lies in what the speaker plays.

Pure values. How far the speaker has played is known by the caller alone.
"""

import re
from dataclasses import dataclass

ROUNDING_SECONDS = 0.001  # a speaker that resamples rounds each clip to its own samples

_HAN_KANA = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"  # written without spaces
_WORD = re.compile(rf"[^\s{_HAN_KANA}]*[\s{_HAN_KANA}]")  # and what ends it


@dataclass(frozen=True)
class SpokenPiece:
    """Where a piece of the reply lies in what the speaker plays, in seconds."""

    text: str
    start: float
    end: float  # infinite where it is not known

    def is_over(self, position: float) -> bool:
        return position >= self.end - ROUNDING_SECONDS

    def heard(self, position: float) -> str:
        """Return the words that were over when the speaker had played to `position`."""
        if self.is_over(position):
            return self.text
        share = max(0.0, position - self.start) / (self.end - self.start)
        return "".join(_WORD.findall(self.text[: int(share * len(self.text))]))
