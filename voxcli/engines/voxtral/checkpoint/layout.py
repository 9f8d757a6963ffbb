"""Tells which files a whole checkpoint has, and which of them a folder lacks."""

import json
from pathlib import Path

from voxcli.errors import ModelError

INDEX = "model.safetensors.index.json"
# A complete checkpoint has one file of each line, beside its weights.
ONE_OF_EACH = (
    ("config.json",),
    ("tekken.json", "tokenizer.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
SMALL_FILES = {
    "generation_config.json",
    "tokenizer_config.json",
    INDEX,
    *(name for names in ONE_OF_EACH for name in names),
}


def missing_files(folder: Path) -> list[str]:
    """Return the names of files missing in a checkpoint's folder. Only complete files have their final names."""
    lacking = [" or ".join(names) for names in ONE_OF_EACH if not any((folder / name).is_file() for name in names)]
    if (folder / "model.safetensors").is_file():
        return lacking
    try:
        shards = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [*lacking, "model.safetensors"]
    return lacking + sorted(str(name) for name in shards if not (folder / str(name)).is_file())


def not_whole(folder: Path) -> ModelError:
    """Return the error for a folder that lacks files."""
    message = f"{folder} is not a whole checkpoint: {', '.join(missing_files(folder)[:3])} missing"
    return ModelError(message, hint="copy the missing files there, or fetch a model: voxcli models pull mini")


def model_type(config: Path) -> str | None:
    """Return the model type that a config.json names; None if it names none."""
    try:
        found = json.loads(config.read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
