"""Finds and fetches the models that the settings choose in place of those that come with the embedded engine.

They are stored in Hugging Face's cache, in its layout, so that they are shared with other programs.
"""

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxcli.engines.embedded.gguf import CHOOSE, PART, check_answers, read_header, split_error
from voxcli.errors import ModelError, missing_extra
from voxcli.hub.cache import HUB_ID, Hub, snapshot
from voxcli.hub.download import Progress, download_files, repo_info, without_progress_bars
from voxcli.hub.hub_errors import translated
from voxcli.hub.quiet import quiet

SHIPPED_WHISPER = "base"
# Repositories of faster-whisper's models by size; https://huggingface.co/Systran has them.
WHISPER_SIZES = ("tiny", "tiny.en", "base.en", "small", "small.en", "medium", "medium.en", "large-v2", "large-v3")
WHISPER_REPO = "Systran/faster-whisper-{}"
WHISPER_FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.*", "preprocessor_config.json")
WHISPER_PREFIX = "whisper:"  # Precedes a size in what `voxcli models pull` takes.
GGUF_ID = re.compile(rf"(?P<repo>{HUB_ID.pattern}):(?P<file>[\w.-]+(/[\w.-]+)*\.gguf)", re.ASCII)


@dataclass(frozen=True)
class HubModel:
    """Files of a model on the hub."""

    name: str  # The name for `voxcli models pull`.
    repo_id: str
    patterns: tuple[str, ...]
    file: str = ""  # the GGUF file; empty for a folder

    def place(self, folder: Path) -> Path:
        """Return the model's file or folder in a snapshot of its repository."""
        return folder / self.file if self.file else folder

    def located(self, hub: Hub) -> Path | None:
        """Return where the model lies in the cache; None if it has to be fetched."""
        folder = snapshot(hub.repo(self.repo_id))
        names = (self.file,) if self.file else ("model.bin", "config.json", "tokenizer.json")
        return self.place(folder) if folder and all((folder / name).is_file() for name in names) else None


def hub_model(name: str) -> HubModel | None:
    """Return the model that `HUB-ID:FILE.gguf` or `whisper:SIZE` names; None for any other name."""
    size = name.removeprefix(WHISPER_PREFIX)
    if name.startswith(WHISPER_PREFIX) and size in WHISPER_SIZES:
        return HubModel(name, WHISPER_REPO.format(size), WHISPER_FILES)
    if found := GGUF_ID.fullmatch(name):
        return HubModel(name, found["repo"], (found["file"],), found["file"])
    return None


def answer_model(setting: str, hub: Hub | None = None) -> Path | None:
    """Return the GGUF file that `embedded.answer_model` names; None for the model that comes with the engine.

    Raises:
        ModelError: there is no such file, or it has not been fetched.
    """
    if not setting:
        return None
    path = Path(setting).expanduser()
    if path.is_file():
        return path
    return _fetched(setting, hub_model(setting), f"there is no file {setting}", hub)


def whisper(setting: str, hub: Hub | None = None) -> Path | None:
    """Return the folder that `embedded.whisper` names; None for the model that comes with the engine.

    Raises:
        ModelError: there is no such folder, or it has not been fetched.
    """
    if setting == SHIPPED_WHISPER:
        return None
    path = Path(setting).expanduser()
    if setting not in WHISPER_SIZES and path.is_dir():
        return path
    sizes = ", ".join((SHIPPED_WHISPER, *WHISPER_SIZES))
    lacking = f"{setting} is neither a folder nor a size of Whisper ({sizes})"
    return _fetched(setting, hub_model(WHISPER_PREFIX + setting), lacking, hub)


def _fetched(setting: str, model: HubModel | None, lacking: str, hub: Hub | None) -> Path:
    if model is None:
        raise ModelError(lacking, hint="give a path, or HUB-ID:FILE.gguf for an answering model")
    if found := model.located(hub or Hub()):
        return found
    raise ModelError(f"{setting} is not here yet", hint=f"voxcli models pull {model.name}")


def pull(model: HubModel, progress: Progress, notice: Callable[[str], None], hub: Hub | None = None) -> Path:
    """Return the file or folder of a model, downloading what is missing; resumes what was interrupted.

    Args:
        notice: told the licence and the checksums.

    Raises:
        ModelError: no such model or file, a file that can't answer, hub not reachable, no room, a wrong checksum.
    """
    if model.file and PART.search(model.file):
        raise split_error(model.name)
    try:
        without_progress_bars()
    except ImportError as error:
        raise missing_extra(ModelError, "Fetching models", "embedded") from error
    try:
        place = _download(model, progress, notice, hub or Hub())
    except ModelError as error:  # the hint to fetch again has to name the file too
        hint = error.hint.replace(f"pull {model.repo_id}", f"pull {model.name}")
        raise ModelError(error.message, hint=hint) from error
    if model.file:
        check_answers(place, read_header(place))
    return place


def _download(model: HubModel, progress: Progress, notice: Callable[[str], None], hub: Hub) -> Path:
    with quiet(), translated(model.repo_id, [WHISPER_REPO.format(size) for size in WHISPER_SIZES]):
        info = repo_info(model.repo_id, hub)
        siblings = [each for each in info.siblings or [] if _matches(model, each.rfilename)]
        if not siblings:
            raise ModelError(f"{model.repo_id} has no file {model.patterns[0]}", hint=_files_there(info))
        notice(f"licence of {model.repo_id}: {(info.card_data or {}).get('license') or 'not given by the hub'}")
        folder = download_files(model.repo_id, info, lambda name: _matches(model, name), progress, hub)
    for each in siblings:
        if each.lfs:
            notice(f"sha256 of {each.rfilename}: {each.lfs.sha256}")
    return model.place(folder)


def _matches(model: HubModel, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in model.patterns)


def _files_there(info: object) -> str:
    names = [each.rfilename for each in getattr(info, "siblings", None) or [] if each.rfilename.endswith(".gguf")]
    return f"it has {', '.join(names[:8])}" if names else CHOOSE
