"""Which matrices are quantized, how close the results stay, and how much memory it saves."""

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_voxtral as tiny
from voxcli.engines.voxtral.device import formats
from voxcli.errors import ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mistral_common")
int4 = pytest.importorskip("voxcli.engines.voxtral.runtime.int4")
quantization = pytest.importorskip("voxcli.engines.voxtral.runtime.quantization")
from benchmarks.checks.reference import Reference  # noqa: E402 - needs torch
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampling  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more
FORMATS = ["int8", "fp8", "int4"]
BYTES = ["int8", "fp8"]
PROMPT = [1, 3, 300, 400, 500, 600, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("checkpoint"), window_seconds=2)


@pytest.fixture
def model(checkpoint: Path) -> Any:
    return transformers.VoxtralForConditionalGeneration.from_pretrained(checkpoint, local_files_only=True).eval()


def logits(model: SharedModel) -> Any:
    """Return the logits of the token after the prompt."""
    with torch.inference_mode():
        hidden = model.text.prefill(model.embed(PROMPT), 0, model.text.allocate(64))
        return model.text.head(hidden)


def reply(model: SharedModel, tokens: int) -> list[int]:
    decoder = Decoder(model, capacity=64)
    decoder.prefill(PROMPT)
    return list(decoder.stream(Sampling(tokens, frozenset()), threading.Event()))


@pytest.mark.parametrize(("form", "closeness"), [("int8", 0.999), ("fp8", 0.97), ("int4", 0.75)])
def test_logits_stay_close(model: Any, form: Any, closeness: float) -> None:
    shared = SharedModel(model)
    before = logits(shared)
    shared.quantize(form)
    after = logits(shared)
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > closeness
    assert not torch.equal(before, after)
    assert len(reply(shared, 8)) == 8


@pytest.mark.parametrize("form", FORMATS)
def test_only_the_matrices_of_the_text_layers_are_quantized(model: Any, form: Any) -> None:
    shared = SharedModel(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    done = shared.quantize(form)
    assert done[:4] == [f"model.language_model.layers.0.{name}" for name in quantization.MATRICES]
    found = {
        name for name, part in model.named_modules() if isinstance(part, quantization.ByteLinear | int4.Int4Linear)
    }
    assert found == set(done)
    kept = dict(model.named_parameters())
    assert not any("_proj" in name for name in kept if name.startswith("model.language_model.layers."))
    for name in (
        "model.audio_tower.",
        "model.multi_modal_projector.",
        "lm_head.",
        "model.language_model.embed_tokens.",
    ):
        mine = [each for each in kept if each.startswith(name)]
        assert mine
        assert all(torch.equal(kept[each], before[each]) for each in mine)
    assert all(weight.dtype == torch.float32 for weight in kept.values())


@pytest.mark.parametrize(("form", "share"), [("int8", 0.3), ("fp8", 0.3), ("int4", 0.18)])
def test_the_weights_need_an_eighth_or_a_quarter_of_what_they_needed(model: Any, form: Any, share: float) -> None:
    def layer_bytes() -> int:
        layers = model.model.language_model.layers
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in (*layers.parameters(), *layers.buffers())
        }
        return sum(storages.values())

    shared = SharedModel(model)
    before = layer_bytes()
    shared.quantize(form)
    assert layer_bytes() < share * before  # from 4 bytes a weight to 1 or a half, scales and norms beside them


@pytest.mark.parametrize("form", FORMATS)
def test_the_weights_take_as_much_as_was_said(model: Any, form: Any) -> None:
    parameters = sum(weight.numel() for weight in model.parameters())
    SharedModel(model).quantize(form)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    assert sum(held.values()) == formats.stored_bytes(model.config, parameters, 4, form)


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_those_of_transformers_with_quantized_weights(checkpoint: Path, form: Any, dtype: Any) -> None:
    voxtral = transformers.VoxtralForConditionalGeneration
    loaded = voxtral.from_pretrained(checkpoint, local_files_only=True, dtype=getattr(torch, dtype)).eval()
    model, reference = SharedModel(loaded), Reference(checkpoint, "cpu", dtype)
    model.quantize(form)
    reference.quantize(form)
    expected = reference.model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    torch.testing.assert_close(logits(model), expected, atol=1e-3 if dtype == "float32" else 0.5, rtol=0.01)
    assert max(reference.gaps(PROMPT, reply(model, 16))) <= reference.tolerance


@pytest.mark.parametrize("form", BYTES)
def test_rows_of_any_size_are_rounded_to_the_nearest_step(form: Any) -> None:
    weight = (
        torch.randn(5, 64, generator=torch.Generator().manual_seed(2)) * torch.tensor([1e-6, 1, 1e3, 0, 1])[:, None]
    )
    linear = quantization.ByteLinear(weight, form)
    restored = linear.weight.float() * linear.scale[:, None]
    step = weight.abs().amax(1, keepdim=True) * (0.5 / 127 if form == "int8" else 2**-4)
    assert ((restored - weight).abs() <= step * 1.001).all()
    assert torch.isfinite(linear(torch.ones(2, 64))).all()


def test_the_kernel_for_cpus_computes_what_the_converted_matrix_does() -> None:
    numbers = torch.Generator().manual_seed(3)
    weight, inputs = (torch.randn(rows, 256, generator=numbers).bfloat16() for rows in (64, 20))
    linear = quantization.ByteLinear(weight, "int8")
    plain = torch.nn.functional.linear(inputs, linear.weight.bfloat16()) * linear.scale
    torch.testing.assert_close(linear(inputs), plain, atol=0.2, rtol=0.02)
    torch.testing.assert_close(linear(inputs[:1]), plain[:1], atol=0.2, rtol=0.02)


def test_apples_gpus_do_not_know_fp8() -> None:
    class Text:
        device = torch.device("mps")

    with pytest.raises(ConfigError, match="do not support fp8") as caught:
        quantization.quantize(Text(), "fp8")
    assert "int8" in caught.value.hint
