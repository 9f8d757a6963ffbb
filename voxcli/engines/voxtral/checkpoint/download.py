"""Downloads a checkpoint, once the hub's lists and its config.json show that it is a Voxtral that converses."""

from collections.abc import Callable
from pathlib import Path

from voxcli.engines.voxtral.checkpoint import kinds
from voxcli.engines.voxtral.checkpoint.layout import ONE_OF_EACH, SMALL_FILES, missing_files, model_type, not_whole
from voxcli.hub.cache import Hub
from voxcli.hub.download import Progress, download_files, download_small_file, repo_info


def download(repo_id: str, progress: Progress, hub: Hub, check: Callable[[Path, int], None]) -> Path:
    """Download a Voxtral that converses; return its folder.

    Args:
        check: is given config.json and the size of the weights in bytes, before these are downloaded; an error that it
            raises ends the download.

    Raises:
        ModelError: another kind of model, a wrong checksum, or no room on the disk.
    """
    # Check that the model is a Voxtral before gigabytes are downloaded.
    info = repo_info(repo_id, hub)
    _check_names(repo_id, {sibling.rfilename for sibling in info.siblings or []})
    config = download_small_file(repo_id, "config.json", str(info.sha), hub)
    kinds.check_type(repo_id, model_type(config))
    weights = (sibling for sibling in info.siblings or [] if kinds.WEIGHTS.fullmatch(sibling.rfilename))
    check(config, sum(sibling.size or 0 for sibling in weights))

    smaller = ", or take the smaller one: mini" if repo_id == kinds.KNOWN["small"].repo_id else ""
    folder = download_files(repo_id, info, _is_needed, progress, hub, if_full=smaller)
    if missing_files(folder):
        raise not_whole(folder)
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
