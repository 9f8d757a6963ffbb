"""Counts the memory that a model needs, by number format and length of the cache."""

from dataclasses import dataclass
from typing import Any

from voxcli.engines.voxtral.checkpoint.shapes import Model
from voxcli.engines.voxtral.device.formats import ROUNDED_VALUES, Format, largest_layer_bytes, stored_bytes
from voxcli.engines.voxtral.device.hardware import DType

BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
CHUNK_TOKENS = 512  # tokens prefilled at once; an interrupt waits for at most one chunk
LEAST_TEXT_TOKENS = 512  # instructions, a few turns and a reply: the minimum of `session.context_tokens`
ASIDE_TOKENS = 128  # Room after a reply: at least `aside.Aside.room`, which depends on the tokenizer.
MASK_ROWS = 128  # queries of masked attention at once; fewer take less memory and more kernels
# Kernels loaded at their first call, and the workspaces of cuBLAS. An allowance, not a measurement.
CUDA_BYTES = 300_000_000
FLOAT32_COPIES = 4  # copies of some rows while a matrix is quantized


@dataclass(frozen=True)
class Use:
    """How a model is stored and run, as far as its memory depends on it."""

    dtype: DType
    form: Format = "none"
    masked: bool = False  # attention uses a mask, as on Turing, AMD and Apple
    fixed_bytes: int = 0  # memory of the device's libraries


@dataclass(frozen=True)
class Demand:
    """The memory that a model needs, in values, whose size depends on the number format."""

    config: Any  # a `VoxtralConfig` or a `shapes.Shape`
    parameters: int
    token_values: int = 0  # values in the KV cache for each token
    masked_token_values: int = 0  # values of masked attention for each cached token
    work_values: int = 0  # most values alive at once during a pass
    least_tokens: int = 0  # smallest useful cache, for prompt and reply

    def weights(self, use: Use) -> int:
        """Return the bytes of the stored weights."""
        return stored_bytes(self.config, self.parameters, BYTES[use.dtype], use.form)

    def cache(self, use: Use, tokens: int) -> int:
        """Return the bytes of a cache for `tokens`, and of masked attention to it."""
        return tokens * self._per_token(use)

    def work(self, use: Use) -> int:
        """Return the bytes that a pass needs beside weights and cache."""
        return use.fixed_bytes + self.work_values * BYTES[use.dtype]

    def bytes(self, use: Use, tokens: int) -> int:
        """Return the peak bytes of loading and running with a cache for `tokens`."""
        return self.weights(use) + max(self.cache(use, tokens) + self.work(use), self._while_loading(use))

    def tokens(self, use: Use, free_bytes: int) -> int:
        """Return the tokens that a cache has room for; negative if the model does not fit without one."""
        left = free_bytes - self.weights(use)
        if left < self._while_loading(use):
            return -1
        return (left - self.work(use)) // max(1, self._per_token(use))

    def _per_token(self, use: Use) -> int:
        return (self.token_values + use.masked * self.masked_token_values) * BYTES[use.dtype]

    def _while_loading(self, use: Use) -> int:
        """Return the bytes that quantizing needs beside the weights: a layer, and some rows in float32."""
        if use.form == "none":
            return use.fixed_bytes
        rounding = FLOAT32_COPIES * 4 * ROUNDED_VALUES
        return use.fixed_bytes + largest_layer_bytes(self.config, BYTES[use.dtype]) + rounding


def demand(config: Any, parameters: int) -> Demand:
    """Return the memory that a model of this shape needs. An estimate, not a measurement.

    During a pass, at most these are alive at once. Text model: hidden states of a chunk, in and out; queries,
    keys and values, or gate, up and their product; the matrices of a layer while they are fused. Encoder: the
    same for a window, and the two convolutions before it. Logits: three times in float32. The sum is doubled,
    because allocators reserve more than they hand out.

    Masked attention may copy the keys and values of a layer in float32. Its scores for `MASK_ROWS` queries of
    each head exist three times at once, in float32.

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
    """Return the memory that a published model needs."""
    return demand(model.shape, model.parameters)


def cache_bytes_per_token(text_config: Any, bytes_per_value: int) -> int:
    """Return the bytes of a token in the KV cache: a key and a value in each layer."""
    width = text_config.num_key_value_heads * text_config.head_dim
    return int(2 * text_config.num_hidden_layers * width * bytes_per_value)
