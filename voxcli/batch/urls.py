"""Recordings behind URLs, fetched where the item is answered: `s3://bucket/q.wav`.

fsspec fetches, through drivers that are the user's to install; credentials are those that a driver finds on the
machine (of S3 in `AWS_*` and `~/.aws`, say). A URL may be signed, so no message shows its query or its user.
This module knows neither items nor engines.
"""

import re
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from voxcli.audio.clip import AudioClip, read_audio, read_stream
from voxcli.errors import AudioInputError, VoxError
from voxcli.printable import printable

# What fsspec needs beside itself, for the kinds of URL that are taken. It knows others, some of which run
# programs or look into further files.
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp requests", "http": "aiohttp requests", "file": ""}
BUCKETS = frozenset({"s3", "gs"})  # the others may have secrets in their query, and their errors show it
MESSAGE_CHARACTERS = 200  # of what a driver says

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def read_recording(source: str, *, max_seconds: float) -> AudioClip:
    """Read a file or what a URL names, as a clip at SAMPLE_RATE; of standard input nothing is known here.

    Raises:
        AudioInputError: as `voxcli.audio.clip.read_audio`; or the kind of URL is not known, its driver is not
            installed, or it can't be fetched.
    """
    if not is_url(source):
        return read_audio(source, max_seconds=max_seconds)
    scheme, name = source.partition("://")[0].lower(), _shown(source)
    try:
        with _opened(source, scheme, name) as file:
            return read_stream(file, name, max_seconds=max_seconds)
    except VoxError:
        raise
    except Exception as error:  # each driver has errors of its own, few of them an OSError
        raise _unreadable(error, scheme, name) from error


def _opened(source: str, scheme: str, name: str) -> BinaryIO:
    if scheme not in DRIVERS:
        known = ", ".join(f"{scheme}://" for scheme in DRIVERS)
        raise AudioInputError(f"{name}: of URLs, {known} can be read", hint="copy it to one of these, or to a folder")
    try:
        from fsspec import filesystem

        files = filesystem(scheme)
    except ImportError as error:
        command = f"pip install fsspec {DRIVERS[scheme]}".strip()
        # In the message, for it goes into a record, and may be about another machine.
        raise AudioInputError(f"{name} needs packages where it is read: {command}", hint=command) from error
    return cast("BinaryIO", files.open(source, "rb"))


def _shown(url: str) -> str:
    """Return a URL as messages name it: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise AudioInputError("this can't be a URL", hint="check the name") from error
    query = f"?{parts.query}" if parts.query and parts.scheme in BUCKETS else ""  # part of the name there
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}")


def _unreadable(error: Exception, scheme: str, name: str) -> AudioInputError:
    status = _http_status(error)
    if status == 404 or (status is None and isinstance(error, FileNotFoundError)):
        return AudioInputError(f"{name} does not exist", hint="check the name")
    if status in (401, 403) or isinstance(error, PermissionError):
        return AudioInputError(f"{name} may not be read", hint="check the credentials on the machine")
    reason = f"HTTP {status}" if status else type(error).__name__
    if scheme in BUCKETS and not status:
        reason = printable(f"{reason}: {error}")[:MESSAGE_CHARACTERS]
    return AudioInputError(f"{name} can't be read: {reason}", hint="check the URL and the network")


def _http_status(error: BaseException) -> int | None:
    """Return what a server said; fsspec may say of any answer but a good one that there is no such file."""
    for each in (error, error.__cause__):
        status = getattr(each, "status", None)
        if isinstance(status, int) and status:
            return status
    return None
