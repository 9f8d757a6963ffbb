"""Finds Voxtral checkpoints by name: short names, ids on the hub, and folders.

Checkpoints are stored in Hugging Face's cache, in its layout, so that they are shared with other programs.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from voxcli.engines.voxtral.checkpoint import kinds
from voxcli.engines.voxtral.checkpoint.download import download
from voxcli.engines.voxtral.checkpoint.kinds import KNOWN
from voxcli.engines.voxtral.checkpoint.layout import missing_files, model_type, not_whole
from voxcli.errors import ModelError, missing_extra
from voxcli.hub.cache import HUB_ID, Hub, snapshot
from voxcli.hub.download import Progress, without_progress_bars
from voxcli.hub.hub_errors import translated
from voxcli.hub.quiet import quiet


@dataclass(frozen=True)
class Listed:
    """A model as `voxcli models list` shows it. `fetched_bytes` is the size of an unfinished download so far."""

    name: str  # the short name, or the id again
    repo_id: str
    bytes: int | None  # on disk; None of an unfinished download that has no short name
    folder: Path | None
    fetched_bytes: int


def resolve(model: str) -> str | Path:
    """Return the hub id of a short name, an existing folder, or the id itself, in this order.

    Raises:
        ModelError: neither a short name, nor a folder, nor of the form OWNER/NAME.
    """
    if model in KNOWN:
        return KNOWN[model].repo_id
    if folder := _existing(model):
        if folder.is_dir():
            return folder
        raise ModelError(f"{model} is a file", hint="name the folder that the checkpoint's config.json lies in")
    if HUB_ID.fullmatch(model) and len(model) <= 96:
        return model
    if re.search(r"^[.~/]|\\|^\w:|/.*/|/$", model):
        raise ModelError(f"there is no folder {model}", hint="check the path, or: voxcli models pull mini")
    raise ModelError(f"there is no model called {model!r}", hint=_suggestion(model))


def locate(model: str, hub: Hub | None = None) -> Path | None:
    """Return the folder of a complete local checkpoint, without using the network; None if it has to be downloaded.

    Raises:
        ModelError: as `resolve`, and for a user's folder that lacks files or holds another model; or the cache can't be
            read.
    """
    wanted = resolve(model)
    if isinstance(wanted, Path):
        kinds.check_files(model, {file.name for file in wanted.iterdir()})
        if missing_files(wanted):
            raise not_whole(wanted)
        return wanted
    hub = hub or Hub()
    with _hub_errors(hub):
        folder = snapshot(hub.repo(wanted))
        return folder if folder and not missing_files(folder) else None


def listed(hub: Hub | None = None) -> list[Listed]:
    """Return the models with short names, then every other Voxtral in the cache, complete or not."""
    hub = hub or Hub()
    with _hub_errors(hub):
        return _all_listed(hub)


def _all_listed(hub: Hub) -> list[Listed]:
    names = {checkpoint.repo_id: name for name, checkpoint in KNOWN.items()}
    folders = sorted(hub.folder().glob("models--*--*"))
    found = [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    others = [repo_id for repo_id in found if repo_id not in names and _is_ours(repo_id, hub)]
    return [_listed(repo_id, names.get(repo_id), hub) for repo_id in (*names, *others)]


@contextmanager
def _hub_errors(hub: Hub) -> Iterator[None]:
    """Turn errors of reading the cache into `ModelError`."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{error.filename or hub.folder()} can't be read: {error.strerror}",
            hint="ask its owner, or set HF_HOME to another folder",
        ) from error


def fetch(
    model: str,
    progress: Progress,
    hub: Hub | None = None,
    check: Callable[[Path, int], None] = lambda _config, _size: None,
) -> Path:
    """Return the folder of a checkpoint, downloading missing files. Uses no network if nothing is missing.

    Only safetensors weights, their index, the configuration and the tokenizer are downloaded; never pickles or
    code. A download that was interrupted, also by KeyboardInterrupt, resumes where it stopped.

    Args:
        progress: called with the bytes downloaded and the total bytes.
        check: called with the path of `config.json` and the bytes of the weights before weights are downloaded;
            an error that it raises ends the download.

    Raises:
        ModelError: no such model, no Voxtral, no access, hub not reachable, no room on the disk.
    """
    hub = hub or Hub()
    if here := locate(model, hub):
        return here
    wanted = str(resolve(model))
    try:
        without_progress_bars()
    except ImportError as error:
        raise missing_extra(ModelError, "Fetching models", "voxtral") from error
    with quiet(), translated(wanted, [checkpoint.repo_id for checkpoint in KNOWN.values()]):
        return download(wanted, progress, hub, check)


def known_name(model: str) -> str | None:
    """Return the short name of a model that has one, given the short name or the id."""
    wanted = resolve(model)
    return next((name for name, known in KNOWN.items() if known.repo_id == wanted), None)


def _existing(model: str) -> Path | None:
    try:
        folder = Path(model).expanduser()
        return folder if model.strip() and folder.exists() else None
    except (OSError, RuntimeError):  # too long a name; no such user
        return None


def _suggestion(model: str) -> str:
    near = difflib.get_close_matches(model.lower(), KNOWN, n=1) or [name for name in KNOWN if name in model.lower()]
    if near:
        return f"did you mean {near[0]} ({KNOWN[near[0]].repo_id})?"
    return f"say {' or '.join(KNOWN)}, an id on the hub as OWNER/NAME, or a folder"


def _is_ours(repo_id: str, hub: Hub) -> bool:
    folder = snapshot(hub.repo(repo_id)) if HUB_ID.fullmatch(repo_id) else None
    return folder is not None and model_type(folder / "config.json") == kinds.MODEL_TYPE


def _listed(repo_id: str, name: str | None, hub: Hub) -> Listed:
    folder = snapshot(hub.repo(repo_id))
    if folder and not missing_files(folder):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return Listed(name or repo_id, repo_id, size, folder, size)
    return Listed(name or repo_id, repo_id, KNOWN[name].bytes if name else None, None, _blob_bytes(repo_id, hub))


def _blob_bytes(repo_id: str, hub: Hub) -> int:
    with suppress(OSError):
        return sum(blob.stat().st_size for blob in (hub.repo(repo_id) / "blobs").iterdir())
    return 0
