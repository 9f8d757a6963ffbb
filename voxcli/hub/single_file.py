"""Downloads a single small file of one revision of a model from the hub."""

from dataclasses import dataclass
from pathlib import Path

from voxcli.hub.download import REQUEST_SECONDS, without_progress_bars
from voxcli.hub.hub_errors import translated
from voxcli.hub.quiet import quiet


@dataclass(frozen=True)
class HubFile:
    """A file of one revision of a model on the hub."""

    repo_id: str
    revision: str
    name: str
    bytes: int
    sha256: str


def download_file(file: HubFile, folder: Path, name: str, endpoint: str | None = None) -> Path:
    """Download a file into a folder, from the start; the caller checks its sum.

    Args:
        folder: the hub's library also writes notes of its own there.
        name: what `voxcli models pull` calls the model, for messages.
        endpoint: address of the hub; None for that of HF_ENDPOINT.

    Raises:
        ImportError: huggingface_hub is not installed.
        ModelError: the hub refuses the file or is out of reach.
    """
    from huggingface_hub import HfApi, hf_hub_download

    without_progress_bars()
    with quiet(), translated(name, []):
        # Asked first, because the download would try for half a minute to reach a hub that is out of reach.
        HfApi(endpoint=endpoint).model_info(file.repo_id, revision=file.revision, timeout=REQUEST_SECONDS)
        path = hf_hub_download(file.repo_id, file.name, revision=file.revision, local_dir=folder, endpoint=endpoint)
    return Path(path)
