"""Keeps the audio of the last utterance and what came before it, for endpointing; belongs to the same thread."""

from collections import deque

import numpy as np

from voxcli.audio.clip import AudioClip, Samples


class AudioBuffer:
    """The last stretch of the stream, without gaps; `start` and `end` are positions in the stream."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self._clipped_to = start  # The end of the last clip.
        self._pieces: deque[Samples] = deque()

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, samples: Samples) -> None:
        """Append a copy of samples of shape (n,)."""
        self._pieces.append(np.array(samples, np.float32))
        self.end += len(samples)

    def drop_before(self, position: int) -> None:
        """Drop what lies before a position."""
        while self._pieces and self.start + len(self._pieces[0]) <= position:
            self.start += len(self._pieces.popleft())
        if self._pieces and self.start < position:
            self._pieces[0] = self._pieces[0][position - self.start :]
            self.start = position

    def replace_end(self, samples: Samples) -> None:
        """Replace the last samples, except those that a clip holds or that were dropped."""
        count = min(len(samples), self.end - max(self.start, self._clipped_to))
        if count > 0:
            joined = np.concatenate(self._pieces)
            joined[-count:] = samples[-count:]
            self._pieces = deque([joined])

    def clip(self) -> AudioClip:
        """Return all audio as a clip, which later changes of the buffer do not affect."""
        self._clipped_to = self.end
        return AudioClip(np.concatenate([np.empty(0, np.float32), *self._pieces]))
