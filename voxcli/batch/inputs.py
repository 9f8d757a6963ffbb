"""What a batch is asked to answer: files, folders, globs, a list on standard input, manifests.

Sources are iterated twice, once to check them and once to run them, and never listed into memory: a
folder of a million files costs what a folder of ten costs. This module reads no recording.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from glob import has_magic, iglob
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from voxcli.audio.clip import STDIN
from voxcli.batch.item import BOM, Item, ItemSource, openable
from voxcli.batch.manifest import Manifest
from voxcli.batch.urls import is_url
from voxcli.errors import AudioInputError, ConfigError
from voxcli.printable import printable

# Of the formats that `voxcli.audio.decoder` knows. In a folder only these are taken: notes and lists may lie there too.
SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf"),
        *(".flac", ".flv", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg"),
        *(".oga", ".ogg", ".ogv", ".opus", ".qcp", ".snd", ".sph", ".spx", ".tta", ".voc", ".w64", ".wav", ".weba"),
        *(".webm", ".wma", ".wmv", ".wv"),
    )
)
MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
LIST_MEMORY_BYTES = 1 << 24  # of a list on standard input; what is more goes to a temporary file


class Files:
    """Recordings that were named one by one; a file's id is the path as it was named."""

    has_unique_ids = False

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[Item]:
        for path in self._paths:
            yield _file(path, "the command line")


class Folder:
    """All recordings below a folder, by suffix; an id is the path within it, with slashes.

    Hidden files are left out, and links to folders are not followed: they may lead round in a circle.
    """

    has_unique_ids = True

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Item]:
        """Walk the folder, in no order: sorting would need all names at once; raises AudioInputError."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(Path(self.path, folder)) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        name = f"{folder}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif Path(entry.name).suffix.lower() in SUFFIXES and not entry.is_dir():
                            yield Item(name, str(Path(self.path, name)), f"the folder {self.path}")
            except OSError as error:
                raise AudioInputError(
                    f"the folder {Path(self.path, folder)} can't be read: {error.strerror}",
                    hint="chmod u+rx FOLDER, or ask its owner",
                ) from error


class PathList:
    """A path a line, as `find` prints them; an id is the path as it is in the list. Blank lines count for nothing."""

    has_unique_ids = False

    def __init__(self, lines: BinaryIO) -> None:
        """Take lines that can be read again and again."""
        self._lines = lines

    def __iter__(self) -> Iterator[Item]:
        """Give the items; raises ConfigError where a line is no path."""
        self._lines.seek(0)
        for number, line in enumerate(self._lines, start=1):
            path = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
            if b"\0" in path:
                raise ConfigError(f"standard input, line {number}: a null byte is in it", hint="give one path a line")
            if path.strip():
                yield _file(os.fsdecode(path), f"line {number} of standard input")


def _kept(stdin: BinaryIO | None, stack: ExitStack) -> BinaryIO:
    """Return a copy of standard input, which can be read only once; raises ConfigError if nothing comes from it."""
    if stdin is None or stdin.isatty():
        raise ConfigError(
            f"standard input is {'closed' if stdin is None else 'a terminal'}: no list comes from it",
            hint="find recordings -name '*.wav' | voxcli batch - --out results.jsonl",
        )
    kept = cast("BinaryIO", stack.enter_context(SpooledTemporaryFile(LIST_MEMORY_BYTES)))  # noqa: SIM115
    shutil.copyfileobj(stdin, kept)
    return kept


def _file(path: str, origin: str) -> Item:
    return Item(path, openable(path), origin)


def sources(inputs: Sequence[str], stdin: BinaryIO | None, stack: ExitStack) -> list[ItemSource]:
    """Return what the arguments of `voxcli batch` name, for as long as `stack` lasts.

    Raises:
        AudioInputError: one names nothing.
        ConfigError: standard input is named twice, or is a terminal.
    """
    if inputs.count(STDIN) > 1:
        raise ConfigError("standard input can be read only once", hint="give - once")
    files: list[str] = []
    others: list[ItemSource] = []
    for given in inputs:
        if given == STDIN:
            others.append(PathList(_kept(stdin, stack)))
            continue
        for path in _matches(given):
            if Path(path).is_dir():
                others.append(Folder(path))
            elif Path(path).suffix.lower() in MANIFEST_SUFFIXES:
                others.append(Manifest(path))
            else:
                files.append(path)
    return [Files(files), *others] if files else others


def _matches(given: str) -> list[str]:
    """Return the path that an argument names, or all that a glob matches, as a shell would."""
    if not given or "\0" in given:
        raise AudioInputError(f"{printable(given)!r} can't be a file's name", hint="check the name")
    if os.path.lexists(given):
        return [given]
    if is_url(given):
        return [given]
    if has_magic(given):
        if found := sorted(iglob(given, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
            return found
        raise AudioInputError(f"nothing matches {given}", hint="check the pattern and the folder")
    raise AudioInputError(f"{given} does not exist", hint="check the name and the folder")
