"""Reads manifests: one JSON object per line, `{"id", "audio", "prompt"?, "session"?, "instructions"?}`.

A manifest with an error is refused with its line number before any item runs. One line at a time is in memory.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from voxcli.batch.item import BOM, Item, openable
from voxcli.batch.urls import is_url
from voxcli.errors import ConfigError

REQUIRED, OPTIONAL = ("id", "audio"), ("prompt", "session", "instructions")
LINE_BYTES = 1 << 20  # longest line: a name, a path and a prompt
HEAD_BYTES = 1 << 12  # enough of a file to tell a manifest from a recording and from a list of paths

_BEGINNING = re.compile(rb'\s*(\[\s*)?\{\s*"[^"]*"\s*:')


def looks_like_manifest(head: bytes) -> bool:
    """Return whether a file that begins with these bytes has JSON objects, as a manifest or an attempt at one has."""
    return _BEGINNING.match(head.removeprefix(BOM)) is not None


class Manifest:
    """The items of a JSONL file or of standard input. Paths in it are relative to its folder."""

    has_unique_ids = False

    def __init__(self, path: str, lines: BinaryIO | None = None) -> None:
        """Take a file, or seekable `lines` that are called `path` in messages."""
        self._path = path
        self._lines = lines
        self._stamp: tuple[int, int] | None = None  # size and time of the file when it was checked

    def __iter__(self) -> Iterator[Item]:
        """Yield the items.

        Raises:
            ConfigError: a line is not an item, or the file can't be read or has changed since it was first read.
        """
        folder = "" if self._lines else os.path.dirname(self._path)  # noqa: PTH120 - a Path would drop the "./" of "./-"
        try:
            with self._opened() as file:
                if self._lines is None:
                    self._check_unchanged(os.fstat(file.fileno()))
                number = 0
                while line := file.readline(LINE_BYTES + 1):
                    number += 1
                    if item := self._item(line.removeprefix(BOM) if number == 1 else line, number, folder):
                        yield item
        except OSError as error:
            raise ConfigError(f"the manifest {self._path} can't be read: {error.strerror}") from error

    def _opened(self) -> AbstractContextManager[BinaryIO]:
        if self._lines:
            self._lines.seek(0)
            return nullcontext(self._lines)
        return Path(self._path).open("rb")

    def _check_unchanged(self, status: os.stat_result) -> None:
        stamp = (status.st_size, status.st_mtime_ns)
        if self._stamp not in (None, stamp):
            raise ConfigError(f"the manifest {self._path} was changed while it was read", hint="run again")
        self._stamp = stamp

    def _item(self, line: bytes, number: int, folder: str) -> Item | None:
        """Return the item of a line; None for a blank line."""
        if len(line) > LINE_BYTES:
            raise self._refused(number, f"longer than {LINE_BYTES >> 20} MB")
        if not line.strip():
            return None
        values = self._values(line, number)
        audio = values["audio"]
        path = audio if is_url(audio) else openable(os.path.join(folder, audio))  # noqa: PTH118 - see __iter__
        return Item(
            values["id"],
            path,
            f"{self._path}, line {number}",
            _writable(values.get("prompt") or "").strip(),
            values.get("session"),
            None if values.get("instructions") is None else _writable(values["instructions"]),
        )

    def _values(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise self._refused(number, "not UTF-8") from error
        except json.JSONDecodeError as error:
            raise self._refused(number, f"not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deeply nested brackets
            raise self._refused(number, "JSON that can't be read") from error
        if not isinstance(values, dict):
            raise self._refused(number, "not a JSON object")
        if problem := _problem(values):
            raise self._refused(number, problem)
        return values

    def _refused(self, number: int, why: str) -> ConfigError:
        return ConfigError(
            f"{self._path}, line {number}: {why}",
            hint='a line is {"id": "q1", "audio": "q1.wav"}, and may have "prompt", "session", "instructions"',
        )


def _problem(values: dict[str, Any]) -> str:
    """Return what is wrong with an item; empty if nothing is."""
    for key in values:
        if key not in (*REQUIRED, *OPTIONAL):  # with a misspelt "session", thousands of items would run without memory
            return f"unknown key {key!r}"
    for key in REQUIRED:
        if not isinstance(values.get(key), str) or not values[key]:
            return f"{key!r} is missing" if key not in values else f"{key!r} has to be text that is not empty"
    for key in OPTIONAL:
        if not isinstance(values.get(key, ""), str | None):
            return f"{key!r} has to be text"
    return "'session' is empty" if values.get("session") == "" else ""


def _writable(text: str) -> str:
    """Return text with lone surrogates replaced, which no model can take."""
    return text.encode(errors="replace").decode()
