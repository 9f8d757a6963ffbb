"""Our forward pass of the text model against transformers' own, and what it refuses."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
llama = pytest.importorskip("voxcli.engines.voxtral.runtime.text_model")

torch.set_num_threads(1)  # a model this small is slower with more
# Logits reach 10. In float32, transformers' own are up to 1.2e-4 away from those in float64, more on some processors
# than on others.
ROUNDING = 5e-4

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "a head a key": {"num_key_value_heads": 4},
    "one key for all": {"num_key_value_heads": 1},
    "heads wider than the model": {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48},
    "llama3 rotation": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    "linear rotation": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "yarn rotation": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def text_model(**options: Any) -> Any:
    """Return a random text model where a Voxtral model has it."""
    given = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-5,
    }
    torch.manual_seed(3)
    causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**given, **options})).eval()
    for name, weight in causal.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return SimpleNamespace(
        model=SimpleNamespace(language_model=causal.model),
        lm_head=causal.lm_head,
        config=SimpleNamespace(text_config=causal.config),
        causal=causal,
    )


def ids(count: int) -> Any:
    return torch.randint(300, (count,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str) -> None:
    """Prefilled in uneven parts, then step by step, over exact lengths and over a bucket in turn."""
    model, tokens = text_model(**SHAPES[name]), ids(70)
    expected = model.causal(input_ids=tokens[None]).logits[0]
    ours = llama.TextModel(model)
    cache = ours.allocate(80)
    start = 0
    for length in (1, 40, 9):
        last = ours.prefill(ours.embed(tokens[start : start + length]), start, cache)
        start += length
        torch.testing.assert_close(ours.head(last), expected[start - 1], atol=ROUNDING, rtol=1e-5)
    for place in range(start, 70):
        extent, masked = (80, True) if place % 2 else (place + 1, False)
        logits = ours.step(tokens[place].view(1, 1), cache.positions_from(place, 1)[0], cache, extent, masked=masked)
        torch.testing.assert_close(logits, expected[place], atol=ROUNDING, rtol=1e-5)
        assert logits.argmax() == expected[place].argmax()


def test_a_long_stretch_after_others_is_attended_to_in_blocks() -> None:
    model, tokens = text_model(), ids(700)
    expected = model.causal(input_ids=tokens[None]).logits[0]
    ours = llama.TextModel(model)
    cache = ours.allocate(700)
    start = 0
    for length in (3, 128, 129, 400, 40):
        last = ours.prefill(ours.embed(tokens[start : start + length]), start, cache)
        start += length
        torch.testing.assert_close(ours.head(last), expected[start - 1], atol=ROUNDING, rtol=1e-5)
    cached = cache.memory.clone()
    ours.prefill(ours.embed(tokens), 0, cache)
    torch.testing.assert_close(cached, cache.memory, atol=1e-4, rtol=1e-4)


def test_transformers_own_forward_works_on_with_the_same_memory() -> None:
    model, tokens = text_model(), ids(20)
    before = model.causal(input_ids=tokens[None]).logits
    parameters = {weight.data_ptr() for weight in model.causal.parameters()}
    first, second = llama.TextModel(model), llama.TextModel(model)
    torch.testing.assert_close(model.causal(input_ids=tokens[None]).logits, before)
    attention = model.causal.model.layers[0].self_attn
    assert attention.q_proj.weight.data_ptr() == attention.qkv_proj.weight.data_ptr()
    assert len({weight.untyped_storage().data_ptr() for weight in model.causal.parameters()}) < len(parameters)
    caches = first.allocate(32), second.allocate(32)
    assert torch.equal(
        first.prefill(first.embed(tokens), 0, caches[0]), second.prefill(second.embed(tokens), 0, caches[1])
    )


def test_half_precision_is_as_close_as_it_can_be() -> None:
    model, tokens = text_model(initializer_range=0.1), ids(30)
    model.causal.to(torch.bfloat16)
    expected = model.causal(input_ids=tokens[None]).logits[0, -1]
    ours = llama.TextModel(model)
    found = ours.head(ours.prefill(ours.embed(tokens), 0, ours.allocate(32)))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of the type dynamic"),
    ],
)
def test_what_it_does_not_compute_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        llama.TextModel(text_model(**options))
    assert caught.value.hint


def test_another_family_is_refused() -> None:
    config = transformers.MistralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=50
    )
    other = transformers.MistralModel(config)
    with pytest.raises(ModelError, match="it is a MistralModel"):
        llama.TextModel(
            SimpleNamespace(model=SimpleNamespace(language_model=other), config=SimpleNamespace(text_config=config))
        )


def test_projections_that_were_replaced_are_refused() -> None:
    model = text_model()
    model.causal.model.layers[1].mlp.up_proj = torch.nn.Bilinear(4, 4, 4)
    with pytest.raises(ModelError, match="not plain matrices"):
        llama.TextModel(model)
