"""Finds models in Hugging Face's cache, whose layout other programs share.

`huggingface_hub` is imported only where it is needed: reading the cache does not need its HTTP client.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*/\w[\w.-]*(?<![-.])(?<!\.git)", re.ASCII)  # huggingface_hub's rule


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
    """Return the folder of a model's newest revision in the cache; None if there is none."""
    try:
        commit = (repo / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    return repo / "snapshots" / commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
