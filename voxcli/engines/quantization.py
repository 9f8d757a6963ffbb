"""Weights in 8 bits, so that a step of decoding reads half as much; arithmetic stays as it was.

Only the large matrices in the layers of the text model: the encoder, the projector, the embedding and
the head are left alone. The module is plain torch, so that a compiler joins the conversion with the
product; without one, each product first writes the converted matrix, and is slower than it was.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from voxcli.engines.llama import Llama, fused_parts
from voxcli.errors import ConfigError

Format = Literal["int8", "fp8"]
MATRICES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
DTYPES: dict[Format, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


class QuantizedLinear(nn.Module):
    """A linear map without a bias, its weight in 8 bits with one scale a row."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, form: Format) -> None:
        """Round a weight, (out, in), to the nearest values that its rows' scales allow."""
        super().__init__()
        scale = weight.abs().amax(1).float().clamp(min=1e-12) / LARGEST[form]
        scaled = weight.float() / scale[:, None]
        rounded = scaled.round() if form == "int8" else scaled
        self.register_buffer("weight", rounded.to(DTYPES[form]))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (n, out), of inputs, (n, in)."""
        return F.linear(inputs, self.weight.to(inputs.dtype)) * self.scale


@torch.no_grad()
def quantize(text: Llama, form: Format) -> list[str]:
    """Quantize a text model in place; transformers' own forward is of no use from then on.

    Returns:
        The full names of what was quantized.

    Raises:
        ConfigError: the device does not know the format.
    """
    if form == "fp8" and text.device.type == "mps":
        raise ConfigError("Apple's GPUs do not know fp8", hint="--quantize int8")
    for owner, name in fused_parts(text.modules):
        delattr(owner, name)
    done = []
    for number, layer in enumerate(text.modules.layers):
        for path in MATRICES:
            part, _, name = path.partition(".")
            owner = getattr(layer, part)
            setattr(owner, name, QuantizedLinear(getattr(owner, name).weight, form))
            done.append(f"model.language_model.layers.{number}.{path}")
    text.refresh()
    return done
