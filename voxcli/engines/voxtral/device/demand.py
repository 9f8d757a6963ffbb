"""How much memory a model needs, in each number format and with each length of the cache.

Counts; knows no library and no machine. Estimates say what they assume.
"""

from dataclasses import dataclass
from typing import Any

from voxcli.engines.voxtral.checkpoint.shapes import Model
from voxcli.engines.voxtral.device.formats import ROUNDED_VALUES, Format, largest_layer_bytes, stored_bytes
from voxcli.engines.voxtral.device.hardware import DType

BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
CHUNK_TOKENS = 512  # fed at once; an interrupt waits for one of these at most
LEAST_TEXT_TOKENS = 512  # instructions, a few turns and a reply: the least that `session.context_tokens` allows
MASK_ROWS = 128  # queries that attention with a mask takes at once; fewer rows need less memory and more kernels
# Kernels that are loaded when they are first called, and the workspaces of cuBLAS. An allowance, not a measurement.
CUDA_BYTES = 300_000_000
FLOAT32_COPIES = 4  # of some rows, while a matrix is quantized


@dataclass(frozen=True)
class Use:
    """How a model would be kept and run: what its need for memory depends on."""

    dtype: DType
    form: Format = "none"
    masked: bool = False  # attention to the cache has no kernel of its own, as on Turing, AMD and Apple
    fixed_bytes: int = 0  # taken by the device's libraries, whatever the model


@dataclass(frozen=True)
class Demand:
    """What a model has to keep in memory, counted in values: how large these are depends on their format."""

    config: Any  # a `VoxtralConfig` or a `shapes.Shape`
    parameters: int
    token_values: int = 0  # in the KV cache, for each token
    masked_token_values: int = 0  # in attention with a mask, for each cached token
    work_values: int = 0  # the most that is alive at once while a pass computes
    least_tokens: int = 0  # prompt and reply: with less there is no conversation

    def weights(self, use: Use) -> int:
        """Return the bytes of the weights as they are kept."""
        return stored_bytes(self.config, self.parameters, BYTES[use.dtype], use.form)

    def cache(self, use: Use, tokens: int) -> int:
        """Return the bytes of a cache for so many tokens, with what attention to it takes."""
        return tokens * self._per_token(use)

    def work(self, use: Use) -> int:
        """Return the bytes that a pass computes with, whatever is cached."""
        return use.fixed_bytes + self.work_values * BYTES[use.dtype]

    def bytes(self, use: Use, tokens: int) -> int:
        """Return the bytes of everything, with a cache for so many tokens, at the worst moment."""
        return self.weights(use) + max(self.cache(use, tokens) + self.work(use), self._while_loading(use))

    def tokens(self, use: Use, free_bytes: int) -> int:
        """Return how many tokens there is room for beside the rest; negative where the rest does not fit."""
        left = free_bytes - self.weights(use)
        if left < self._while_loading(use):
            return -1
        return (left - self.work(use)) // max(1, self._per_token(use))

    def _per_token(self, use: Use) -> int:
        return (self.token_values + use.masked * self.masked_token_values) * BYTES[use.dtype]

    def _while_loading(self, use: Use) -> int:
        """Return the bytes beside the weights while they are quantized: a layer, and some rows in float32."""
        if use.form == "none":
            return use.fixed_bytes
        rounding = FLOAT32_COPIES * 4 * ROUNDED_VALUES
        return use.fixed_bytes + largest_layer_bytes(self.config, BYTES[use.dtype]) + rounding


def demand(config: Any, parameters: int) -> Demand:
    """Return what a model of this shape with so many parameters needs.

    While a pass computes, alive at once are at most: of the text model, a chunk of hidden states, in and
    out, with queries, keys, values, or gate, up and their product, and a layer's matrices while they are
    joined; of the encoder, as much for a window, with the two convolutions before it; logits three times,
    in float32. Twice the sum, for allocators keep more than they give. An estimate, not a measurement.

    Attention with a mask may copy a layer's keys and values in float32, and makes scores for `MASK_ROWS`
    queries in each head, in float32, of which three copies are alive at once.

    Args:
        config: a `VoxtralConfig` or a `shapes.Shape`.
    """
    audio, text = config.audio_config, config.text_config
    positions, width = audio.max_source_positions, text.num_key_value_heads * text.head_dim
    heads = text.num_attention_heads * text.head_dim + 2 * width
    chunk = CHUNK_TOKENS * (2 * text.hidden_size + max(2 * heads, 3 * text.intermediate_size))
    joined = text.hidden_size * max(heads, 2 * text.intermediate_size)
    window = positions * (5 * audio.hidden_size + max(4 * audio.hidden_size, 2 * audio.intermediate_size))
    logits = 3 * 2 * text.vocab_size
    return Demand(
        config,
        parameters,
        cache_bytes_per_token(text, 1),
        2 * 2 * width + 3 * 2 * text.num_attention_heads * MASK_ROWS,
        2 * (chunk + joined + window + logits),
        positions * audio.hidden_size // audio.intermediate_size + LEAST_TEXT_TOKENS,
    )


def demand_of(model: Model) -> Demand:
    """Return what a model of known size needs."""
    return demand(model.shape, model.parameters)


def cache_bytes_per_token(text_config: Any, bytes_per_value: int) -> int:
    """Return how much the KV cache grows with each token: a key and a value in each layer."""
    width = text_config.num_key_value_heads * text_config.head_dim
    return int(2 * text_config.num_hidden_layers * width * bytes_per_value)
