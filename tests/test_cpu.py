"""Products through oneDNN: what torch computes, in the last bits but for rounding, wherever they take its place."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
cpu = pytest.importorskip("voxcli.engines.cpu")
F = torch.nn.functional

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of torch comes without oneDNN", allow_module_level=True)


@pytest.fixture(autouse=True)
def inference() -> Any:
    torch.manual_seed(7)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("shape", [(96,), (1, 96), (200, 96), (2, 300, 96)])
@pytest.mark.parametrize("outputs", [160, 3000])  # a token at a time, torch computes the one and oneDNN the other
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_linear_maps_of_any_shape(shape: tuple[int, ...], outputs: int, biased: bool) -> None:
    inputs, weight = torch.randn(shape), torch.randn(outputs, 96)
    bias = torch.randn(outputs) if biased else None
    for compute in (cpu.product, cpu.linear):
        torch.testing.assert_close(compute(inputs, weight, bias), F.linear(inputs, weight, bias), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("tokens", "cached"), [(70, 70), (70, 500), (900, 1000), (70, 5000), (600, 2600)])
def test_attention_to_all_before_a_token(heads: int, kv_heads: int, tokens: int, cached: int) -> None:
    queries = torch.randn(heads, tokens, 16)
    keys, values = torch.randn(2, kv_heads, cached, 16)
    seen = torch.ones(tokens, cached, dtype=torch.bool).tril(cached - tokens)
    mask = torch.full((tokens, tokens), float("-inf")).triu_(1)
    usual = F.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=seen, enable_gqa=True)[0]
    torch.testing.assert_close(cpu.attention(queries, keys, values, mask), usual, atol=1e-5, rtol=1e-5)


def test_attention_of_all_to_all_in_a_scale() -> None:
    queries, keys, values = torch.randn(3, 2, 130, 16)
    usual = F.scaled_dot_product_attention(queries[None], keys[None], values[None], scale=1.0)[0]
    torch.testing.assert_close(cpu.attention(queries, keys, values, scale=1.0), usual, atol=1e-5, rtol=1e-5)


class Attending(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch may be missing
    """A map, and attention in some way."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.linear, self.options = torch.nn.Linear(32, 96), options

    def forward(self, inputs: Any) -> Any:
        parts = self.linear(inputs).view(2, -1, 2, 3, 16).permute(3, 0, 2, 1, 4)
        return F.scaled_dot_product_attention(*parts, **self.options)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]  # likewise
    """Notes which operators are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"scale": 1.0}, True),
        ({"is_causal": True}, False),
        ({"attn_mask": torch.ones(400, 400, dtype=torch.bool).tril()}, False),
    ],
)
def test_modules_compute_the_same_within_products(options: dict[str, Any], taken: bool) -> None:
    module, inputs = Attending(**options), torch.randn(2, 400, 32)
    with Seen() as seen, cpu.Products():
        found = module(inputs)
    torch.testing.assert_close(found, module(inputs), atol=1e-5, rtol=1e-5)
    assert seen.count("scaled_dot_product") == (0 if taken else 1)
    assert seen.count("_linear_pointwise") == (1 + 2 * 2 * 2 if taken else 1)  # clips, heads, products


def test_other_formats_and_a_single_query_are_left_to_torch() -> None:
    with Seen() as seen, cpu.Products():
        Attending().double()(torch.randn(2, 400, 32, dtype=torch.float64))
        F.scaled_dot_product_attention(*torch.randn(3, 1, 2, 1, 16))
    assert seen.count("_linear_pointwise") == 0


def test_only_float32_on_a_cpu_is_ever_faster() -> None:
    assert not cpu.is_faster(torch.empty(2, dtype=torch.bfloat16))
    assert not cpu.is_faster(torch.empty(2, device="meta"))


def test_a_hastened_map_keeps_its_results_and_its_hooks() -> None:
    module, inputs, calls = torch.nn.Linear(256, 256), torch.randn(100, 256), []
    module.register_forward_hook(lambda *_: calls.append("called"))
    expected = module(inputs)
    cpu.hasten(module)
    assert isinstance(module, cpu.Linear) is cpu.is_faster(inputs)
    torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert calls == ["called", "called"]
