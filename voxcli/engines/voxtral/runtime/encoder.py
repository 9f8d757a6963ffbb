"""Encodes the clip of one reply window by window, and remembers its windows.

A window that was encoded while the user still spoke is used again if its features are the same to the
bit. They may differ: Whisper's log-mel spectrogram is clamped to a range below the loudest sound of the
whole clip, so a louder sound later changes the windows before it.

Windows are encoded one at a time: the work has one shape, whatever the clip, and can be interrupted in between.
"""

import threading
from collections.abc import Callable

import torch

from voxcli.engines.voxtral.runtime.model import SharedModel


class WindowEncoder:
    """Mel spectrograms of one clip at a time to embeddings."""

    def __init__(self, model: SharedModel) -> None:
        self._model = model
        self.encoded = 0  # windows encoded so far, of all clips
        self._replay: Callable[[torch.Tensor], torch.Tensor | None] | None = None
        self._known: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and embeddings of the clip's windows

    @torch.inference_mode()
    def encode(self, features: torch.Tensor, interrupt: threading.Event | None = None) -> torch.Tensor | None:
        """Return embeddings, (windows * tokens, hidden), of features, (windows, mels, frames); None if interrupted.

        Remembers these windows, in place of those of the call before.
        """
        known, self._known = self._known, []
        for index, window in enumerate(features.to(self._model.device)):
            if interrupt and interrupt.is_set():
                return None
            before = known[index] if index < len(known) else None
            if before and torch.equal(before[0], window):
                self._known.append(before)
            else:
                self._known.append((window, self._encoded(window)))
        return torch.cat([embeddings for _, embeddings in self._known])

    def replay_with(self, replay: Callable[[torch.Tensor], torch.Tensor | None] | None) -> None:
        """Encode windows with a captured replay from now on, where it returns anything; None for plain encoding."""
        self._replay = replay

    def forget(self) -> None:
        """Drop the remembered windows."""
        self._known = []

    def _encoded(self, window: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        embeddings = self._replay(window) if self._replay else None
        return self._model.encode(window[None]) if embeddings is None else embeddings
