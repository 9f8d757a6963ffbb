"""Writes a random replica of Voxtral Mini's checkpoint: its files, keys and number formats, with random weights.

    python -m benchmarks.replica FOLDER [--shape mini|100m|tiny] [--tokenizer tekken|digits]

The layout is that of mistralai/Voxtral-Mini-3B-2507. The full size takes 9.4 GB. The same options write
the same bytes.

There are two tokenizers. `tekken` is cut from the data of mistral-common, like the published one.
`digits` needs only transformers: the text of a token is its id, so ids can be read from a reply.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import save_file

from benchmarks.tekken import control_names, tekken

COMMIT = "3060fe34b35ba5d44202ce9ff3c097642914f8f3"  # the published revision
REPOSITORY = "mistralai/Voxtral-Mini-3B-2507"
SHARD_BYTES = 5_000_000_000  # transformers cut the published weights at this size
POOL_VALUES = 16_777_213  # a prime, so that no two rows of a matrix are cut from the pool at the same place
SEED = 7
CONTROL_TOKENS = 1000
BYTE_TOKENS = 256
AUDIO_ID, MELS, POSITIONS = 24, 128, 1500

TokenizerKind = Literal["tekken", "digits"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. The encoder's inner width is four times its width, as the projector needs it."""

    audio_width: int
    audio_layers: int
    audio_heads: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def audio_inner(self) -> int:
        return 4 * self.audio_width


SHAPES = {
    "mini": Shape(1280, 32, 20, 3072, 8192, 30, 32, 8, 128, 131_072),
    "100m": Shape(256, 2, 4, 1024, 4096, 6, 8, 2, 128, 8192),  # large enough to measure its memory
    "tiny": Shape(32, 2, 2, 64, 128, 2, 4, 2, 16, 2048),
}


class Weight(NamedTuple):
    """One tensor of the checkpoint."""

    key: str
    shape: tuple[int, ...]
    kind: Literal["matrix", "embedding", "head", "ones", "zeros", "waves"]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * (4 if self.kind == "waves" else 2)


def write(folder: Path, shape: Shape, tokenizer: TokenizerKind) -> Path:
    """Write the checkpoint into `folder`, which must not exist. The folder appears when it is complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_weights(part, shape)
    for name, content in _small_files(shape).items():
        (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if tokenizer == "tekken":
        (part / "tekken.json").write_text(json.dumps(tekken(shape.vocabulary, CONTROL_TOKENS)), encoding="utf-8")
    else:
        _digits(shape).save(str(part / "tokenizer.json"))
        named = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (part / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return part.rename(folder)


def link_into_hub_cache(folder: Path, cache: Path) -> Path:
    """Link a checkpoint into a cache of the hub as Voxtral Mini, so that the short name resolves offline.

    Args:
        folder: of the checkpoint.
        cache: the folder that HF_HUB_CACHE names.

    Returns:
        The folder with the links.
    """
    repo = cache / ("models--" + REPOSITORY.replace("/", "--"))
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT, encoding="ascii")
    snapshot.mkdir(parents=True)
    for path in folder.resolve().iterdir():
        (snapshot / path.name).symlink_to(path)
    return snapshot


def weights(shape: Shape) -> Iterator[Weight]:
    """Yield the tensors in the order of the published files."""
    yield from _encoder(shape)
    yield Weight("language_model.model.embed_tokens.weight", (shape.vocabulary, shape.width), "embedding")
    for number in range(shape.layers):
        yield from _text_layer(f"language_model.model.layers.{number}.", shape)
    yield Weight("language_model.model.norm.weight", (shape.width,), "ones")
    yield Weight("language_model.lm_head.weight", (shape.vocabulary, shape.width), "head")
    yield Weight("multi_modal_projector.linear_1.weight", (shape.width, shape.audio_inner), "matrix")
    yield Weight("multi_modal_projector.linear_2.weight", (shape.width, shape.width), "matrix")


def _encoder(shape: Shape) -> Iterator[Weight]:
    width, prefix = shape.audio_width, "audio_tower."
    for name, inputs in (("conv1", MELS), ("conv2", width)):
        yield Weight(f"{prefix}{name}.weight", (width, inputs, 3), "matrix")
        yield Weight(f"{prefix}{name}.bias", (width,), "zeros")
    yield Weight(prefix + "embed_positions.weight", (POSITIONS, width), "waves")
    maps = {
        "self_attn.k_proj": (width, width),  # the one map without a bias
        "self_attn.v_proj": (width, width),
        "self_attn.q_proj": (width, width),
        "self_attn.out_proj": (width, width),
        "fc1": (shape.audio_inner, width),
        "fc2": (width, shape.audio_inner),
    }
    for number in range(shape.audio_layers):
        layer = f"{prefix}layers.{number}."
        for name, sizes in maps.items():
            yield Weight(f"{layer}{name}.weight", sizes, "matrix")
            if name != "self_attn.k_proj":
                yield Weight(f"{layer}{name}.bias", sizes[:1], "zeros")
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            yield from _layer_norm(layer + name, width)
    yield from _layer_norm(prefix + "layer_norm", width)


def _layer_norm(name: str, width: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (width,), "ones")
    yield Weight(f"{name}.bias", (width,), "zeros")


def _text_layer(prefix: str, shape: Shape) -> Iterator[Weight]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    maps = {
        "self_attn.q_proj": (queries, shape.width),
        "self_attn.k_proj": (keys, shape.width),
        "self_attn.v_proj": (keys, shape.width),
        "self_attn.o_proj": (shape.width, queries),
        "mlp.gate_proj": (shape.inner, shape.width),
        "mlp.up_proj": (shape.inner, shape.width),
        "mlp.down_proj": (shape.width, shape.inner),
    }
    for name, sizes in maps.items():
        yield Weight(f"{prefix}{name}.weight", sizes, "matrix")
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Weight(f"{prefix}{name}.weight", (shape.width,), "ones")


def _write_weights(folder: Path, shape: Shape) -> None:
    shards = _sharded(weights(shape))
    index: dict[str, str] = {}
    source = _Source(min(POOL_VALUES, sum(prod(weight.shape) for weight in weights(shape))))
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({weight.key: source.tensor(weight) for weight in shard}, folder / name, {"format": "pt"})
        index |= {weight.key: name for weight in shard}
    total = sum(weight.bytes for shard in shards for weight in shard)
    written = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _sharded(found: Iterator[Weight]) -> list[list[Weight]]:
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in found:
        if size + weight.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.bytes
    return shards


class _Source:
    """Makes tensors from one pool of normal values, because drawing billions of them would take minutes."""

    def __init__(self, values: int) -> None:
        self._pool = torch.randn(values, generator=torch.Generator().manual_seed(SEED))
        self._scaled: dict[float, torch.Tensor] = {}
        self._place = 0

    def tensor(self, weight: Weight) -> torch.Tensor:
        """Return values with which the activations of every layer keep a variance near 1."""
        if weight.kind == "waves":
            return _waves(*weight.shape)
        if weight.kind in ("ones", "zeros"):
            return torch.full(weight.shape, float(weight.kind == "ones"), dtype=torch.bfloat16)
        inputs = 1 if weight.kind == "embedding" else prod(weight.shape[1:])
        found = self._drawn(prod(weight.shape), 1 / sqrt(inputs)).view(weight.shape)
        if weight.kind == "head":  # control and byte tokens are never chosen, so no reply ends by chance
            found[: CONTROL_TOKENS + BYTE_TOKENS] = 0
        return found

    def _drawn(self, count: int, scale: float) -> torch.Tensor:
        if scale not in self._scaled:
            self._scaled[scale] = (self._pool * scale).to(torch.bfloat16)
        pool = self._scaled[scale]
        found = torch.empty(count, dtype=torch.bfloat16)
        done = 0
        while done < count:
            part = pool[self._place : self._place + count - done]
            found[done : done + len(part)] = part
            done += len(part)
            self._place = (self._place + len(part)) % len(pool)
        return found


def _waves(positions: int, width: int) -> torch.Tensor:
    """Return Whisper's sinusoidal position embeddings, (positions, width), float32."""
    half = width // 2
    rates = torch.exp(-torch.log(torch.tensor(10_000.0)) / (half - 1) * torch.arange(half))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def _small_files(shape: Shape) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": 131_072,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 100_000_000.0,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }
    audio = {
        "model_type": "voxtral_encoder",
        "activation_function": "gelu",
        "head_dim": shape.audio_width // shape.audio_heads,
        "hidden_size": shape.audio_width,
        "initializer_range": 0.02,
        "intermediate_size": shape.audio_inner,
        "max_source_positions": POSITIONS,
        "num_attention_heads": shape.audio_heads,
        "num_hidden_layers": shape.audio_layers,
        "num_key_value_heads": shape.audio_heads,
        "num_mel_bins": MELS,
        "scale_embedding": False,
        "vocab_size": 51_866,
    }
    return {
        "config.json": {
            "architectures": ["VoxtralForConditionalGeneration"],
            "audio_config": audio,
            "audio_token_id": AUDIO_ID,
            "hidden_size": shape.width,
            "model_type": "voxtral",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.54.0.dev0",
            "vocab_size": shape.vocabulary,
        },
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 11,
            "transformers_version": "4.54.0.dev0",
        },
        "preprocessor_config.json": {
            "chunk_length": 30,
            "dither": 0.0,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": MELS,
            "hop_length": 160,
            "n_fft": 400,
            "n_samples": 480_000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "VoxtralProcessor",
            "return_attention_mask": False,
            "sampling_rate": 16_000,
        },
    }


def _digits(shape: Shape) -> Any:
    """Return a tokenizer whose tokens are bytes, followed by ` ID` for each further id."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: Any = bytes_to_unicode  # it carries no types
    controls, of_bytes = control_names(CONTROL_TOKENS), [letters()[byte] for byte in range(BYTE_TOKENS)]
    space = of_bytes[ord(" ")]
    first = len(controls) + len(of_bytes)
    names = [*controls, *of_bytes, *(f"{space}{number}" for number in range(first, shape.vocabulary))]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))  # words whole, or bytes
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    return tokenizer


def main(arguments: Sequence[str]) -> None:
    """Write a random replica of Voxtral Mini's checkpoint."""
    parser = argparse.ArgumentParser(description="Write a random replica of Voxtral Mini's checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--tokenizer", choices=get_args(TokenizerKind), default="tekken", help="tekken: mistral-common")
    options = parser.parse_args(arguments)
    print(write(options.folder, SHAPES[options.shape], options.tokenizer))


if __name__ == "__main__":
    main(sys.argv[1:])
