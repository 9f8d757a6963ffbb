"""The loaded model that decoders share: its encoder, its text model, and the embeddings of a prompt.

A model keeps nothing between calls but its weights. What belongs to a reply (a KV cache, encoded windows,
captured graphs) belongs to its users: `decoder.Decoder` for one reply at a time, `batch_decoder.BatchDecoder`
for many.
"""

from collections.abc import Sequence
from typing import Any

import torch

from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.runtime import quantization
from voxcli.engines.voxtral.runtime.text_model import TextModel
from voxcli.errors import ModelError


def audio_tokens_per_window(audio_config: Any) -> int:
    """Return how many embeddings the encoder makes of one window.

    The projector stacks as many positions as make up its width (`VoxtralModel.get_audio_features`).
    """
    return int(audio_config.max_source_positions * audio_config.hidden_size // audio_config.intermediate_size)


class SharedModel:
    """One `VoxtralForConditionalGeneration`, ready for decoders. Its memory is freed with the last reference."""

    def __init__(self, loaded: Any) -> None:
        """Take over a model that transformers loaded, fusing projections in place.

        Raises:
            ModelError: the text model has parts that `TextModel` does not compute.
        """
        self.config = loaded.config
        self.text = TextModel(loaded)
        self.device: torch.device = self.text.device
        self._loaded = loaded

    @property
    def audio_id(self) -> int:
        """The id of `[AUDIO]`."""
        return int(self.config.audio_token_id)

    @torch.inference_mode()
    def encode(self, windows: torch.Tensor) -> torch.Tensor:
        """Return embeddings, (windows * tokens, hidden), of mel spectrograms, (windows, mels, frames).

        All windows are encoded at once.
        """
        embeddings: torch.Tensor = self._loaded.get_audio_features(windows.to(self.device)).pooler_output
        return embeddings

    def silent_window(self) -> torch.Tensor:
        """Return a mel spectrogram of zeros, (mels, frames)."""
        audio, tower = self.config.audio_config, self._loaded.model.audio_tower
        frames = audio.max_source_positions * tower.conv1.stride[0] * tower.conv2.stride[0]
        return torch.zeros(audio.num_mel_bins, frames, device=self.device)

    def check_prompt(
        self, ids: Sequence[int], features: torch.Tensor | None, capacity: int, audio: torch.Tensor | None = None
    ) -> None:
        """Check that a prompt can be prefilled.

        Args:
            features: mel spectrograms of the clip, (windows, mels, frames); None without a clip, or once encoded.
            capacity: most tokens of prompt and reply.
            audio: embeddings of the clip, (tokens, hidden), where it is encoded.

        Raises:
            ModelError: the ids do not have one `[AUDIO]` for each embedding of the clip (transformers would
                answer without the clip instead), or the prompt does not fit into `capacity`.
        """
        expected = 0 if audio is None else len(audio)
        if features is not None:
            expected = features.shape[0] * audio_tokens_per_window(self.config.audio_config)
        found = ids.count(self.audio_id)
        if found != expected:
            raise ModelError(f"the prompt has {found} audio tokens for {expected} audio embeddings")
        self.check_size(ids, capacity)

    def check_size(self, ids: Sequence[int], capacity: int) -> None:
        """Check that a prompt has tokens, and leaves room for a reply. Raises ModelError."""
        if not 0 < len(ids) < capacity:
            raise ModelError(f"a prompt of {len(ids)} tokens and a reply don't fit into a cache of {capacity}")

    def embed(self, ids: Sequence[int], audio: torch.Tensor | None = None) -> Any:
        """Return the embeddings, (n, hidden), of ids.

        Args:
            audio: embeddings that take the places of `[AUDIO]`, (m, hidden). Where the ids have fewer `[AUDIO]`,
                because the beginning of the prompt is cached, the last embeddings are theirs.
        """
        embeddings = self.text.embed(torch.tensor(list(ids), device=self.device))
        if audio is not None:
            places = [place for place, token_id in enumerate(ids) if token_id == self.audio_id]
            taken = audio[len(audio) - len(places) :].to(embeddings.dtype)
            embeddings.index_copy_(0, torch.tensor(places, dtype=torch.int64, device=self.device), taken)
        return embeddings

    def quantize(self, form: Format) -> list[str]:
        """Quantize the large matrices of the text model in place, before any decoder uses it.

        Returns:
            The full names of the quantized matrices.

        Raises:
            ConfigError: the device does not support the format.
            ModelError: the format does not support matrices of these shapes.
        """
        return quantization.quantize(self.text, form)
