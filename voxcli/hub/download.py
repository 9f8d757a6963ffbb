"""Downloads files of a model into Hugging Face's cache.

Large files are downloaded here and not by `snapshot_download`, which discards a partial file when it is interrupted:
that hurts with shards of 5 GB.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxcli.errors import ModelError
from voxcli.hub.cache import Hub
from voxcli.hub.counted_file import CountedFile
from voxcli.hub.hub_errors import again, foreign_errors

SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 200_000_000  # disk space that a download leaves free
REQUEST_SECONDS = 20.0

Progress = Callable[[int, int], None]  # bytes downloaded, total bytes


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


def without_progress_bars() -> None:
    """Turn off the bars that the hub's library draws. Raises ImportError: it is not installed."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()


def repo_info(repo_id: str, hub: Hub) -> Any:
    """Return what the hub says of a model: its commit, its card, and its files with sizes and checksums."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint).model_info(repo_id, files_metadata=True, timeout=REQUEST_SECONDS)


def download_small_file(repo_id: str, name: str, commit: str, hub: Hub) -> Path:
    """Download a small file of one revision into the cache; return its path."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, name, revision=commit, cache_dir=hub.folder(), endpoint=hub.endpoint))


def download_files(
    repo_id: str, info: Any, is_needed: Callable[[str], bool], progress: Progress, hub: Hub, *, if_full: str = ""
) -> Path:
    """Download files of a model whose names are needed; return the folder that holds them by name.

    A download that was interrupted resumes where it stopped. Large files are compared with the hub's checksums.

    Args:
        info: what `repo_info` returned.
        if_full: another way out for the hint, where the disk has no room.

    Raises:
        ModelError: no room on the disk, a wrong checksum, or another process downloads the same model.
    """
    from huggingface_hub import snapshot_download

    commit = str(info.sha)
    # 1. Check the free disk space.
    needed = (sibling for sibling in info.siblings or [] if is_needed(sibling.rfilename))
    files = [_remote_file(sibling, hub.repo(repo_id), commit) for sibling in needed]
    done, total = sum(file.bytes_here() for file in files), sum(file.bytes for file in files)
    _check_room(repo_id, total - done, hub, if_full)
    progress(done, total)

    # 2. Download large files one after the other, each from where it stopped.
    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    with _only_one(repo_id, hub):
        for file in files:
            if file.sha256 and not file.is_here():
                _fetch_large(file, repo_id, commit, count, hub)

    # 3. The hub's own function downloads the small files, links all files by name and records the revision of `main`.
    names = [file.name for file in files]
    folder = Path(snapshot_download(repo_id, allow_patterns=names, cache_dir=hub.folder(), endpoint=hub.endpoint))
    progress(total, total)
    return folder


def _remote_file(sibling: Any, repo: Path, commit: str) -> _RemoteFile:
    """Return a file of the hub. Its checksum becomes a file name, so only a hexadecimal one is accepted."""
    said = sibling.lfs.sha256 if sibling.lfs else ""
    sha256 = said if SHA256.fullmatch(said) else None
    by_sum = repo / "blobs" / (sha256 or "unknown")
    by_name = repo / "snapshots" / commit / sibling.rfilename
    return _RemoteFile(
        sibling.rfilename, sibling.size or 0, sha256, by_sum, by_name, by_sum.with_name(by_sum.name + ".incomplete")
    )


def _check_room(repo_id: str, need: int, hub: Hub, if_full: str) -> None:
    folder = hub.folder().absolute()
    free = hub.free_bytes(next(parent for parent in (folder, *folder.parents) if parent.is_dir()))
    if need + SPARE_BYTES <= free:
        return
    message = f"{repo_id} needs {need / 1e9:.2f} GB more in {folder}, and {free / 1e9:.2f} GB are free"
    raise ModelError(message, hint=f"make room, or set HF_HOME to a folder on a larger disk{if_full}")


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
