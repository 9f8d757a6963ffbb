"""Folders that are no whole Voxtral checkpoint: each is refused in one line with a hint, before or in loading."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxcli.engines.voxtral.checkpoint import files
from voxcli.errors import ModelError

pytest.importorskip("torch")
voxtral = pytest.importorskip("voxcli.engines.voxtral.engine")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _set_config(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _drop_a_weight(path: Path) -> None:
    import safetensors.torch

    weights = safetensors.torch.load_file(path)
    del weights["language_model.lm_head.weight" if "language_model.lm_head.weight" in weights else "lm_head.weight"]
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def _index(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))


def _to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no checkpoint at"),
    "no config": (lambda f: (f / "config.json").unlink(), "not a Voxtral checkpoint: it has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json .* damaged"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json .* damaged"),
    "other model": (
        lambda f: _set_config(f / "config.json", model_type="llama"),
        "not a Voxtral checkpoint: .*'llama'",
    ),
    "realtime": (lambda f: _set_config(f / "config.json", model_type="voxtral_realtime"), "only transcribes"),
    "tts": (lambda f: _set_config(f / "config.json", model_type="voxtral_tts"), "only speaks"),
    "gguf": (lambda f: (f / "model.safetensors").rename(f / "voxtral.gguf"), "holds GGUF files"),
    "no tokenizer": (lambda f: (f / "tekken.json").unlink(), "lacks tekken.json"),
    "broken tokenizer": (lambda f: (f / "tekken.json").write_text("{}"), "can't load the checkpoint"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "lacks preprocessor_config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickle": (_to_pickle, "pickled files can run code"),
    "cut weights": (lambda f: _cut(f / "model.safetensors"), "damaged: it has .* bytes instead of"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "header is cut off"),
    "no header": (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{}{}"), "can't be read"),
    "missing shard": (lambda f: _index(f, "model-1.safetensors"), "lacks model-1.safetensors"),
    "shard elsewhere": (lambda f: _index(f, "../../etc/passwd"), "lacks passwd"),
    "index without map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "lists no weights"),
    "missing weight": (lambda f: _drop_a_weight(f / "model.safetensors"), "lacks 1 weights, such as lm_head"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_folder_that_is_no_whole_checkpoint(
    tiny_voxtral: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_voxtral, folder)
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        voxtral.VoxtralEngine.load(
            folder,
            name="tiny",
            device="cpu",
            max_reply_tokens=8,
            temperature=0.0,
            top_p=1.0,
            context_tokens=4096,
            notice=pytest.fail,
        )
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_the_size_is_read_from_the_headers(tiny_voxtral: Path) -> None:
    parameters = files.inspect(tiny_voxtral).parameters
    weights = (tiny_voxtral / "model.safetensors").stat().st_size
    assert weights - 30_000 < parameters * 4 < weights, "float32, and a header"
