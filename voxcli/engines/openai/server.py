"""The address of a server and its key.

The key never appears in a message, a `repr` or the cause of an error. Nothing is sent from here.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from voxcli.errors import ConfigError
from voxcli.printable import printable

VARIABLE = "VOXCLI_API_KEY"
SERVICE = "voxcli"  # service in the keyring, where the user name is the server's host
KEY_CHARACTERS = 4096  # OAuth tokens have some two thousand
WRONG_VOXTRAL = "llama.cpp's server, which computes Voxtral wrongly: it averages pairs of audio positions; use vLLM"
EXAMPLE = "give one like http://localhost:8000/v1"


@dataclass(frozen=True)
class ApiKey:
    """A secret and its origin."""

    secret: str = field(repr=False)
    origin: str  # where it was found, in words

    def hidden_in(self, text: str) -> str:
        """Return a text without the secret."""
        return text.replace(self.secret, "[key]")


@dataclass(frozen=True)
class Server:
    """A server and its time limits."""

    url: str  # as `checked_url` returns it
    key: ApiKey | None = None
    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    token_seconds: float = 20.0  # most time between two tokens
    retries: int = 3  # after the first attempt

    @property
    def host(self) -> str:
        """Host and port in the address."""
        return urlsplit(self.url).netloc

    def hidden_in(self, text: str) -> str:
        """Return a text without the key."""
        return self.key.hidden_in(text) if self.key else text


def checked_url(text: str) -> str:
    """Return the address of a server without a slash at its end.

    Raises:
        ConfigError: not http or https, no host, or a name and password in the address, which are not shown.
    """
    url = text.strip()
    if "@" in url:  # checked first, because other messages show the address
        raise ConfigError("the server's URL carries a name or password", hint=f"give the key in {VARIABLE} instead")
    if not url or not url.isprintable() or " " in url:
        raise ConfigError(f"the server's URL is {printable(url)!r}", hint=f"{EXAMPLE} with --url")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError as error:
        raise ConfigError(f"the server's URL {url} can't be read: {error}", hint=EXAMPLE) from error
    if parts.scheme not in ("http", "https"):
        bare = url.split("://")[-1]
        raise ConfigError(f"the server's URL {url} is neither http nor https", hint=f"did you mean http://{bare}?")
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"the server's URL {url} is not host and path alone", hint=EXAMPLE)
    return url.rstrip("/")


def from_keyring(host: str) -> str | None:
    """Return the system keyring's key for a host; None without a readable keyring."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        return keyring.get_password(SERVICE, host)
    except KeyringError:  # there is no keyring, or it is locked; a server that needs a key then says how to give one
        return None


def find_key(
    url: str,
    environ: Mapping[str, str] = os.environ,
    keyring: Callable[[str], str | None] = from_keyring,
) -> ApiKey | None:
    """Return the key for a server from VOXCLI_API_KEY, the file that it names as `@PATH`, or the keyring.

    Raises:
        ConfigError: the file can't be read, or its content can't be a key.
    """
    given = environ.get(VARIABLE, "").strip()
    if given.startswith("@"):
        return _key(_read(given[1:]), f"the file that {VARIABLE} names")
    if given:
        return _key(given, VARIABLE)
    host = urlsplit(url).netloc
    secret = keyring(host)
    return _key(secret, f"the keyring ({SERVICE}, {host})") if secret else None


def _read(path: str) -> str:
    # Neither the file name nor the error with it is shown: a key may stand there by mistake.
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(KEY_CHARACTERS + 1).decode("ascii").strip()
    except OSError as error:
        reason = error.strerror or "it is not a file"
    except UnicodeDecodeError:
        reason = "it is not plain text"
    except (ValueError, RuntimeError):
        reason = "this is no file's name"
    raise ConfigError(f"the file that {VARIABLE} names can't be read: {reason}", hint=f"{VARIABLE}=@PATH")


def _key(secret: str, origin: str) -> ApiKey:
    secret = secret.strip()
    if not secret or len(secret) > KEY_CHARACTERS or not all("!" <= char <= "~" for char in secret):
        raise ConfigError(f"what {origin} holds is not a key", hint="a key is one line of letters, digits and signs")
    return ApiKey(secret, origin)


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def warning(server: Server) -> str:
    """Return a warning for the user before a request is sent; empty without one."""
    if server.key is None or urlsplit(server.url).scheme == "https" or is_loopback(server.url):
        return ""
    return f"the key travels unencrypted to {server.host}: anyone in between can read it; use https"
