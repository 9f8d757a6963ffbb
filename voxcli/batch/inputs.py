"""Finds the items of a batch: files, folders, globs, a list on standard input, manifests.

Sources are iterated twice, to check them and to run them. They are never listed in memory, so that a folder of a
million files needs no more than one of ten.
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

# Suffixes of formats that `voxcli.audio.decoder` reads. Other files in a folder are ignored.
SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf"),
        *(".flac", ".flv", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg"),
        *(".oga", ".ogg", ".ogv", ".opus", ".qcp", ".snd", ".sph", ".spx", ".tta", ".voc", ".w64", ".wav", ".weba"),
        *(".webm", ".wma", ".wmv", ".wv"),
    )
)
MANIFEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
LIST_MEMORY_BYTES = 1 << 24  # a longer list on standard input goes to a temporary file


class Files:
    """Recordings named one by one. An id is the path as it was given."""

    has_unique_ids = False

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[Item]:
        for path in self._paths:
            yield _file(path, "the command line")


class Folder:
    """All recordings below a folder, by suffix. An id is the path within the folder, with slashes.

    Hidden files are ignored. Links to folders are not followed, because they may form a loop.
    """

    has_unique_ids = True

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Item]:
        """Yield the items, unsorted, because sorting would need all names in memory.

        An entry that can't be inspected, such as a closed folder or a circle of links, becomes an item, which fails
        when it is read and says why.

        Raises:
            AudioInputError: the folder itself can't be read.
        """
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(Path(self.path, folder)) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif _may_be_recording(entry):
                            yield self._item(name)
            except OSError as error:
                if folder:
                    yield self._item(folder.removesuffix("/"))
                    continue
                raise AudioInputError(
                    f"the folder {self.path} can't be read: {error.strerror}",
                    hint="chmod u+rx FOLDER, or ask its owner",
                ) from error

    def _item(self, name: str) -> Item:
        return Item(name, str(Path(self.path, name)), f"the folder {self.path}")


def _may_be_recording(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry has the suffix of a recording and is no link to a folder, as far as can be seen."""
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return False
    try:
        return not entry.is_dir()
    except OSError:  # a circle of links, or a link into a closed folder
        return True


class PathList:
    """A list of paths, one per line, as `find` prints them. An id is the path in the list; blank lines are ignored."""

    has_unique_ids = False

    def __init__(self, lines: BinaryIO) -> None:
        """Take a seekable list."""
        self._lines = lines

    def __iter__(self) -> Iterator[Item]:
        """Yield the items. Raises ConfigError if a line is not a path."""
        self._lines.seek(0)
        for number, line in enumerate(self._lines, start=1):
            path = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
            if b"\0" in path:
                raise ConfigError(
                    f"standard input, line {number}: it contains a null byte", hint="give one path per line"
                )
            if path.strip():
                yield _file(os.fsdecode(path), f"line {number} of standard input")


def _copied(stdin: BinaryIO | None, stack: ExitStack) -> BinaryIO:
    """Return a seekable copy of standard input. Raises ConfigError if it is closed or a terminal."""
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
    """Return the sources that the arguments of `voxcli batch` name, open for as long as `stack` lasts.

    Raises:
        AudioInputError: an argument names nothing.
        ConfigError: standard input is named twice, or is a terminal.
    """
    if inputs.count(STDIN) > 1:
        raise ConfigError("standard input can be read only once", hint="give - once")
    files: list[str] = []
    others: list[ItemSource] = []
    for given in inputs:
        if given == STDIN:
            others.append(PathList(_copied(stdin, stack)))
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
    """Return the path that an argument names, or all paths that a glob matches, as a shell would."""
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
