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
from voxcli.batch.manifest import HEAD_BYTES, Manifest, looks_like_manifest
from voxcli.batch.urls import is_url
from voxcli.errors import AudioInputError, ConfigError
from voxcli.printable import printable

# Suffixes of formats that `voxcli.audio.decoder` reads. Other files in a folder are left out and counted.
SUFFIXES = frozenset(
    (
        *(".3g2", ".3ga", ".3gp", ".3gp2", ".3gpp", ".aa", ".aac", ".aax", ".ac3", ".adts", ".aif", ".aifc", ".aiff"),
        *(".amr", ".ape", ".asf", ".au", ".avi", ".awb", ".bonk", ".bwf", ".caf", ".divx", ".dsf", ".dss", ".dts"),
        *(".dtshd", ".dv", ".ec3", ".eac3", ".f4a", ".f4b", ".f4v", ".fla", ".flac", ".flv", ".gsm", ".gxf", ".iff"),
        *(".ircam", ".ivr", ".loas", ".latm", ".m2a", ".m2ts", ".m4a", ".m4b", ".m4r", ".m4v", ".mka"),
        *(
            ".mkv",
            ".mlp",
            ".mmf",
            ".mov",
            ".mp+",
            ".mp1",
            ".mp2",
            ".mp3",
            ".mp4",
            ".mpa",
            ".mpc",
            ".mpeg",
            ".mpg",
            ".mpga",
        ),
        *(".mpp", ".mts", ".mxf", ".nist", ".nsv", ".nut", ".oga", ".ogg", ".ogm", ".ogv", ".ogx", ".oma"),
        *(".omg", ".opus", ".osq", ".paf", ".pvf", ".qcp", ".qoa", ".qt", ".ra", ".rf64", ".rm", ".rmvb", ".shn"),
        *(".snd", ".sox", ".sph", ".spx", ".swf", ".tak", ".thd", ".truehd", ".ts", ".tta", ".vob", ".voc", ".vqf"),
        *(".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wmv", ".wtv", ".wv", ".xwma"),
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

    Files with other suffixes are left out and counted. Hidden files are ignored. Links to folders are not followed,
    because they may form a loop.
    """

    has_unique_ids = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.left_out = 0  # Files that the last iteration left out.
        self.left_out_example = ""  # The name of one of them.

    def __iter__(self) -> Iterator[Item]:
        """Yield the items, unsorted, because sorting would need all names in memory.

        An entry that can't be inspected, such as a closed folder or a circle of links, becomes an item, which fails
        when it is read and says why.

        Raises:
            AudioInputError: the folder itself can't be read.
        """
        folders, self.left_out = [""], 0
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(Path(self.path, folder)) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                            folders.append(f"{name}/")
                        elif entry.name.startswith(".") or _is_folder(entry):
                            continue
                        elif Path(entry.name).suffix.lower() in SUFFIXES:
                            yield self._item(name)
                        else:
                            self.left_out, self.left_out_example = self.left_out + 1, name
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


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one, as far as can be seen."""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or a link into a closed folder
        return False


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


def _listed(stdin: BinaryIO | None, stack: ExitStack) -> ItemSource:
    """Return what standard input has: a manifest or a list of paths. Raises ConfigError if it is closed."""
    lines = _copied(stdin, stack)
    lines.seek(0)
    return Manifest("standard input", lines) if looks_like_manifest(lines.read(HEAD_BYTES)) else PathList(lines)


def _is_manifest(path: str) -> bool:
    """Return whether a file is a manifest, by its suffix or its content."""
    suffix = Path(path).suffix.lower()
    if suffix in MANIFEST_SUFFIXES or suffix in SUFFIXES:
        return suffix in MANIFEST_SUFFIXES
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return looks_like_manifest(file.read(HEAD_BYTES)) if file.seekable() else False
    except (OSError, ValueError):  # a remote recording, or one whose item says what is the matter
        return False


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; do not wait for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
            others.append(_listed(stdin, stack))
            continue
        for path in _matches(given):
            if Path(path).is_dir():
                others.append(Folder(path))
            elif _is_manifest(path):
                others.append(Manifest(path))
            else:
                files.append(path)
    return [Files(files), *others] if files else others


def left_out_notice(found: Sequence[ItemSource]) -> str | None:
    """Return a line about the files that folders left out, after these have been iterated; None without such files."""
    folders = [source for source in found if isinstance(source, Folder) and source.left_out]
    if not folders:
        return None
    count = sum(folder.left_out for folder in folders)
    files = "file is" if count == 1 else "files are"
    return (
        f"{count} other {files} left out, by suffix, such as {printable(folders[0].left_out_example)}; "
        "a file named on the command line is read whatever its suffix"
    )


def _matches(given: str) -> list[str]:
    """Return the path that an argument names, or all paths that a glob matches, as a shell would."""
    if not given.strip() and not (given and os.path.lexists(given)):
        raise AudioInputError("the name of an input is empty", hint="check the variable that it comes from")
    if "\0" in given:
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
