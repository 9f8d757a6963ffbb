"""Fingerprints what an item asks, so that a later run can tell whether its record still answers it.

A record has the prompt, the engine and the session as they are; its fingerprint has what would be too long:

    "fingerprint": {"recording": "5f0c...", "file": [size, mtime_ns, ctime_ns], "instructions": "91ab...",
                    "history": "c077...", "tools": ["weather"]}

`recording` is a hash of the file's bytes, taken when the file is read for its answer. To compare, the bytes are read
again only if `file` differs: size and modification time alone miss a file that was replaced by one of the same size
with its times kept (`cp -p`, `rsync -t`), but no program can set the time of the last change of status (ctime). A
remote recording has no fingerprint; it is known by its URL.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from voxcli.batch.scheduler import Job
from voxcli.batch.urls import is_url, local_path
from voxcli.core.session import Turn

HASH_BYTES = 16
SHORT_HASH_BYTES = 8  # Enough to notice that a text has changed.
NO_HISTORY = ""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a recording."""

    hash: str
    state: list[int]  # see `file_state`


def file_state(path: str) -> list[int]:
    """Return a file's size in bytes, and its times of modification and of change of status in ns. Raises OSError."""
    status = os.stat(path)  # noqa: PTH116 - a Path would drop the "./" of "./-"
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a file")
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def content_of(source: str) -> Content | None:
    """Return the content of a recording; None if it is remote or can't be read."""
    path = local_path(source)
    if path is None:
        return None
    try:
        state = file_state(path)  # first: a file that changes meanwhile does not match later
        return Content(_hash_of_file(path), state)
    except (OSError, ValueError):
        return None


def is_same_recording(source: str, record: dict[str, Any]) -> bool | None:
    """Return whether a record answers this recording; None if that can't be known, as the file is gone."""
    earlier: dict[str, Any] = record["fingerprint"]
    audio: dict[str, Any] = record.get("audio") or {}
    path = local_path(source)
    if path is None or not earlier.get("recording"):
        named = str(audio.get("path"))
        return _without_query(source) == _without_query(named) if is_url(source) or is_url(named) else None
    try:
        return bool(file_state(path) == earlier.get("file") or _hash_of_file(path) == earlier["recording"])
    except (OSError, ValueError):
        return None


def fingerprint_of(job: Job, content: Content | None, tools: Collection[str] = ()) -> dict[str, Any]:
    """Return the fingerprint for the record of a job.

    Args:
        tools: names of the tools that the model might call.
    """
    return {
        "recording": content.hash if content else None,
        "file": content.state if content else None,
        "instructions": text_hash(job.session.instructions),
        "history": history_hash(job.session.turns),
        "tools": sorted(tools),
    }


def of_template(record: dict[str, Any], filled: str, template: str) -> dict[str, Any]:
    """Return a record whose fingerprint knows instructions by their template: what is filled in changes each day."""
    found = record.get("fingerprint")
    if found and found.get("instructions") == text_hash(filled):
        return {**record, "fingerprint": {**found, "instructions": text_hash(template)}}
    return record


def text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=SHORT_HASH_BYTES).hexdigest()


def history_hash(turns: Iterable[Turn], earlier: str = NO_HISTORY) -> str:
    """Return a hash of the turns before a turn.

    Args:
        earlier: the hash of turns before these.
    """
    for turn in turns:
        # Hashes of older versions have neither.
        understood = [turn.understood] if turn.understood else []
        notes = [[result.note for result in turn.tools]] if turn.tools else []
        asked = [earlier, turn.user, turn.prompt, turn.reply, turn.interrupted]
        earlier = text_hash(json.dumps([*asked, *understood, *notes]))
    return earlier


def _hash_of_file(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - a Path would drop the "./" of "./-"
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def _without_query(url: str) -> str:
    """Return a URL without its query, in which a signature changes each time."""
    return url.partition("?")[0]
