"""Finds and fetches the file of the end-of-turn model Smart Turn v3.2, from the hub or from an installed pipecat-ai."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from voxcli.engines.embedded.weights import FindPackage, installed_package
from voxcli.errors import ModelError, missing_extra
from voxcli.hub.single_file import HubFile, download_file

NAME = "smart-turn"  # The name for `voxcli models pull`.
PULL = f"voxcli models pull {NAME}"
LICENCE = "BSD-2-Clause"
PACKAGE, PACKAGE_FOLDER = "pipecat", "audio/turn/smart_turn/data"  # pipecat-ai 1.14.0 contains the same file.

SMART_TURN = HubFile(
    "pipecat-ai/smart-turn-v3",
    "f766f81d3cfdf7737ac64aad813d91bbfd56bf93",
    "smart-turn-v3.2-cpu.onnx",
    8_679_182,
    "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
)


def fetched(cache: Path, file: HubFile = SMART_TURN) -> Path | None:
    """Return the model that `fetch` put into the cache folder, if it is there."""
    path = _target(cache, file)
    return path if path.is_file() else None


def packaged(find: FindPackage = installed_package, file: HubFile = SMART_TURN) -> Path | None:
    """Return the model in an installed pipecat-ai, without importing the package.

    Importing it would load two dozen other packages, write to stderr and change asyncio.
    """
    folder = find(PACKAGE)
    path = folder / PACKAGE_FOLDER / file.name if folder else None
    return path if path and path.is_file() else None


def checked(path: Path, file: HubFile = SMART_TURN) -> bytes:
    """Return the content of the model's file.

    Raises:
        ModelError: the file can't be read, is damaged, or is another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", hint=PULL) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ModelError(f"{path} is damaged or another version of the model", hint=f"delete it, then: {PULL}")
    return content


def fetch(
    cache: Path,
    find: FindPackage = installed_package,
    file: HubFile = SMART_TURN,
    endpoint: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the model in the cache folder; if it is missing, copy it from pipecat-ai or download it.

    Args:
        endpoint: address of the hub; None for that of HF_ENDPOINT.
        notice: told where the file comes from.

    Raises:
        ModelError: the download failed, the file is damaged, or the cache folder can't be written.
    """
    if here := fetched(cache, file):
        checked(here, file)
        notice(f"{NAME} is already here")
        return here
    target = _target(cache, file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".new-", dir=target.parent, ignore_cleanup_errors=True) as scratch:
            source = packaged(find, file)
            notice(f"copying {source}" if source else f"fetching {file.repo_id}, licence {LICENCE}")
            source = source or _download(Path(scratch), file, endpoint)
            new = Path(scratch) / "new"
            new.write_bytes(checked(source, file))
            new.replace(target)
    except OSError as error:
        hint = f"it needs {file.bytes / 1e6:.0f} MB there, in a folder that you may write to"
        raise ModelError(f"can't write {target}: {error.strerror or error}", hint=hint) from error
    return target


def _target(cache: Path, file: HubFile) -> Path:
    return cache / NAME / file.name


def _download(folder: Path, file: HubFile, endpoint: str | None) -> Path:
    try:
        return download_file(file, folder, NAME, endpoint)
    except ImportError as error:
        raise missing_extra(ModelError, "The end-of-turn model", NAME) from error
