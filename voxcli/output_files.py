"""Checks the files that a run writes, before it starts: none is one that it reads, and none is replaced without a flag.

Files are compared by identity (device and inode), so links, relative paths and other spellings of a name are found. A
file that does not exist yet is known by the nearest folder that does and the rest of its path.
"""

import os
import stat
import sys
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path

from voxcli.errors import ConfigError
from voxcli.printable import printable

STANDARD = "-"  # standard input or output

Identity = tuple[int, int, str]  # device, inode, rest of the path


def ignores_case(folder: str) -> bool:
    """Return whether a folder's file system treats names that differ in case as one. False if no name can tell."""
    above, name = os.path.split(folder)
    if not name:
        return False
    if name.swapcase() == name:
        return ignores_case(above)
    try:
        return Path(folder).samefile(Path(above, name.swapcase()))
    except OSError:
        return False


class OutputFiles:
    """The files of a run. Add all inputs first, then check each output."""

    def __init__(self, *, force: bool = False, ignores_case: Callable[[str], bool] = ignores_case) -> None:
        """Begin without files.

        Args:
            force: existing files may be replaced, but never one that the run reads.
            ignores_case: returns whether names in a folder that differ in case are one file.
        """
        self._force = force
        self._ignores_case = ignores_case
        self._inputs: list[Iterable[str]] = []
        self._input_hashes = array("Q")  # sorted; eight bytes for each input
        self._outputs: dict[Identity, str] = {}

    def add_inputs(self, paths: Iterable[str]) -> None:
        """Add files that the run reads; "-" is standard input.

        Args:
            paths: iterated again if an output seems to be one of them.
        """
        self._inputs.append(paths)
        self._input_hashes.extend(_hash(self._identity(path)) for path in paths)
        self._input_hashes = array("Q", sorted(self._input_hashes))

    def check(self, path: Path, flag: str, *, is_own: bool = False) -> None:
        """Check a file that the run writes.

        Args:
            flag: the flag that names it.
            is_own: an existing file was written by voxcli for this purpose, and may be replaced.

        Raises:
            ConfigError: the run reads the file, it is also written for another flag, or it exists and may not be
                replaced.
        """
        if str(path) == STANDARD:
            raise ConfigError(f"{flag} needs a file; - is standard output", hint=f"{flag} {_example(flag)}")
        identity = self._check_unread(path, flag)
        if (other := self._outputs.setdefault(identity, flag)) != flag:
            raise ConfigError(f"{other} and {flag} name the same file, {_shown(path)}", hint="name another one")
        self._check_replaceable(path, lambda _: is_own)

    def check_all(self, paths: Iterable[Path], flag: str, is_own: Callable[[Path], bool]) -> None:
        """Check any number of files for one flag like `check`; memory holds eight bytes for each.

        Args:
            paths: iterated again if two of them seem to be the same file.
            is_own: returns whether an existing file may be replaced.
        """
        hashes = array("Q")
        for path in paths:
            identity = self._check_unread(path, flag)
            if other := self._outputs.get(identity):
                raise ConfigError(f"{other} and {flag} name the same file, {_shown(path)}", hint="name another one")
            self._check_replaceable(path, is_own)
            hashes.append(_hash(identity))
        ordered = sorted(hashes)
        repeated = {each for each, following in pairwise(ordered) if each == following}
        if repeated:
            self._refuse_repeated(paths, flag, repeated)

    def check_stdout(self) -> None:
        """Check that standard output does not go to a file that the run reads."""
        status = _standard_status(sys.stdout)
        if status and (name := self._input(_of_status(status))):
            raise ConfigError(
                f"standard output goes to {_shown(name)}, which is also read", hint="send it to another file"
            )

    def _check_unread(self, path: Path, flag: str) -> Identity:
        identity = self._identity(os.fspath(path.expanduser()))
        if name := self._input(identity):
            known_as = "" if name == str(path) else f" as {_shown(name)}"
            raise ConfigError(
                f"{flag} would replace {_shown(path)}, which this run reads{known_as}", hint="name another file"
            )
        return identity

    def _check_replaceable(self, path: Path, is_own: Callable[[Path], bool]) -> None:
        if self._force:
            return
        try:
            status = path.expanduser().lstat()
        except (OSError, ValueError):  # whoever opens it reports what is the matter
            return
        has_content = stat.S_ISREG(status.st_mode) and status.st_size > 0
        if (has_content or stat.S_ISLNK(status.st_mode)) and not is_own(path):
            raise ConfigError(f"{_shown(path)} exists", hint="--force overwrites it; or name another file")

    def _refuse_repeated(self, paths: Iterable[Path], flag: str, repeated: set[int]) -> None:
        first: dict[Identity, Path] = {}
        for path in paths:
            identity = self._identity(os.fspath(path.expanduser()))
            if _hash(identity) in repeated and identity in first:
                raise ConfigError(
                    f"{flag}: {_shown(first[identity])} and {_shown(path)} are one file here",
                    hint="the file system ignores case; give ids that differ in more",
                )
            first[identity] = path

    def _input(self, identity: Identity) -> str:
        """Return the input that is this file; empty if none is."""
        wanted = _hash(identity)
        place = bisect_left(self._input_hashes, wanted)
        if place == len(self._input_hashes) or self._input_hashes[place] != wanted:
            return ""
        found = (path for path in chain.from_iterable(self._inputs) if self._identity(path) == identity)
        return next(found, "")

    def _identity(self, path: str) -> Identity:
        if path == STANDARD:
            status = _standard_status(sys.stdin)
            return _of_status(status) if status else (0, 0, STANDARD)
        try:
            return _of_status(os.stat(path))  # noqa: PTH116 - millions of paths are strings already
        except (OSError, ValueError):
            return self._identity_of_missing(path)

    def _identity_of_missing(self, path: str) -> Identity:
        try:
            folder, rest = os.path.realpath(path), ""
        except (OSError, ValueError):  # no file can have this name
            return 0, 0, path
        while True:
            above, name = os.path.split(folder)
            if not name:
                return 0, 0, path
            folder, rest = above, f"{name}/{rest}"
            try:
                device, inode, _ = _of_status(os.stat(folder))  # noqa: PTH116
            except OSError:
                continue
            if self._ignores_case(folder):
                rest = unicodedata.normalize("NFC", rest).casefold()
            return device, inode, rest


def _standard_status(stream: object) -> os.stat_result | None:
    """Return the status of the regular file that a standard stream is; None if it is something else."""
    try:
        status = os.fstat(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # closed, or replaced by a stream without a file
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _of_status(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, ""


def _hash(identity: Identity) -> int:
    return hash(identity) & (1 << 64) - 1


def _shown(path: Path | str) -> str:
    return "standard input" if str(path) == STANDARD else printable(str(path))


def _example(flag: str) -> str:
    return "reply.wav" if flag == "--save-reply" else "FILE"
