"""Matrices in 4 bits: how close they are, and that every kernel computes with the same values."""

from collections.abc import Iterator
from typing import Any

import pytest

from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
int4 = pytest.importorskip("voxcli.engines.voxtral.runtime.int4")
from tests.support import int4_kernels  # noqa: E402 - needs torch

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, dtype: Any = torch.float32, seed: int = 1) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def gpu_kernels() -> Iterator[None]:
    int4.block_order.cache_clear()
    with int4_kernels.emulated():
        yield
    int4.block_order.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_to_the_nearest_of_sixteen(dtype: Any) -> None:
    weight = (random(6, 128) * torch.tensor([1e-3, 1, 100, 1, 0, 1])[:, None]).to(dtype)
    weight[3] = 0.01  # all the same
    restored = int4.restored(*int4.rounded(weight)).float()
    groups, rounded = weight.float().view(6, 2, 64), restored.view(6, 2, 64)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    allowed = step * (0.5 if dtype is torch.float32 else 0.56) + groups.abs().amax(-1) * torch.finfo(dtype).eps
    assert ((rounded - groups).abs().amax(-1) <= allowed + 1e-9).all()


def test_many_matrices_of_rows_are_rounded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = random(200, 128), random(3, 128)
    codes, scales = int4.rounded(weight)
    expected = int4.Int4Linear(weight)(inputs)
    monkeypatch.setattr(int4, "ROUNDED_VALUES", 128 * 7)
    monkeypatch.setattr(int4, "RESTORED_VALUES", 128 * 9)
    in_parts = int4.rounded(weight)
    assert torch.equal(in_parts[0], codes)
    assert torch.equal(in_parts[1], scales)
    torch.testing.assert_close(int4.Int4Linear(weight)(inputs), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5, 300])
def test_products_on_a_cpu_are_those_of_the_restored_matrix(dtype: Any, count: int) -> None:
    weight, inputs = random(192, 256, dtype=dtype), random(count, 256, dtype=dtype, seed=2)
    restored = int4.restored(*int4.rounded(weight))
    with torch.inference_mode():
        found = int4.linear(weight)(inputs)
    torch.testing.assert_close(found, inputs @ restored.T, atol=0.2 if dtype is torch.bfloat16 else 0.02, rtol=0.02)


@pytest.mark.parametrize("columns", [64, 128, 192, 512])
@pytest.mark.parametrize("count", [1, 16, 191, 192, 512])
def test_products_with_the_kernel_for_gpus_are_those_of_the_restored_matrix(
    gpu_kernels: None, columns: int, count: int
) -> None:
    weight = random(48, columns, dtype=torch.bfloat16)
    inputs = random(count, columns, dtype=torch.bfloat16, seed=2)
    linear = int4.GpuInt4Linear(weight)
    assert linear.weight.nbytes == weight.nbytes // 4
    with torch.inference_mode():
        found = linear(inputs)
    restored = int4.restored(*int4.rounded(weight))
    torch.testing.assert_close(found, inputs @ restored.T, atol=0.15, rtol=0.02)


def test_many_tokens_are_not_given_to_the_kernel_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def product(inputs: Any, weight: Any, group: int, scales: Any) -> Any:
        counts.append(len(inputs))
        return inputs.new_zeros(len(inputs), scales.shape[1])

    int4.block_order.cache_clear()
    with int4_kernels.emulated(product=product):
        linear = int4.GpuInt4Linear(random(16, 64, dtype=torch.bfloat16))
        for count in (1, 191, 192, 512):
            linear(random(count, 64, dtype=torch.bfloat16))
    int4.block_order.cache_clear()
    assert counts == [1, 191]


def test_an_unknown_layout_is_left_to_its_kernel() -> None:
    int4.block_order.cache_clear()
    with int4_kernels.emulated(convert=int4_kernels.convert_in_another_layout):
        assert int4.block_order(torch.device("cpu"), 8) is None
        assert int4.GpuInt4Linear(random(16, 128, dtype=torch.bfloat16)).order is None
    int4.block_order.cache_clear()


@pytest.mark.parametrize("name", ["Int4Linear", "CpuInt4Linear", "GpuInt4Linear"])
@pytest.mark.parametrize("count", [1, 192])
def test_products_are_compiled_as_one_graph(gpu_kernels: None, name: str, count: int) -> None:
    linear = getattr(int4, name)(random(64, 128, dtype=torch.bfloat16))
    inputs = random(count, 128, dtype=torch.bfloat16, seed=2)
    torch.compiler.reset()
    compiled = torch.compile(linear, backend="eager", fullgraph=True, dynamic=False)
    with torch.inference_mode():
        assert torch.equal(compiled(inputs), linear(inputs))


def test_rows_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ModelError, match="rows of 96 values can't be stored in int4") as caught:
        int4.linear(random(4, 96))
    assert caught.value.hint == "--quantize int8"


def test_torchs_own_checks_of_its_kernels_for_gpus_pass() -> None:
    """Shapes and number formats, as this release of torch expects them on a GPU; nothing is computed."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        codes = torch.empty(256, 64, dtype=torch.uint8, device="cuda")
        tiled = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        assert tiled.shape == (32, 1, 32, 4)
        inputs = torch.empty(3, 128, dtype=torch.bfloat16, device="cuda")
        scales = torch.empty(2, 256, 2, dtype=torch.bfloat16, device="cuda")
        assert torch.ops.aten._weight_int4pack_mm(inputs, tiled, 64, scales).shape == (3, 256)
