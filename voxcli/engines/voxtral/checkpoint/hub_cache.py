"""Finds the files of checkpoints in Hugging Face's cache, whose layout other programs share.

`huggingface_hub` is imported only where it is needed: reading the cache does not need its HTTP client.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Hub:
    """The hub and its cache folder; None for those of HF_ENDPOINT, HF_HUB_CACHE and HF_HOME."""

    endpoint: str | None = None
    cache: Path | None = None
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free

    def folder(self) -> Path:
        """Return the cache folder, which need not exist."""
        if self.cache:
            return self.cache
        try:
            from huggingface_hub.constants import HF_HUB_CACHE
        except ImportError:  # another environment may have downloaded checkpoints
            return Path.home() / ".cache" / "huggingface" / "hub"
        return Path(HF_HUB_CACHE)

    def repo(self, repo_id: str) -> Path:
        """Return the folder of one model in the cache, which need not exist."""
        return self.folder() / ("models--" + repo_id.replace("/", "--"))


def snapshot(repo: Path) -> Path | None:
    try:
        commit = (repo / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    return repo / "snapshots" / commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


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
    message = f"{folder} is not a whole checkpoint: {', '.join(missing_files(folder)[:3])} missing"
    return ModelError(message, hint="copy the missing files there, or fetch a model: voxcli models pull mini")


def model_type(config: Path) -> str | None:
    try:
        found = json.loads(config.read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
