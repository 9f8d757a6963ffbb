"""Linear maps with weights in 4 bits; groups of 64 values share a scale and a zero.

A code from 0 to 15 stands for `(code - 8) * scale + zero`. In bfloat16, torch has kernels for the products
on CPUs and on NVIDIA GPUs from Ampere on; elsewhere the matrix is restored before the product. Products read
no value back, so they can be captured.
"""

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from voxcli.engines.voxtral.device.formats import GROUP, ROUNDED_VALUES
from voxcli.errors import ModelError

RESTORED_VALUES = 1 << 23  # values restored at once, 16 MB in bfloat16: more take more memory, fewer more kernels
CPU_ROWS = 64  # the kernel for CPUs packs blocks of this many rows
BLOCK = 32  # columns of a row that the GPU kernel's layout stores together, in an order of its own
# From this many tokens on, a GPU restores the whole matrix first: its kernel restores it again for each 16 tokens.
# Inferred from the times on an A6000 in torchao/prototype/hqq/README.md of pytorch/ao.
MANY_TOKENS = 192


class Int4Linear(nn.Module):
    """A linear map without a bias, its weight in 4 bits. Restores the matrix for each product, on any device."""

    weight: torch.Tensor
    scales: torch.Tensor  # scales and zeros, (groups, out, 2)

    def __init__(self, weight: torch.Tensor) -> None:
        """Quantize a weight, (out, in), with a scale and a zero per group.

        Raises:
            ModelError: the rows do not divide into groups.
        """
        super().__init__()
        columns = weight.shape[1]
        if columns % GROUP:
            raise ModelError(
                f"a matrix with rows of {columns} values can't be stored in int4, which takes groups of {GROUP}",
                hint="--quantize int8",
            )
        codes, scales = rounded(weight)
        self.register_buffer("weight", self.packed(codes))
        self.register_buffer("scales", scales)

    def packed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes, (out, in / 2), in the layout of the product's kernel."""
        return codes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (n, out), of inputs, (n, in)."""
        return _product(inputs, self.weight, self.scales)


class CpuInt4Linear(Int4Linear):
    """An `Int4Linear` with torch's kernel for CPUs."""

    def packed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes, (out, in / 2), in blocks of rows, the layout for the instructions of this CPU."""
        rows = max(1, ROUNDED_VALUES // (2 * codes.shape[1]) // CPU_ROWS) * CPU_ROWS
        convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        return torch.cat([convert(unpacked(part).int(), 2) for part in torch.split(codes, rows)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (n, out), of inputs, (n, in)."""
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, self.weight, GROUP, self.scales)
        return product


class GpuInt4Linear(Int4Linear):
    """An `Int4Linear` with torch's kernel for NVIDIA GPUs, which is fast for few tokens."""

    order: torch.Tensor | None

    def __init__(self, weight: torch.Tensor) -> None:
        """Quantize a weight, (out, in), as `Int4Linear` does."""
        super().__init__(weight)
        order = block_order(weight.device, 2 * self.weight.shape[3])
        self.register_buffer("order", order)

    def packed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes, (out, in / 2), in the tiles of tensor cores, (out / 8, in / (16 * inner), 32, inner / 2)."""
        inner = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (8 * tiles) == 0)
        tiled: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack(codes, inner)
        return tiled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs, (n, out), of inputs, (n, in)."""
        if len(inputs) < MANY_TOKENS or self.order is None:
            product: torch.Tensor = torch.ops.aten._weight_int4pack_mm(inputs, self.weight, GROUP, self.scales)
            return product
        blocks = inputs.view(len(inputs), -1, BLOCK).index_select(2, self.order)
        return _product(blocks.view_as(inputs), untiled(self.weight), self.scales)


@torch.no_grad()
def linear(weight: torch.Tensor) -> Int4Linear:
    """Return a linear map with this weight, (out, in), in 4 bits, with the fastest correct kernel of its device."""
    return _best(weight.device, weight.dtype)(weight)


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of a weight, two per byte, (out, in / 2), and its scales and zeros, (groups, out, 2)."""
    rows = max(1, ROUNDED_VALUES // weight.shape[1])
    codes, scales = zip(*(_rounded_rows(part) for part in torch.split(weight, rows)), strict=True)
    return torch.cat(codes), torch.cat(scales, 1)


def _rounded_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = weight.float().view(len(weight), -1, GROUP)
    low, high = values.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / 15).to(weight.dtype)
    zero = torch.where(scale > 0, low + 8 * scale.float(), low).to(weight.dtype)
    scale = torch.where(scale > 0, scale, 1)  # Equal values of a group are all its zero.
    codes = ((values - zero.float()) / scale.float() + 8).round().clamp(0, 15).to(torch.uint8).view(weight.shape)
    return codes[:, ::2] << 4 | codes[:, 1::2], torch.cat([scale, zero], -1).transpose(0, 1).contiguous()


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    """Return codes one per byte, (out, in), from codes two per byte, (out, in / 2)."""
    return torch.stack((codes >> 4, codes & 15), -1).flatten(1)


def restored(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return a weight, (out, in), from its codes, (out, in / 2), and scales, rounded once, as in the kernels."""
    values = (unpacked(codes).view(torch.int8) - 8).to(scales.dtype).view(len(codes), -1, GROUP)
    scale, zero = torch.split(scales.transpose(0, 1), 1, -1)
    return torch.addcmul(zero, values, scale).flatten(1)


def _product(inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows = max(1, RESTORED_VALUES // (2 * codes.shape[1]))
    parts = zip(torch.split(codes, rows), torch.split(scales, rows, 1), strict=True)
    return torch.cat([F.linear(inputs, restored(*part)) for part in parts], -1)


def untiled(weight: torch.Tensor) -> torch.Tensor:
    """Return codes, (out, in / 2), from tiles for tensor cores, with the columns of each block in `block_order`."""
    outer, tiles, _, words = weight.shape
    lanes = weight.view(outer, tiles, 8, 4, words).permute(0, 2, 1, 4, 3)
    return lanes.reshape(8 * outer, tiles * words * 4).view(torch.uint8)


@cache
@torch.no_grad()
def block_order(device: torch.device, inner: int) -> torch.Tensor | None:
    """Return the column within its block of each code in `untiled`, (32,), found by tiling known codes.

    None for a layout of tiles that `untiled` does not support; all products then use the kernel.

    Args:
        inner: tiles along the columns, as `GpuInt4Linear.packed` chooses them.
    """
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(16 * BLOCK), indexing="ij")

    def back(codes: torch.Tensor) -> torch.Tensor:
        codes = codes.to(torch.uint8).to(device)
        tiled = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], inner)
        return unpacked(untiled(tiled)).cpu().long()

    found = back(columns % 16) + 16 * back(columns % BLOCK // 16)
    order = found[0, :BLOCK]
    is_known = torch.equal(back(rows), rows) and torch.equal(back(columns // BLOCK), columns // BLOCK)
    is_same = torch.equal(found, order.repeat(16).expand(8, -1))
    return order.to(device) if is_known and is_same and len(set(order.tolist())) == BLOCK else None


@cache
def _best(device: torch.device, dtype: torch.dtype) -> type[Int4Linear]:
    """Return the class with the fastest kernel for a device and a number format, after a trial of its results."""
    if dtype is not torch.bfloat16:
        return Int4Linear
    if device.type == "cpu" and _is_right(CpuInt4Linear, device):
        return CpuInt4Linear
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0):
        return GpuInt4Linear if _is_right(GpuInt4Linear, device) else Int4Linear
    return Int4Linear


def _is_right(kind: type[Int4Linear], device: torch.device) -> bool:
    """Return whether products of few and of many tokens equal those with the restored matrix."""
    numbers = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(rows, 4 * GROUP, generator=numbers).to(device, torch.bfloat16) for rows in (CPU_ROWS, MANY_TOKENS)
    )
    plain = Int4Linear(weight)
    try:
        found = kind(weight)
        return all(torch.allclose(found(each), plain(each), atol=0.25, rtol=0.02) for each in (inputs[:1], inputs))
    except (RuntimeError, AttributeError):  # this build of torch has no such kernel
        return False
