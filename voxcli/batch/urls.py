"""Reads recordings from URLs such as `s3://bucket/q.wav`, on the machine that answers the item.

fsspec fetches them with drivers that the user installs. A driver finds the credentials on its machine, for S3 for
example in `AWS_*` and `~/.aws`. The drivers of buckets also find a proxy; that of http and https is given one here. A
URL may be signed, so messages never show its query or user.
"""

import os
import re
from collections.abc import Iterable
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes, urlsplit

from voxcli.audio.clip import AudioClip, read_audio, read_stream
from voxcli.config.proxies import check_certificates, find_proxy
from voxcli.errors import AudioInputError, ConfigError, VoxError
from voxcli.printable import printable

# Packages that fsspec needs for each accepted scheme. Its other schemes are refused: some run programs or open
# further files.
DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp requests", "http": "aiohttp requests", "file": ""}
WEB = frozenset({"http", "https"})
BUCKETS = frozenset({"s3", "gs"})  # errors of the others may show secrets in the query
MESSAGE_CHARACTERS = 200  # longest quote from a driver's error

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|file:/", re.IGNORECASE)  # RFC 8089 has file:/FOLDER/FILE, too


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def local_path(source: str) -> str | None:
    """Return the path of a recording on this machine; None if it is remote. Percent-encoding in a URL is undone."""
    if not is_url(source):
        return source
    scheme, _, rest = source.partition(":")
    host, slash, path = (rest[2:] if rest.startswith("//") else rest).partition("/")
    if scheme.lower() != "file" or host.lower() not in ("", "localhost") or not slash:
        return None
    decoded = os.fsdecode(unquote_to_bytes(f"/{path}"))
    return decoded[1:] if re.match(r"/[A-Za-z]:", decoded) and os.name == "nt" else decoded


def read_recording(
    source: str, *, max_seconds: float, raw_rate: int | None = None, stdin: BinaryIO | None = None
) -> AudioClip:
    """Read a file or a URL as a clip at SAMPLE_RATE; `stdin` as in `read_audio`.

    Raises:
        AudioInputError: see `voxcli.audio.clip.read_audio`; or the scheme is not accepted, its driver is not
            installed, or the URL can't be fetched.
        ConfigError: see `read_audio`; `raw_rate` is given for a remote recording; or the proxy or the certificates that
            the environment names can't be used.
    """
    if (path := local_path(source)) is not None:
        return read_audio(path, max_seconds=max_seconds, raw_rate=raw_rate, stdin=stdin)
    if raw_rate is not None:
        raise ConfigError("--raw-rate is for standard input and files", hint="leave it out for a URL")
    scheme, name = source.partition("://")[0].lower(), _shown(source)
    try:
        with _opened(source, scheme, name) as file:
            return read_stream(file, name, max_seconds=max_seconds)
    except VoxError:
        raise
    except Exception as error:  # drivers raise their own errors, few of them OSErrors
        proxy = find_proxy(source) if scheme in WEB else None
        raise _unreadable(error, scheme, f"{name} (through {proxy})" if proxy else name) from error


def proxy_notice(sources: Iterable[str]) -> str:
    """Return a line that names the proxy of the first recording that comes through one; empty if none does.

    Raises:
        ConfigError: the environment names a proxy that can't be used.
    """
    origins: set[str] = set()
    for source in sources:
        origin = "/".join(source.split("/", 3)[:3])  # scheme and host, on which the proxy depends
        if origin in origins or not is_url(source) or source.partition("://")[0].lower() not in WEB:
            continue
        origins.add(origin)
        if proxy := find_proxy(source):
            return f"recordings are fetched through {proxy}"
    return ""


def _opened(source: str, scheme: str, name: str) -> BinaryIO:
    if scheme == "file":
        raise AudioInputError(f"{name} names no file on this machine", hint="write file:///FOLDER/FILE, or the path")
    if scheme not in DRIVERS:
        known = ", ".join(f"{scheme}://" for scheme in DRIVERS)
        raise AudioInputError(
            f"{name}: only these URLs can be read: {known}", hint="copy it to one of these, or to a folder"
        )
    try:
        from fsspec import filesystem

        files = filesystem(scheme, **_web_options(source) if scheme in WEB else {})
    except ImportError as error:
        command = f"pip install fsspec {DRIVERS[scheme]}".strip()
        # The command is in the message because a record has no hint, and may come from another machine.
        raise AudioInputError(f"{name} needs packages where it is read: {command}", hint=command) from error
    return cast("BinaryIO", files.open(source, "rb"))


def _web_options(url: str) -> dict[str, Any]:
    """Return the options of fsspec's driver for the web: the proxy for a URL, which aiohttp does not look for."""
    if url.lower().startswith("https:"):
        check_certificates()
    proxy = find_proxy(url)
    if proxy is None:
        return {}
    if proxy.scheme not in WEB:
        hint = f"correct or unset {proxy.origin}, or name the host in NO_PROXY"
        raise ConfigError(f"recordings can't be fetched through {proxy}: it is not an HTTP proxy", hint=hint)
    return {"client_kwargs": {"proxy": proxy.url}}


def _shown(url: str) -> str:
    """Return a URL for messages: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise AudioInputError("this can't be a URL", hint="check the name") from error
    query = f"?{parts.query}" if parts.query and parts.scheme in BUCKETS else ""  # part of the name in a bucket
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}")


def _unreadable(error: Exception, scheme: str, name: str) -> AudioInputError:
    status = _http_status(error)
    if scheme in WEB and not status and error.__cause__:  # fsspec calls a failed connection a missing file
        error = cast("Exception", error.__cause__)
    if status == 404 or (status is None and isinstance(error, FileNotFoundError)):
        return AudioInputError(f"{name} does not exist", hint="check the name")
    if status in (401, 403) or isinstance(error, PermissionError):
        return AudioInputError(f"{name} may not be read", hint="check the credentials on the machine")
    reason = f"HTTP {status}" if status else type(error).__name__
    if scheme in BUCKETS and not status:
        reason = printable(f"{reason}: {error}")[:MESSAGE_CHARACTERS]
    return AudioInputError(f"{name} can't be read: {reason}", hint="check the URL and the network")


def _http_status(error: BaseException) -> int | None:
    """Return the status of a server's answer, because fsspec may report any failure as a missing file."""
    for each in (error, error.__cause__):
        status = getattr(each, "status", None)
        if isinstance(status, int) and status:
            return status
    return None
