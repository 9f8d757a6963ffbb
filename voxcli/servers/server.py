"""Describes how a server is reached: its address, its key, and the proxy on the way. Nothing is sent from here.

The key is in no message, no `repr` and no cause of an error. This module knows neither the protocol nor the libraries
that speak it.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from voxcli.config.proxies import Proxy, is_loopback
from voxcli.errors import ConfigError
from voxcli.printable import printable

VARIABLE = "VOXCLI_API_KEY"
SPEECH_VARIABLE = "VOXCLI_SPEECH_API_KEY"  # another server, which must not get the key of the first
SERVICE = "voxcli"  # in the keyring; the name there is the server's host
KEY_CHARACTERS = 4096  # longest key; OAuth tokens have about 2000 characters
WRONG_VOXTRAL = "llama.cpp's server, which computes Voxtral wrongly: it averages pairs of audio positions; use vLLM"
EXAMPLE = "give one like http://localhost:8000/v1"


@dataclass(frozen=True)
class ApiKey:
    """A secret, and where it was found."""

    secret: str = field(repr=False)
    origin: str  # in words

    def hidden_in(self, text: str) -> str:
        """Return a text without the secret."""
        return text.replace(self.secret, "[key]")


@dataclass(frozen=True)
class ServerUse:
    """What messages about a server name, by what it is for."""

    key_variable: str
    flag: str  # gives the address
    check: str  # the command that asks whether it answers
    sent: str  # what it gets


FOR_REPLIES = ServerUse(VARIABLE, "--url", "voxcli doctor --engine remote", "the audio")
FOR_SPEECH = ServerUse(SPEECH_VARIABLE, "--voice", "voxcli doctor", "the text")


@dataclass(frozen=True)
class Server:
    """A server and its time limits."""

    url: str  # as `checked_url` returns it
    key: ApiKey | None = None
    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    token_seconds: float = 20.0  # between two tokens
    retries: int = 3  # after the first attempt
    proxy: Proxy | None = None
    use: ServerUse = FOR_REPLIES

    @property
    def host(self) -> str:
        """Host and port, as in the address."""
        return urlsplit(self.url).netloc

    @property
    def way(self) -> str:
        """The proxy on the way, for the end of a message; empty if there is none."""
        return f", through {self.proxy}" if self.proxy else ""

    def hidden_in(self, text: str) -> str:
        """Return a text without the key and without the proxy's password."""
        text = self.proxy.hidden_in(text) if self.proxy else text
        return self.key.hidden_in(text) if self.key else text


def checked_url(text: str, use: ServerUse = FOR_REPLIES) -> str:
    """Return the address of a server, without a slash at its end.

    Args:
        use: what the hints of errors name.

    Raises:
        ConfigError: it is not http or https, has no host, or has a name and password in it, which are not shown.
    """
    url = text.strip()
    if "@" in url:  # Checked first, because no other message may show a password.
        hint = f"give the key in {use.key_variable} instead"
        raise ConfigError("the server's URL carries a name or password", hint=hint)
    if not url or not url.isprintable() or " " in url:
        raise ConfigError(f"the server's URL is {printable(url)!r}", hint=f"{EXAMPLE} with {use.flag}")
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
    """Return the key that the system's keyring has for a host; None if it has none or can't be read."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        return keyring.get_password(SERVICE, host)
    except KeyringError:  # It is missing or locked. The error of a server that needs a key says how to give one.
        return None


def find_key(
    url: str,
    environ: Mapping[str, str] = os.environ,
    keyring: Callable[[str], str | None] = from_keyring,
    variable: str = VARIABLE,
) -> ApiKey | None:
    """Return the key for a server: from `variable`, from the file that it names as `@PATH`, or from the keyring.

    Raises:
        ConfigError: the file can't be read, or its content or the value can't be a key.
    """
    given = environ.get(variable, "").strip()
    if given.startswith("@"):
        return _key(_read(given[1:], variable), f"the file that {variable} names")
    if given:
        return _key(given, variable)
    host = urlsplit(url).netloc
    secret = keyring(host)
    return _key(secret, f"the keyring ({SERVICE}, {host})") if secret else None


def _read(path: str, variable: str) -> str:
    # Neither the name nor the error that contains it is shown: the name may be a key, by mistake.
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(KEY_CHARACTERS + 1).decode("ascii").strip()
    except OSError as error:
        reason = error.strerror or "it is not a file"
    except UnicodeDecodeError:
        reason = "it is not plain text"
    except (ValueError, RuntimeError):
        reason = "this is no file's name"
    raise ConfigError(f"the file that {variable} names can't be read: {reason}", hint=f"{variable}=@PATH")


def _key(secret: str, origin: str) -> ApiKey:
    secret = secret.strip()
    if not secret or len(secret) > KEY_CHARACTERS or not all("!" <= char <= "~" for char in secret):
        raise ConfigError(f"what {origin} holds is not a key", hint="a key is one line of letters, digits and signs")
    return ApiKey(secret, origin)


def warning(server: Server) -> str:
    """Return a warning if the key would be sent unencrypted to another machine; else an empty string."""
    if server.key is None or urlsplit(server.url).scheme == "https" or is_loopback(server.url):
        return ""
    return f"the key travels unencrypted to {server.host}: anyone in between can read it; use https"


def proxy_notice(server: Server) -> str:
    """Return that what is sent, and the key if there is one, go through a proxy; empty without a proxy."""
    if server.proxy is None:
        return ""
    sent = f"the key and {server.use.sent}" if server.key else server.use.sent
    read = (
        ""
        if urlsplit(server.url).scheme == "https"
        else ", which can read them"
        if server.key
        else ", which can read it"
    )
    return f"{sent} for {server.host} {'go' if server.key else 'goes'} through {server.proxy}{read}"
