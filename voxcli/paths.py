"""Where voxcli keeps what it writes: the platform's folders, or what the environment says."""

import os
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path


def data_folder() -> Path:
    """Return where conversations are kept; `VOXCLI_HOME` overrides the platform's folder."""
    home = os.environ.get("VOXCLI_HOME")
    return Path(home).expanduser() if home else user_data_path("voxcli", appauthor=False)


def cache_folder() -> Path:
    """Return where weights lie that can be made or fetched again."""
    return user_cache_path("voxcli", appauthor=False)


def config_file() -> Path:
    """Return the settings file that is read where `--config` names none."""
    return user_config_path("voxcli", appauthor=False) / "config.toml"
