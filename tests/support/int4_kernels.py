"""torch's int4 kernels for NVIDIA GPUs, computed on a CPU in the layout that their source describes.

aten/src/ATen/native/cuda/int4mm.cu: a weight (n, k) lies in words of 8 codes, (n / 8, k / (16 inner), 32, inner / 2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _places(rows: int, columns: int, inner: int) -> tuple[tuple[Any, ...], Any]:
    """Return where each code is, (rows, columns): the index of its word, and its first bit in there."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    within = column % (16 * inner)
    byte = within % 16 // 2
    lane = 4 * (row % 8) + byte % 4
    value = byte // 4 + 2 * (within % 32 // 16)
    return (row // 8, column // (16 * inner), lane, within // 32), 4 * value + 16 * (column % 2)


def _convert(codes: Any, inner: int) -> Any:
    values = torch.stack((codes >> 4, codes & 15), -1).flatten(1).long()
    rows, columns = values.shape
    index, shift = _places(rows, columns, inner)
    words = torch.zeros(rows // 8, columns // (16 * inner), 32, inner // 2, dtype=torch.long)
    words.index_put_(index, values << shift, accumulate=True)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _product(inputs: Any, weight: Any, group: int, scales: Any) -> Any:
    assert inputs.dtype == scales.dtype == torch.bfloat16
    assert inputs.is_contiguous()
    index, shift = _places(scales.shape[1], inputs.shape[1], 2 * weight.shape[3])
    codes = weight.long()[index] >> shift & 15
    scale, zero = scales.float().repeat_interleave(group, 0).transpose(0, 1).unbind(-1)
    restored = ((codes - 8) * scale + zero).bfloat16()
    return (inputs.float() @ restored.float().T).bfloat16()


@contextmanager
def emulated(convert: Any = _convert, product: Any = _product) -> Iterator[None]:
    """Let these functions be the kernels on this machine's CPU."""
    libraries: Any = torch.library
    library = libraries.Library("aten", "IMPL")
    library.impl("_convert_weight_to_int4pack", convert, "CPU")
    library.impl("_weight_int4pack_mm", product, "CPU")
    try:
        yield
    finally:
        library._destroy()


def convert_in_another_layout(codes: Any, inner: int) -> Any:
    """Return words as a kernel would that lays its lanes out in another order."""
    return _convert(codes, inner).flip(2)
