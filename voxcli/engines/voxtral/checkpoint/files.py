"""Inspects a checkpoint's folder before loading: which model it is, its size, and whether it is complete.

Reads only `config.json` and the headers of the safetensors files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from voxcli.engines.voxtral.checkpoint import kinds
from voxcli.errors import ModelError

PULL = "fetch it again: voxcli models pull mini"
HEADER_BYTES = 100_000_000  # the largest header that the format allows


@dataclass(frozen=True)
class Checkpoint:
    """A complete Voxtral checkpoint."""

    folder: Path
    parameters: int
    files: tuple[Path, ...]  # safetensors files


def inspect(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises:
        ModelError: the folder holds another model, or a file is missing or truncated.
    """
    if not folder.is_dir():
        raise ModelError(f"no checkpoint at {folder}", hint="voxcli models list shows the models")
    kinds.check_files(folder.name, {file.name for file in folder.iterdir()})
    kinds.check_type(folder.name, _json(folder / "config.json").get("model_type"))
    _check_companions(folder)
    files = tuple(_shards(folder))
    return Checkpoint(folder, sum(_parameters(file) for file in files), files)


def lacking(folder: Path, names: Sequence[str]) -> ModelError:
    """Return the error for weights that are missing or have another shape."""
    return ModelError(f"the checkpoint in {folder} lacks {len(names)} weights, such as {names[0]}", hint=PULL)


def _check_companions(folder: Path) -> None:
    for names in (("tekken.json", "tokenizer.json"), ("preprocessor_config.json", "processor_config.json")):
        if not any((folder / name).is_file() for name in names):
            raise ModelError(f"the checkpoint in {folder} lacks {names[0]}", hint=PULL)


def _shards(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads, without `consolidated.safetensors`."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        if whole.is_file():
            return [whole]
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = ": pickled files can run code and are never read" if pickled else ""
        raise ModelError(f"the checkpoint in {folder} has no model.safetensors{why}", hint=PULL)
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        _damaged(index, "it lists no weights")
    shards = [folder / Path(name).name for name in sorted(set(names.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(f"the checkpoint in {folder} lacks {', '.join(missing)}", hint=PULL)
    return shards


def _parameters(shard: Path) -> int:
    """Return the number of values in a safetensors file, from its header.

    Layout: the length of the header as 8 bytes, little endian; the header as JSON; the data. See
    https://huggingface.co/docs/safetensors/index#format.
    """
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(HEADER_BYTES, shard.stat().st_size - 8):
            _damaged(shard, "its header is cut off")
        try:
            header = json.loads(file.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            end = max(tensor["data_offsets"][1] for tensor in tensors)
            count: int = sum(prod(tensor["shape"]) for tensor in tensors)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            _damaged(shard, "its header can't be read", error)
    if shard.stat().st_size != 8 + length + end:
        _damaged(shard, f"it has {shard.stat().st_size} bytes instead of {8 + length + end}")
    return count


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.parent} is not a Voxtral checkpoint: it has no {path.name}",
            hint="a checkpoint in the format of transformers is needed: voxcli models pull mini",
        ) from error
    except (OSError, ValueError) as error:
        _damaged(path, "it is not JSON", error)
    if not isinstance(content, dict):
        _damaged(path, "it is not a JSON object")
    return content


def _damaged(path: Path, how: str, cause: Exception | None = None) -> NoReturn:
    raise ModelError(f"{path.name} in {path.parent} is damaged: {how}", hint=PULL) from cause
