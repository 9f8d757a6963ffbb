"""Checks all items of a run before the first is answered.

Ids must be unique. Eight bytes of the hash of each id are kept in one array: a million ids take 8 MB, a set of strings
over 100 MB. Ids with the same hash are then compared. Nothing is kept for a single folder, whose paths are unique.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxcli.batch.inputs import left_out_notice
from voxcli.batch.item import Item, ItemSource
from voxcli.batch.urls import local_path
from voxcli.errors import AudioInputError, ConfigError


class Planned(NamedTuple):
    """An item of a run."""

    item: Item
    ends_session: bool = False  # no later item belongs to its session


@dataclass(frozen=True)
class Plan:
    """All items of a run. Iterating it yields them in order."""

    sources: Sequence[ItemSource]
    items: int
    session_ends: NDArray[np.bool_]  # for each item with a session: whether it is the last of the session

    def __iter__(self) -> Iterator[Planned]:
        number = 0
        for item in _items(self.sources):
            if item.session is None:
                yield Planned(item)
            else:
                yield Planned(item, bool(self.session_ends[number : number + 1].any()))
                number += 1


@dataclass(frozen=True)
class LocalPaths:
    """The paths of all recordings of a plan that are on this machine."""

    plan: Plan

    def __iter__(self) -> Iterator[str]:
        return (path for planned in self.plan if (path := local_path(planned.item.path)) is not None)


def survey(sources: Sequence[ItemSource]) -> Plan:
    """Read all sources and return the plan.

    Raises:
        AudioInputError: there are no items.
        ConfigError: two items have the same id, or a manifest is wrong.
    """
    ids, sessions, count = array("Q"), array("Q"), 0
    must_compare = len(sources) > 1 or not all(source.has_unique_ids for source in sources)
    for item in _items(sources):
        count += 1
        if must_compare:
            ids.append(digest(item.id))
        if item.session is not None:
            sessions.append(digest(item.session))
    if not count:
        raise AudioInputError(
            "there are no recordings to answer",
            hint=left_out_notice(sources)
            or "name recordings (.wav, .mp3, .m4a, .opus and more), or a folder that has some in it",
        )
    if repeated := _repeated(ids):
        _refuse_clash(sources, repeated)
    return Plan(sources, count, _ends(sessions))


def digest(text: str) -> int:
    """Return 64 bits of a hash. Two of a million ids share them once in 37 million runs (n * n / 2**65)."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _items(sources: Sequence[ItemSource]) -> Iterator[Item]:
    for source in sources:
        yield from source


def _repeated(hashes: "array[int]") -> set[int]:
    found = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.empty(0, np.uint64)
    return {int(value) for value in found[1:][found[1:] == found[:-1]]}


def _refuse_clash(sources: Sequence[ItemSource], repeated: set[int]) -> None:
    """Raise ConfigError if two ids with these hashes are the same."""
    first: dict[str, str] = {}
    for item in _items(sources):
        if digest(item.id) not in repeated:
            continue
        if item.id in first:
            raise ConfigError(
                f"two items have the id {item.id!r}: {first[item.id]}, and {item.origin}",
                hint="ids have to differ: give the folder above, or a manifest with ids of its own",
            )
        first[item.id] = item.origin


def _ends(sessions: "array[int]") -> NDArray[np.bool_]:
    """Return for each item of a session whether its hash does not occur again.

    If two sessions share a hash, the first is only kept in memory longer than needed.
    """
    ends = np.zeros(len(sessions), np.bool_)
    if sessions:
        _, last = np.unique(np.frombuffer(sessions, np.uint64)[::-1], return_index=True)
        ends[len(sessions) - 1 - last] = True
    return ends
