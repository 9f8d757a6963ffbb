"""Where voxcli keeps what it writes: the platform's folders, or what the environment says."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path, user_config_path, user_data_path

from voxcli.errors import ConfigError


def data_folder() -> Path:
    """Return the folder of conversations; `VOXCLI_HOME` overrides the platform's folder.

    Raises:
        ConfigError: `VOXCLI_HOME` is in the home of an unknown user.
    """
    home = os.environ.get("VOXCLI_HOME")
    if not home:
        return user_data_path("voxcli", appauthor=False)
    try:
        return Path(home).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"VOXCLI_HOME is {home!r}: there is no such user", hint="name a folder") from error


def cache_folder() -> Path:
    """Return the folder of weights that can be prepared or fetched again."""
    return user_cache_path("voxcli", appauthor=False)


def config_file() -> Path:
    """Return the settings file that is read without `--config`."""
    return user_config_path("voxcli", appauthor=False) / "config.toml"


def control_address() -> str:
    """Return where a chat takes commands by default: a Unix socket in the runtime folder, a named pipe on Windows."""
    if os.name == "nt":
        return rf"\\.\pipe\voxcli-{os.environ.get('USERNAME', 'user')}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return str((Path(runtime) / "voxcli" if runtime else data_folder()) / "control")


def owner_only(path: str, flags: int) -> int:
    """Open a file that only its owner can read; for `open(..., opener=owner_only)`."""
    descriptor = os.open(path, flags, 0o600)
    if os.name == "posix" and stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)  # an existing file may have been readable by others
    return descriptor


def replace_privately(path: Path, text: str) -> None:
    """Write a file at once, readable by its owner alone, and create missing folders; a link stays one.

    Raises:
        OSError: it can't be written; a file that was there is unchanged.
    """
    target = path.resolve()
    written = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for folder in reversed([folder for folder in target.parents if not folder.exists()]):
            folder.mkdir(mode=0o700)
        with open(written, "w", encoding="utf-8", newline="\n", opener=owner_only) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        written.replace(target)
    except BaseException:
        with suppress(OSError):
            written.unlink()
        raise
