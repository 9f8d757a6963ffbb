"""Stores weights in 8 or 4 bits, so that a decode step reads half or a quarter of the bytes.

Only the large matrices in the layers of the text model are quantized, not the encoder, the projector, the
embedding and the head. Activations keep their number format. On a CPU in bfloat16, and in int4 on NVIDIA GPUs
from Ampere on, torch's own kernels compute the products. Elsewhere plain torch does, and a compiler fuses the
conversion with the product; without a compiler, each product first writes the converted matrix and is slower
than an unquantized one.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from voxcli.engines.voxtral.device.formats import ROUNDED_VALUES, Format
from voxcli.engines.voxtral.runtime import int4
from voxcli.engines.voxtral.runtime.text_model import TextModel, fused_parts
from voxcli.errors import ConfigError

MATRICES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
DTYPES: dict[Format, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


class ByteLinear(nn.Module):
    """A linear map without a bias, its weight in 8 bits with one scale a row."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, form: Literal["int8", "fp8"]) -> None:
        """Quantize a weight, (out, in), with one scale per row."""
        super().__init__()
        parts = torch.split(weight, max(1, ROUNDED_VALUES // weight.shape[1]))
        rounded, scales = zip(*(_rounded_rows(part, form) for part in parts), strict=True)
        self.register_buffer("weight", torch.cat(rounded))
        self.register_buffer("scale", torch.cat(scales))
        self._has_kernel = form == "int8" and weight.device.type == "cpu" and weight.dtype is torch.bfloat16

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (n, out), of inputs, (n, in)."""
        if self._has_kernel:
            return torch._weight_int8pack_mm(inputs, self.weight, self.scale)
        return F.linear(inputs, self.weight.to(inputs.dtype)) * self.scale


def _rounded_rows(weight: torch.Tensor, form: Literal["int8", "fp8"]) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(1).float().clamp(min=1e-12) / LARGEST[form]
    scaled = weight.float() / scale[:, None]
    rounded = scaled.round() if form == "int8" else scaled
    return rounded.to(DTYPES[form]), scale.to(weight.dtype)


@torch.no_grad()
def linear(weight: torch.Tensor, form: Format) -> nn.Module:
    """Return a linear map with this weight, (out, in), in a format.

    Raises:
        ModelError: the format does not support a matrix of this shape.
    """
    if form == "none":
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        return plain
    return int4.linear(weight) if form == "int4" else ByteLinear(weight, form)


def check(form: Format, device: torch.device) -> None:
    """Raise ConfigError if a device does not support a format."""
    if form == "fp8" and device.type == "mps":
        raise ConfigError("Apple's GPUs do not support fp8", hint="--quantize int8")


@torch.no_grad()
def quantize(text: TextModel, form: Format) -> list[str]:
    """Quantize a loaded text model in place; `layer_loader` quantizes while it loads.

    transformers' own forward pass no longer works afterwards.

    Returns:
        The full names of the quantized matrices.

    Raises:
        ConfigError: the device does not support the format.
        ModelError: the format does not support matrices of these shapes.
    """
    check(form, text.device)
    for owner, name in fused_parts(text.modules):
        delattr(owner, name)
    done = []
    for number, layer in enumerate(text.modules.layers):
        for path in MATRICES:
            part, _, name = path.partition(".")
            owner = getattr(layer, part)
            setattr(owner, name, linear(getattr(owner, name).weight, form))
            done.append(f"model.language_model.layers.{number}.{path}")
    text.refresh()
    return done
