"""Finds and downloads Voxtral checkpoints by name.

Checkpoints are stored in Hugging Face's cache, in its layout, so that they are shared with other programs.
Large files are downloaded here and not by `snapshot_download`, which discards a partial file when it is
interrupted: that hurts with shards of 5 GB.

`huggingface_hub` is imported only where it is needed: `locate` reads the cache without its HTTP client.
"""

import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxcli.engines.voxtral.checkpoint import kinds
from voxcli.engines.voxtral.checkpoint.counted_file import CountedFile
from voxcli.engines.voxtral.checkpoint.hub_errors import again, foreign_errors, translated
from voxcli.engines.voxtral.quiet import quiet
from voxcli.errors import ModelError, missing_extra

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
HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<![-.])(?<!\.git)", re.ASCII)  # as huggingface_hub has it
SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 200_000_000  # disk space that a download leaves free
REQUEST_SECONDS = 20.0

Progress = Callable[[int, int], None]  # bytes downloaded, total bytes


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
        if _missing(wanted):
            raise _not_whole(wanted)
        return wanted
    hub = hub or Hub()
    with _hub_errors(hub):
        folder = _snapshot(hub.repo(wanted))
        return folder if folder and not _missing(folder) else None


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
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    except ImportError as error:
        raise missing_extra(ModelError, "Fetching models", "voxtral") from error
    disable_progress_bars()
    with quiet(), translated(wanted, [checkpoint.repo_id for checkpoint in KNOWN.values()]):
        return _download(wanted, progress, hub, check)


# --- The cache ------------------------------------------------------------------------------


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


def _snapshot(repo: Path) -> Path | None:
    try:
        commit = (repo / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    return repo / "snapshots" / commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _missing(folder: Path) -> list[str]:
    """Return the names of files missing in a checkpoint's folder. Only complete files have their final names."""
    lacking = [" or ".join(names) for names in ONE_OF_EACH if not any((folder / name).is_file() for name in names)]
    if (folder / "model.safetensors").is_file():
        return lacking
    try:
        shards = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [*lacking, "model.safetensors"]
    return lacking + sorted(str(name) for name in shards if not (folder / str(name)).is_file())


def _not_whole(folder: Path) -> ModelError:
    message = f"{folder} is not a whole checkpoint: {', '.join(_missing(folder)[:3])} missing"
    return ModelError(message, hint="copy the missing files there, or fetch a model: voxcli models pull mini")


def _is_ours(repo_id: str, hub: Hub) -> bool:
    folder = _snapshot(hub.repo(repo_id)) if HUB_ID.fullmatch(repo_id) else None
    return folder is not None and _model_type(folder / "config.json") == kinds.MODEL_TYPE


def _model_type(config: Path) -> str | None:
    try:
        found = json.loads(config.read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _listed(repo_id: str, name: str | None, hub: Hub) -> Listed:
    folder = _snapshot(hub.repo(repo_id))
    if folder and not _missing(folder):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        return Listed(name or repo_id, repo_id, size, folder, size)
    return Listed(name or repo_id, repo_id, KNOWN[name].bytes if name else None, None, _blob_bytes(repo_id, hub))


def _blob_bytes(repo_id: str, hub: Hub) -> int:
    with suppress(OSError):
        return sum(blob.stat().st_size for blob in (hub.repo(repo_id) / "blobs").iterdir())
    return 0


# --- Fetching ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RemoteFile:
    """A file of the hub, and its paths in the cache."""

    name: str
    bytes: int
    sha256: str | None  # given by the hub for large files only
    by_sum: Path
    by_name: Path
    partial: Path

    def is_here(self) -> bool:
        return self.by_name.is_file() or (self.sha256 is not None and self.by_sum.is_file())

    def bytes_here(self) -> int:
        if self.is_here():
            return self.bytes
        fetched = self.partial.stat().st_size if self.partial.is_file() else 0
        return fetched if fetched <= self.bytes else 0  # a longer file is damaged


def _download(repo_id: str, progress: Progress, hub: Hub, check: Callable[[Path, int], None]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    # 1. Check that the model is a Voxtral before gigabytes are downloaded.
    info = HfApi(endpoint=hub.endpoint).model_info(repo_id, files_metadata=True, timeout=REQUEST_SECONDS)
    commit = str(info.sha)
    _check_names(repo_id, {sibling.rfilename for sibling in info.siblings or []})
    config = hf_hub_download(repo_id, "config.json", revision=commit, cache_dir=hub.folder(), endpoint=hub.endpoint)
    kinds.check_type(repo_id, _model_type(Path(config)))
    weights = (sibling for sibling in info.siblings or [] if kinds.WEIGHTS.fullmatch(sibling.rfilename))
    check(Path(config), sum(sibling.size or 0 for sibling in weights))

    # 2. Check the free disk space.
    needed = (sibling for sibling in info.siblings or [] if _is_needed(sibling.rfilename))
    files = [_remote_file(sibling, hub.repo(repo_id), commit) for sibling in needed]
    done, total = sum(file.bytes_here() for file in files), sum(file.bytes for file in files)
    _check_room(repo_id, total - done, hub)
    progress(done, total)

    # 3. Download large files one after the other, each from where it stopped.
    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    with _only_one(repo_id, hub):
        for file in files:
            if file.sha256 and not file.is_here():
                _fetch_large(file, repo_id, commit, count, hub)

    # 4. The hub's own function downloads the small files, links all files by name and records the revision of `main`.
    names = [file.name for file in files]
    folder = Path(snapshot_download(repo_id, allow_patterns=names, cache_dir=hub.folder(), endpoint=hub.endpoint))
    if _missing(folder):
        raise _not_whole(folder)
    progress(total, total)
    return folder


def _is_needed(name: str) -> bool:
    return name in SMALL_FILES or kinds.WEIGHTS.fullmatch(name) is not None


def _check_names(repo_id: str, names: set[str]) -> None:
    kinds.check_files(repo_id, names)
    for one_of in ONE_OF_EACH:
        if not names.intersection(one_of):
            raise kinds.not_voxtral(repo_id, f"it has no {' or '.join(one_of)}")
    if not any(map(kinds.WEIGHTS.fullmatch, names)):
        raise kinds.not_voxtral(repo_id, "it has no model.safetensors")


def _remote_file(sibling: Any, repo: Path, commit: str) -> _RemoteFile:
    """Return a file of the hub. Its checksum becomes a file name, so only a hexadecimal one is accepted."""
    said = sibling.lfs.sha256 if sibling.lfs else ""
    sha256 = said if SHA256.fullmatch(said) else None
    by_sum = repo / "blobs" / (sha256 or "unknown")
    by_name = repo / "snapshots" / commit / sibling.rfilename
    return _RemoteFile(
        sibling.rfilename, sibling.size or 0, sha256, by_sum, by_name, by_sum.with_name(by_sum.name + ".incomplete")
    )


def _check_room(repo_id: str, need: int, hub: Hub) -> None:
    folder = hub.folder().absolute()
    free = hub.free_bytes(next(parent for parent in (folder, *folder.parents) if parent.is_dir()))
    if need + SPARE_BYTES <= free:
        return
    message = f"{repo_id} needs {need / 1e9:.2f} GB more in {folder}, and {free / 1e9:.2f} GB are free"
    smaller = ", or take the smaller one: mini" if repo_id == KNOWN["small"].repo_id else ""
    raise ModelError(message, hint=f"make room, or set HF_HOME to a folder on a larger disk{smaller}")


@contextmanager
def _only_one(repo_id: str, hub: Hub) -> Iterator[None]:
    """Lock this model's partial files: two processes that append to them would mix their bytes."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock = hub.folder() / ".locks" / hub.repo(repo_id).name / "voxcli.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1.0))
        except Timeout as error:
            raise ModelError(f"another voxcli is fetching {repo_id} now", hint="wait until it is done") from error
        yield


def _fetch_large(file: _RemoteFile, repo_id: str, commit: str, count: Callable[[int], None], hub: Hub) -> None:
    """Complete the partial file, verify its checksum, and move it to its place in the cache.

    Raises:
        ModelError: the checksum is not the hub's.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import are_symlinks_supported, http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    file.partial.parent.mkdir(parents=True, exist_ok=True)
    if not file.bytes_here():
        file.partial.unlink(missing_ok=True)
    url = hf_hub_url(repo_id, file.name, revision=commit, endpoint=hub.endpoint)
    with CountedFile(file.partial, count) as out:
        while (start := out.tell()) < file.bytes:
            try:
                http_get(url, out, resume_size=start, headers=build_hf_headers(), expected_size=file.bytes)
            except foreign_errors():
                if out.tell() <= start:  # resume after progress only, so that the loop ends
                    raise
    with file.partial.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != file.sha256:
        file.partial.unlink()
        raise ModelError(f"{file.name} of {repo_id} was damaged on its way", hint=again(repo_id))
    target = file.by_sum if are_symlinks_supported(hub.folder()) else file.by_name
    target.parent.mkdir(parents=True, exist_ok=True)
    file.partial.replace(target)
