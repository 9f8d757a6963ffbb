"""The audio encoder and projector, window by window; remembers the windows of the clip at hand.

A window that was encoded while the user still spoke is used again if its features are the same to the
bit. They may not be: Whisper's log-mel spectrogram is clamped to a range below the loudest sound of
the whole clip, so a louder sound later changes the windows before it.

One window at a time: the encoder's work has one shape, whatever the clip, and can be stopped between two.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch


def audio_tokens_per_window(audio_config: Any) -> int:
    """Return how many embeddings the encoder makes of one window.

    The projector stacks as many positions as make up its width (`VoxtralModel.get_audio_features`).
    """
    return int(audio_config.max_source_positions * audio_config.hidden_size // audio_config.intermediate_size)


class WindowEncoder:
    """Mel spectrograms to embeddings, with one Voxtral model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.encoded = 0  # windows, ever; those that are remembered are not encoded again
        self._replay: Callable[[torch.Tensor], torch.Tensor | None] | None = None
        self._known: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and embeddings of a clip's windows

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
        """Encode with a replay of `plainly` from now on, where it returns anything; None to end that."""
        self._replay = replay

    def _encoded(self, window: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        embeddings = self._replay(window) if self._replay else None
        return self.plainly(window) if embeddings is None else embeddings

    def plainly(self, window: torch.Tensor) -> torch.Tensor:
        """Return embeddings, (tokens, hidden), of a window, (mels, frames), whether they are known or not."""
        return self.together(window[None])

    def together(self, windows: torch.Tensor) -> torch.Tensor:
        """Return embeddings, (windows * tokens, hidden), of (windows, mels, frames), all encoded at once."""
        embeddings: torch.Tensor = self._model.get_audio_features(windows.to(self._model.device)).pooler_output
        return embeddings

    def silence(self) -> torch.Tensor:
        """Return a window, (mels, frames), of nothing."""
        audio, tower = self._model.config.audio_config, self._model.model.audio_tower
        frames = audio.max_source_positions * tower.conv1.stride[0] * tower.conv2.stride[0]
        return torch.zeros(audio.num_mel_bins, frames, device=self._model.device)

    def forget(self) -> None:
        """Drop what is remembered."""
        self._known = []
