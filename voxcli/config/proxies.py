"""Reads from the environment which proxy and which certificates a connection uses.

The variables are those of curl: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case, the lower one
first, and `SSL_CERT_FILE` and `SSL_CERT_DIR`. On macOS and Windows the system's settings count where no variable is
set. Nothing is sent from here.
"""

import ipaddress
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from voxcli.errors import ConfigError
from voxcli.printable import printable

SCHEMES = ("http", "https", "socks5", "socks5h")  # Proxies that httpx2 speaks to.
CERTIFICATES_HINT = "name a file or folder with certificates, or unset {}"


@dataclass(frozen=True)
class Proxy:
    """A proxy that connections go through, and where it was named."""

    url: str = field(repr=False)  # may hold a name and a password
    origin: str  # the variable, or the system's settings

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme.lower()

    @property
    def host(self) -> str:
        """Host and port, without name and password."""
        return printable(urlsplit(self.url).netloc.rpartition("@")[2])

    def __str__(self) -> str:
        return f"the proxy {self.host} ({self.origin})"

    def hidden_in(self, text: str) -> str:
        """Return a text without the proxy's name and password."""
        credentials = urlsplit(self.url).netloc.rpartition("@")[0]
        for secret in (credentials, credentials.partition(":")[2]):
            text = text.replace(secret, "[proxy password]") if secret else text
        return text


def find_proxy(url: str) -> Proxy | None:
    """Return the proxy for a URL; None for loopback, and for what `NO_PROXY` names.

    Raises:
        ConfigError: the proxy's URL can't be read, its scheme is not one of `SCHEMES`, or the package for SOCKS is not
            installed.
    """
    parts, proxies = urlsplit(url), getproxies()
    named = next((name for name in (parts.scheme.lower(), "all") if proxies.get(name)), None)
    if named is None or is_loopback(url) or _is_bypassed(parts, proxies.get("no", "")):
        return None
    return _checked(proxies[named], named)


def check_proxies() -> None:
    """Check every proxy in the environment, for a library that reads all of them whatever it connects to.

    Raises:
        ConfigError: as in `find_proxy`.
    """
    proxies = getproxies()
    for name in ("http", "https", "all"):
        if proxies.get(name):
            _checked(proxies[name], name)


def check_certificates() -> None:
    """Check that the certificates named in the environment can be used.

    Raises:
        ConfigError: `SSL_CERT_FILE` or `SSL_CERT_DIR` names nothing, or a file without certificates.
    """
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except ssl.SSLError as error:
            raise _certificate_error("SSL_CERT_FILE", file, "there are no certificates in it") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise _certificate_error("SSL_CERT_FILE", file, getattr(error, "strerror", "") or str(error)) from error
        return
    folders = os.environ.get("SSL_CERT_DIR", "")  # a list; OpenSSL skips what does not exist
    if folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        raise _certificate_error("SSL_CERT_DIR", folders, "it is not a folder")


def is_loopback(url: str) -> bool:
    """Return whether a connection to a URL stays on this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:  # 127.1 and the like
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified  # a connection to 0.0.0.0 goes to this machine


def _is_bypassed(url: SplitResult, no_proxy: str) -> bool:
    """Return whether `NO_PROXY` names a host: by its name, as `*`, as an address, or within a network."""
    host = url.hostname or ""
    entries = no_proxy.lower().replace(",", " ").split()  # curl takes spaces for commas, too
    named = bool(proxy_bypass(url.netloc) or proxy_bypass(host))
    return named or any(fnmatchcase(host, entry) or _is_within(host, entry) for entry in entries)


def _is_within(host: str, network: str) -> bool:
    with suppress(ValueError):
        bare = network.replace("[", "").replace("]", "")
        return ipaddress.ip_address(host) in ipaddress.ip_network(bare, strict=False)
    return False


def _checked(text: str, name: str) -> Proxy:
    url = text if "://" in text else f"http://{text}"
    origin = next(
        (each for each in (f"{name}_proxy", f"{name}_PROXY".upper()) if each in os.environ), "system settings"
    )
    hint = f"correct or unset {origin}, or name the host in NO_PROXY"
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and (parts.port or 1) > 0 and url.isprintable() and " " not in url
        is_whole = is_whole and "@" not in f"{parts.path}{parts.query}{parts.fragment}"  # a password with a slash
    except ValueError:  # no address, or no port
        is_whole = False
    if not is_whole:  # It may hold a password, so it is not quoted.
        raise ConfigError(f"{origin} is not the URL of a proxy", hint=hint)
    if parts.scheme.lower() not in SCHEMES:
        raise ConfigError(f"{origin} names a proxy of a kind that can't be used: {parts.scheme}://", hint=hint)
    if parts.scheme.lower().startswith("socks") and find_spec("socksio") is None:
        message = f"{origin} names a SOCKS proxy, which needs a package that is not installed"
        raise ConfigError(message, hint=f"pip install socksio; or {hint}")
    return Proxy(url, origin)


def _certificate_error(variable: str, value: str, reason: str) -> ConfigError:
    message = f"{variable} names {printable(value)}, which can't be used: {reason}"
    return ConfigError(message, hint=CERTIFICATES_HINT.format(variable))
