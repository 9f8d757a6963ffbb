"""Reads the layers of the text model from a checkpoint one by one, quantizing them on the way to the device.

Memory never holds more than the quantized layers and one unquantized layer. transformers loads the rest of the
model (`without_layers`), then `append` adds the layers. Their modules are those of transformers, with projections
of one input fused as in `runtime.text_model`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from voxcli.engines.voxtral.checkpoint.files import lacking
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.runtime import quantization, text_model

# Matches published keys (`language_model.model.layers.0...`) and those of transformers (`model.language_model...`).
KEY = re.compile(r"(?:^|\.)language_model\.(?:model\.)?layers\.(\d+)\.(.+)$")
JOINED = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}

Weights = dict[str, tuple[Any, str]]  # the weights of a layer by name: an open safetensors file, and the key in it


def without_layers(config: Any) -> tuple[Any, int]:
    """Remove the layers of the text model from a `VoxtralConfig`; return it and their number."""
    count: int = config.text_config.num_hidden_layers
    config.text_config.num_hidden_layers = 0
    return config, count


@torch.no_grad()
def append(model: Any, files: Sequence[Path], count: int, form: Format) -> None:
    """Add the layers of the text model to a `VoxtralForConditionalGeneration` that was loaded without them.

    Args:
        files: the safetensors files of the checkpoint.
        count: number of layers.

    Raises:
        ModelError: weights are missing or have another shape, or `TextModel` does not compute this model.
        ConfigError: the device does not support the format.
    """
    text, config = model.model.language_model, model.config.text_config
    quantization.check(form, text.embed_tokens.weight.device)
    text_model.check(text, config)
    config.num_hidden_layers = count
    with ExitStack() as stack:
        handles = [stack.enter_context(safetensors.safe_open(file, framework="pt")) for file in files]
        found = _by_layer(handles, count)
        skeletons = [_skeleton(config, number) for number in range(count)]
        unset = [name for number, layer in enumerate(skeletons) for name in _unset(layer, found[number], number)]
        if unset:
            raise lacking(files[0].parent, unset)
        for layer, weights in zip(skeletons, found, strict=True):
            text.layers.append(_filled(layer, weights, text.embed_tokens.weight, form))


def _by_layer(handles: Sequence[Any], count: int) -> list[Weights]:
    found: list[Weights] = [{} for _ in range(count)]
    for handle in handles:
        for key in handle.keys():  # noqa: SIM118 - the handle is not a dictionary
            match = KEY.search(key)
            if match and int(match[1]) < count:
                found[int(match[1])][match[2]] = handle, key
    return found


def _skeleton(config: Any, number: int) -> nn.Module:
    with torch.device("meta"):
        return LlamaDecoderLayer(config, number)


def _unset(layer: nn.Module, weights: Weights, number: int) -> Iterator[str]:
    """Yield the names of weights that are missing or have another shape."""
    for name, expected in layer.named_parameters():
        handle, key = weights.get(name, (None, ""))
        if handle is None or tuple(handle.get_slice(key).get_shape()) != tuple(expected.shape):
            yield f"model.language_model.layers.{number}.{name}"


def _filled(layer: nn.Module, weights: Weights, like: torch.Tensor, form: Format) -> nn.Module:
    """Return a layer filled with its weights, on the device and in the number format of `like`."""
    for path, parts in JOINED.items():
        owner = layer.get_submodule(path.partition(".")[0])
        names = [f"{path.partition('.')[0]}.{part}.weight" for part in parts]
        for part in parts:
            delattr(owner, part)
        setattr(owner, path.partition(".")[2], quantization.linear(_joined(weights, names, like), form))
    for name, _ in list(layer.named_parameters()):
        owner_name, _, last = name.rpartition(".")
        setattr(layer.get_submodule(owner_name), last, nn.Parameter(_joined(weights, [name], like), False))
    return layer.eval()


def _joined(weights: Weights, names: Sequence[str], like: torch.Tensor) -> torch.Tensor:
    """Return weights concatenated along the rows, reading one at a time."""
    slices = [weights[name][0].get_slice(weights[name][1]) for name in names]
    shapes = [tuple(each.get_shape()) for each in slices]
    joined = like.new_empty((sum(shape[0] for shape in shapes), *shapes[0][1:]))
    start = 0
    for name in names:
        handle, key = weights[name]
        part = handle.get_tensor(key)
        joined[start : start + len(part)].copy_(part)
        start += len(part)
    return joined
