"""The items of a batch: one recording to answer each, and where they come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from voxcli.audio.clip import STDIN

BOM = b"\xef\xbb\xbf"  # which some programs write at the start of UTF-8 text


@dataclass(frozen=True, slots=True)
class Item:
    """One recording to answer."""

    id: str
    path: str  # of the recording, as it is opened
    origin: str = ""  # where it was asked for, for messages
    prompt: str = ""
    session: str | None = None  # the conversation that it is a turn of; None: it stands alone
    instructions: str | None = None  # None: those of the session, or of the run


class ItemSource(Protocol):
    """Gives the same items each time it is iterated."""

    has_unique_ids: bool  # by construction, so that nobody has to remember them

    def __iter__(self) -> Iterator[Item]: ...


def openable(path: str) -> str:
    """Return a path under which a file is opened even where it is named like standard input."""
    return f"./{path}" if path == STDIN else path
