"""Defines the items of a batch, one recording each, and the protocol of their sources."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from voxcli.audio.clip import STDIN

BOM = b"\xef\xbb\xbf"  # byte-order mark that some programs write at the start of UTF-8 text


@dataclass(frozen=True, slots=True)
class Item:
    """One recording to answer."""

    id: str
    path: str  # path or URL of the recording, as it is opened
    origin: str = ""  # Messages say where the item was named.
    prompt: str = ""
    session: str | None = None  # the conversation it is a turn of; None: none
    instructions: str | None = None  # None: those of the session or the run


class ItemSource(Protocol):
    """Yields the same items each time it is iterated."""

    has_unique_ids: bool  # unique by construction, so that they need no check

    def __iter__(self) -> Iterator[Item]: ...


def openable(path: str) -> str:
    """Return a path that opens a file even if its name is the one for standard input."""
    return f"./{path}" if path == STDIN else path
