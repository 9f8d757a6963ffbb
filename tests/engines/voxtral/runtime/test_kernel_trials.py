"""Operations that a device does wrongly, slowly or not at all, on a CPU that plays such a device."""

from collections.abc import Callable
from typing import Any

import pytest

from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
attention = pytest.importorskip("voxcli.engines.voxtral.runtime.attention")
trials = pytest.importorskip("voxcli.engines.voxtral.runtime.kernel_trials")

CPU = torch.device("cpu")


def missing(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("aten::index_copy.out is not implemented for this device")


def wrong(queries: Any, keys: Any, values: Any, attn_mask: Any = None) -> Any:
    """Attention that is corrupt with few queries and many keys."""
    found = attention.fused(queries, keys, values, attn_mask=attn_mask)
    return found * 1.5 if queries.shape[-2] <= 8 and keys.shape[-2] >= 1024 else found


def timed(**seconds: float) -> Callable[[Callable[[], object]], float]:
    """Return a clock by which ways take so long, in the order in which they are tried."""
    left = list(seconds.values())
    return lambda _work: left.pop(0)


def write(ways: dict[str, Any], seconds: Any = None) -> Any:
    return trials.tried_write(2, 16, torch.bfloat16, CPU, ways, seconds)


def kernel(ways: dict[str, Any], seconds: Any = None, dtype: Any = torch.bfloat16) -> Any:
    return trials.tried_kernel(4, 2, 32, dtype, CPU, ways, seconds)


def test_the_first_way_is_taken_where_it_is_right_and_fast() -> None:
    assert write(trials.WRITES, timed(copy=1.0, put=1.0, slices=0.9)) is trials.index_copy
    assert kernel(trials.KERNELS, timed(fused=1.0, plain=1.0)) is attention.fused


def test_a_slow_way_is_left_out() -> None:
    assert write(trials.WRITES, timed(copy=100.0, put=1.0, slices=1.0)) is trials.index_put
    assert write(trials.WRITES, timed(copy=100.0, put=80.0, slices=1.0)) is trials.slices
    assert kernel(trials.KERNELS, timed(fused=9.0, plain=1.0)) is attention.plain


def test_a_missing_or_wrong_way_is_left_out() -> None:
    assert write({"copy": missing, "put": trials.index_put}) is trials.index_put
    assert write({"copy": lambda *_: None, "slices": trials.slices}) is trials.slices
    assert kernel({"fused": wrong, "plain": attention.plain}) is attention.plain
    assert kernel({"fused": missing, "plain": attention.plain}) is attention.plain


def test_where_all_are_wrong_it_is_said() -> None:
    with pytest.raises(ModelError, match="attention") as caught:
        kernel({"fused": wrong})
    assert "--device cpu" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_way_is_right_on_a_cpu(dtype: Any) -> None:
    for name, way in trials.KERNELS.items():
        assert kernel({name: way}, dtype=dtype) is way
    for name, way in trials.WRITES.items():
        assert trials.tried_write(2, 16, dtype, CPU, {name: way}) is way


def test_other_devices_than_apples_are_not_tried() -> None:
    shape = 8, 2, 16
    assert trials.attention_kernel(*shape, torch.float32, CPU) is attention.fused
    assert trials.cache_write(2, 16, torch.float32, CPU) is trials.index_copy


@pytest.mark.parametrize("start", [0, 5, 200])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_attention_of_a_stretch_is_the_same_with_both_kernels(start: int, count: int) -> None:
    torch.manual_seed(0)
    queries, stored = torch.randn(8, count, 16), torch.randn(2, 2, 600, 16)
    expected = attention.causal(start, count, queries)(queries, stored)
    found = attention.causal(start, count, queries, attention.plain)(queries, stored)
    assert torch.allclose(found, expected, atol=1e-5)
    positions = torch.arange(start, start + count)
    by_mask = attention.masked(queries, *stored, positions).reshape(count, -1)
    assert torch.allclose(by_mask, expected, atol=1e-5)


def test_a_model_replies_the_same_with_the_plain_ways() -> None:
    """As on a device on which all that is fast was left out."""
    voxtral_model = pytest.importorskip("tests.support.tiny_mistral") and pytest.importorskip("benchmarks.random_model")
    model = voxtral_model.open_model("random:tiny", "cpu").float()
    from voxcli.engines.voxtral.runtime.text_model import TextModel

    text = TextModel(model)
    ids = torch.arange(3, 40)
    with torch.inference_mode():
        expected = _logits(text, ids)
        text.kernel, text.write = attention.plain, trials.slices
        found = _logits(text, ids)
    assert torch.allclose(found, expected, atol=1e-4)


def _logits(text: Any, ids: Any) -> Any:
    cache = text.allocate(64)
    hidden = text.prefill(text.embed(ids[:20]), 0, cache)
    text.prefill(text.embed(ids[20:]), 20, cache)
    step = text.step(ids[:1, None], torch.tensor([len(ids)]), cache, len(ids) + 1, masked=False)
    return torch.stack([text.head(hidden), step])
