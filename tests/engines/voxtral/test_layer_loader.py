"""Layers that are quantized while they are read: equal matrices from any files, and errors for missing weights."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_voxtral as tiny
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytest.importorskip("mistral_common")
layers = pytest.importorskip("voxcli.engines.voxtral.layer_loader")
loading = pytest.importorskip("voxcli.engines.voxtral.loader")
quantization = pytest.importorskip("voxcli.engines.voxtral.runtime.quantization")
from voxcli.engines.voxtral.device.hardware import Accelerator, Hardware  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampling  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more
FORMATS = ["int8", "fp8", "int4"]
PROMPT = [1, 3, 300, 400, 500, 600, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("checkpoint"), window_seconds=2)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def read(folder: Path, form: Any) -> Any:
    """Return the model as it is loaded on a CPU, in bfloat16."""
    none = Accelerator(problem="there is none", hint="use --device cpu")
    hardware = Hardware(none, none, None)
    return loading.load(folder, "cpu", 2048, 8, pytest.fail, look=lambda: hardware, quantize=form).model


def tokens(model: Any) -> list[int]:
    decoder = Decoder(SharedModel(model), capacity=64)
    decoder.prefill(PROMPT)
    return list(decoder.stream(Sampling(8, frozenset()), threading.Event()))


def quantized_afterwards(folder: Path, form: Any) -> Any:
    voxtral = transformers.VoxtralForConditionalGeneration
    model = voxtral.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16).eval()
    SharedModel(model).quantize(form)
    return model


@pytest.mark.parametrize("form", FORMATS)
def test_all_is_as_if_it_had_been_quantized_afterwards(checkpoint: Path, form: Any) -> None:
    found, expected = read(checkpoint, form), quantized_afterwards(checkpoint, form)
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in found.state_dict().items())
    assert {weight.dtype for weight in found.parameters()} == {weight.dtype for weight in expected.parameters()}
    assert found.config.text_config.num_hidden_layers == 2
    assert tokens(found) == tokens(expected)


@pytest.mark.parametrize("form", FORMATS)
def test_buffers_that_no_file_has_are_right(checkpoint: Path, form: Any) -> None:
    found, expected = read(checkpoint, form), quantized_afterwards(checkpoint, form)
    text, other = found.model.language_model, expected.model.language_model
    assert text.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(text.rotary_emb.inv_freq, other.rotary_emb.inv_freq)
    assert found.model.audio_tower.embed_positions.weight.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    weights = change(safetensors_torch.load_file(path))
    safetensors_torch.save_file(weights, path, metadata={"format": "pt"})


def shard(folder: Path) -> None:
    """Cut the weights into three files, so that layers lie in several of them."""
    path = folder / "model.safetensors"
    weights = safetensors_torch.load_file(path)
    index = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(weights)}
    for file in set(index.values()):
        part = {name: weights[name] for name in weights if index[name] == file}
        safetensors_torch.save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    path.unlink()


def name_as_modules(folder: Path) -> None:
    def renamed(name: str) -> str:
        if name.startswith("language_model.model."):
            return "model.language_model." + name.removeprefix("language_model.model.")
        return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"

    rewrite(folder, lambda weights: {renamed(name): weight for name, weight in weights.items()})


@pytest.mark.parametrize("change", [shard, name_as_modules])
def test_weights_in_other_files_and_under_other_names_are_found(folder: Path, change: Callable[[Path], None]) -> None:
    expected = read(folder, "int8").state_dict()
    change(folder)
    found = read(folder, "int8").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (lambda name, weight: None if ".1.mlp.up_proj" in name else weight, "1 weights, such as .*1.mlp.up_proj"),
        (
            lambda name, weight: weight[:-1] if "model.layers.0.self_attn.k_" in name else weight,
            "1 weights, such as .*k_proj",
        ),
        (lambda name, weight: None if "model.layers.1." in name else weight, "9 weights, such as .*layers.1"),
        (lambda name, weight: None if "embed_tokens" in name else weight, "1 weights, such as .*embed_tokens"),
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_told(
    folder: Path, change: Callable[[str, Any], Any], lacks: str
) -> None:
    def changed(weights: dict[str, Any]) -> dict[str, Any]:
        made = {name: change(name, weight) for name, weight in weights.items()}
        return {name: weight.contiguous() for name, weight in made.items() if weight is not None}

    rewrite(folder, changed)
    with pytest.raises(ModelError, match=f"lacks {lacks}") as caught:
        read(folder, "int4")
    assert caught.value.hint


def test_a_text_model_that_is_not_computed_is_refused_before_its_layers_are_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_bias"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="its projections have biases"):
        read(folder, "int8")
