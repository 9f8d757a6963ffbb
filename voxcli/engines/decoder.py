"""The decode loop: a prompt goes in, token ids come out, one model pass for all of it.

The whole interface is `Sampling`, `Decoder.stream` and `Decoder.close`. Whoever calls knows nothing
of caches; a decoder is free to keep one between calls, to allocate it once, to replay CUDA graphs.
This one keeps nothing: each call makes a cache of its own and drops it.

It knows nothing of text, turns or clips, and needs torch alone.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from voxcli.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_tokens: int
    stop_ids: frozenset[int]  # the reply ends before one of these
    temperature: float = 0.0  # 0: the likeliest token each time; both of the others are then ignored
    top_p: float = 1.0  # the smallest set of likeliest tokens with this probability is chosen from
    seed: int | None = None  # the same seed, prompt and device give the same reply

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"not a way to sample: {self}")


class Decoder:
    """Decodes with one Voxtral model (`VoxtralForConditionalGeneration`, or what behaves like it).

    One stream at a time: a decoder is not for several threads at once.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def device(self) -> str:
        """What it runs on: cuda, mps or cpu."""
        return str(self._model.device.type)

    def stream(
        self,
        ids: Sequence[int],
        features: torch.Tensor | None,
        sampling: Sampling,
        interrupt: threading.Event,
    ) -> Generator[int, None, None]:
        """Yield the reply's ids as they are chosen, no stop id among them.

        Args:
            ids: the whole prompt.
            features: mel spectrograms of the clip, (windows, mels, frames), float32; None without a
                clip. The ids hold one `[AUDIO]` for each embedding that the encoder makes of them.
            interrupt: looked at before each pass through the text model, so the stream ends within one token.

        Raises:
            ModelError: `[AUDIO]` ids and features do not fit together. The model itself would raise
                nothing where the features are missing, and answer something else.
        """
        self._check_audio(ids, features)
        choose = _chooser(sampling, self._model.device)
        pending = torch.tensor([list(ids)], device=self._model.device)
        cache = None
        for _ in range(sampling.max_tokens):
            if interrupt.is_set():
                return
            with torch.inference_mode():  # not around the yield: it would hold for the caller as well
                output = self._model(
                    input_ids=pending,
                    input_features=features,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                pending = choose(output.logits[0, -1])
            features, cache = None, output.past_key_values
            token_id = int(pending)
            if token_id in sampling.stop_ids:
                return
            yield token_id

    def close(self) -> None:
        """Let the model go, and what was allocated for it."""
        self._model = None

    def _check_audio(self, ids: Sequence[int], features: torch.Tensor | None) -> None:
        config = self._model.config
        expected = 0 if features is None else features.shape[0] * audio_tokens_per_window(config.audio_config)
        found = sum(token_id == config.audio_token_id for token_id in ids)
        if found != expected:
            raise ModelError(f"the prompt has {found} audio tokens for {expected} audio embeddings")


def audio_tokens_per_window(audio_config: Any) -> int:
    """Return how many embeddings the encoder makes of one window.

    The projector stacks as many positions as make up its width (`VoxtralModel.get_audio_features`).
    """
    return int(audio_config.max_source_positions * audio_config.hidden_size // audio_config.intermediate_size)


def _chooser(sampling: Sampling, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from logits, (vocabulary,), to the chosen id, (1, 1)."""
    if sampling.temperature == 0:
        return lambda logits: logits.argmax().view(1, 1)
    source = torch.Generator(device)
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed)

    def choose(logits: torch.Tensor) -> torch.Tensor:
        probabilities, order = (logits.float() / sampling.temperature).softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities  # what the likelier ones have together
        probabilities[before >= sampling.top_p] = 0
        return order[torch.multinomial(probabilities, 1, generator=source)].view(1, 1)

    return choose
