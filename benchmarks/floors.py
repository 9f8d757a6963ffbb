"""The floors of a pass: the shortest time that the arithmetic and the memory of a device allow.

The formulas take a `VoxtralConfig`. The two speeds of the device are measured in the same run as the figures beside
the floors.

A multiplication and an addition are two operations (FLOP). Sizes of the matrices are those of
transformers' `modeling_voxtral.py` and `modeling_llama.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from voxcli.engines.voxtral.runtime.model import audio_tokens_per_window

MOVED_BYTES = {"cuda": 1 << 30, "mps": 1 << 30, "cpu": 512 << 20}  # bytes to copy, far more than fit into any cache
MATRIX_SIZE = {"cuda": 8192, "mps": 4096, "cpu": 2048}
MEASURED_SECONDS = 0.7  # the best time within it counts
CALLS = {"cuda": 10, "mps": 5, "cpu": 1}  # calls between two readings of the clock


@dataclass(frozen=True)
class Speeds:
    """The measured speeds of a device."""

    bytes_per_second: float  # memory, read or written
    flop_per_second: float  # matrix products in the model's number format

    def best(self, other: "Speeds") -> "Speeds":
        """Return the greater of both measurements."""
        return Speeds(
            max(self.bytes_per_second, other.bytes_per_second), max(self.flop_per_second, other.flop_per_second)
        )


@dataclass(frozen=True)
class Floors:
    """The least seconds that a pass can take."""

    encoder_seconds: float  # of one window
    prefill_seconds: float  # of one turn's tokens, with nothing before them
    token_seconds: float  # of one step of decoding

    @property
    def first_token_seconds(self) -> float:
        """From the clip to the first token."""
        return self.encoder_seconds + self.prefill_seconds

    def reply_seconds(self, tokens: int) -> float:
        """From the clip to the last of `tokens` tokens."""
        return self.first_token_seconds + (tokens - 1) * self.token_seconds


def floors(
    config: Any, speeds: Speeds, *, turn_tokens: int, bytes_per_weight: int, bytes_per_layer_weight: int | None = None
) -> Floors:
    """Return the floors of a device with these speeds.

    Args:
        turn_tokens: number of tokens that a turn feeds.
        bytes_per_layer_weight: bytes of a weight in the text model's layers, if they differ. Arithmetic is the same.
    """
    return Floors(
        encoder_flop(config) / speeds.flop_per_second,
        prefill_flop(config.text_config, turn_tokens) / speeds.flop_per_second,
        decode_bytes(config.text_config, bytes_per_weight, bytes_per_layer_weight) / speeds.bytes_per_second,
    )


def decode_bytes(text: Any, bytes_per_weight: int, bytes_per_layer_weight: int | None = None) -> int:
    """Return the bytes that a decode step reads: each weight of the layers and of the head once.

    One row of the embedding, the KV cache of a short conversation, norms and the scales of weights in 8 bits are
    left out: each is under 1 % of Mini's weights. Mini in bfloat16: 7.22 GB; with layers in 8 bits: 4.01 GB.
    """
    layers = _layer_weights(text) * text.num_hidden_layers
    return int(layers * (bytes_per_layer_weight or bytes_per_weight) + _head_weights(text) * bytes_per_weight)


def encoder_flop(config: Any) -> float:
    """Return the operations of the audio encoder and the projector for one window.

    Each layer: four matrices (d, d) and two (d, ffn) for each position, and every position attends to every
    other: 2 * positions * d for the scores, as much for the sum of the values. The first convolution runs at
    each mel frame, the second, of stride 2, at each position; both are 3 wide.
    Mini: 2.27e12, and 0.02e12 more in the projector.
    """
    audio, text = config.audio_config, config.text_config
    width, positions = audio.hidden_size, audio.max_source_positions
    matrices = 2 * positions * (4 * width**2 + 2 * width * audio.intermediate_size)
    attention = 4 * positions**2 * width
    convolutions = 2 * 3 * positions * (2 * audio.num_mel_bins * width + width**2)
    projector = 2 * audio_tokens_per_window(audio) * text.hidden_size * (audio.intermediate_size + text.hidden_size)
    return float(audio.num_hidden_layers * (matrices + attention) + convolutions + projector)


def prefill_flop(text: Any, tokens: int, before: int = 0) -> float:
    """Return the operations of feeding `tokens` tokens after `before` that are cached. Mini, 379 tokens: 2.47e12.

    Each token is multiplied with each weight of the layers, the last one also with the head. A token attends to
    itself and all tokens before it: on average, to `before` and half of `tokens`.
    """
    matrices = 2 * tokens * _layer_weights(text)
    attended = tokens * before + tokens * (tokens + 1) / 2
    attention = 4 * attended * text.num_attention_heads * text.head_dim
    return float(text.num_hidden_layers * (matrices + attention) + 2 * _head_weights(text))


def measure(device: str, dtype: torch.dtype) -> Speeds:
    """Measure memory bandwidth by a large copy and a large read, and the speed of one large matrix product.

    This takes two or three seconds. Other programs on the machine can lower the results, but not raise them.
    """
    size = MATRIX_SIZE[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = _best_seconds(device, lambda: left @ right)
    return Speeds(_bandwidth(device), 2 * size**3 / seconds)


def _bandwidth(device: str) -> float:
    moved = MOVED_BYTES[device]
    source = torch.ones(moved // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = 2 * moved / _best_seconds(device, lambda: target.copy_(source))
    return max(copied, moved / _best_seconds(device, source.sum))


def _best_seconds(device: str, work: Callable[[], object]) -> float:
    calls = CALLS[device]
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) * calls < MEASURED_SECONDS:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        taken.append((time.perf_counter() - started) / calls)
    return min(taken)


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _layer_weights(text: Any) -> int:
    """Return the weights of one layer: queries, keys, values, output; gate, up and down. Norms are left out."""
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    return int(text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size))


def _head_weights(text: Any) -> int:
    return int(text.hidden_size * text.vocab_size)
