"""Names the published models, and tells which kind of model a folder or a repository holds by names and model type.

Reads no files. `catalog` checks what the hub lists, `files` what a folder contains.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from voxcli.errors import ModelError

MODEL_TYPE = "voxtral"  # Type in config.json of a Voxtral that converses.
WEIGHTS = re.compile(
    r"model(-[\w-]+)?\.safetensors"
)  # `consolidated.safetensors` holds the same weights in another format
HINT = "one that converses: --model mini, or: voxcli models pull mini"


@dataclass(frozen=True)
class PublishedModel:
    """A model with a short name. `bytes` is its size on disk, in bfloat16."""

    repo_id: str
    bytes: int
    note: str


KNOWN = {
    "mini": PublishedModel("mistralai/Voxtral-Mini-3B-2507", 9_350_000_000, "4.7 billion parameters, the default"),
    "small": PublishedModel("mistralai/Voxtral-Small-24B-2507", 48_500_000_000, "24.3 billion parameters"),
}


def check_files(name: str, files: Collection[str]) -> None:
    """Check by names alone that a model may be a Voxtral that converses.

    Args:
        name: name of the folder, or the id on the hub.
        files: names of all files there.

    Raises:
        ModelError: weights in another format, or a Voxtral that only transcribes or only speaks.
    """
    if any(file.endswith(".gguf") for file in files) and not any(map(WEIGHTS.fullmatch, files)):
        raise ModelError(f"{name} holds GGUF files, which only llama.cpp reads", hint=HINT)
    own_name = Path(name).name.lower()
    if "config.json" not in files and "voxtral" in own_name:  # in Mistral's own format, which has no model type
        _refuse_other_voxtral(name, own_name)


def check_type(name: str, model_type: object) -> None:
    """Check that a model type is Voxtral's.

    Args:
        name: name of the folder, or the id on the hub.
        model_type: the type in config.json, if there is one.

    Raises:
        ModelError: another model, or a Voxtral that only transcribes or only speaks.
    """
    if model_type == MODEL_TYPE:
        return
    if str(model_type).startswith("voxtral"):
        _refuse_other_voxtral(name, str(model_type))
    raise not_voxtral(name, f"its model_type is {model_type!r}")


def not_voxtral(name: str, why: str) -> ModelError:
    """Return the error for something that is not a Voxtral checkpoint."""
    return ModelError(f"{name} is not a Voxtral checkpoint: {why}", hint=HINT)


def _refuse_other_voxtral(name: str, told_by: str) -> None:
    if "realtime" in told_by:
        raise ModelError(f"{name} is Voxtral Realtime, which only transcribes and can't answer", hint=HINT)
    if "tts" in told_by:
        raise ModelError(f"{name} is Voxtral TTS, which only speaks and can't listen", hint=HINT)
