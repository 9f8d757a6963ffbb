"""Prepares what the HTTP library needs for TLS and for a proxy, without a protocol's library."""

import ssl
from urllib.parse import urlsplit

import httpx2

from voxcli.config.proxies import Proxy, check_certificates
from voxcli.servers.server import Server


def tls_context(server: Server) -> ssl.SSLContext:
    """Return what checks the certificates of a server and of its proxy.

    Raises:
        ConfigError: the certificates that the environment names can't be used.
    """
    if "https" not in (urlsplit(server.url).scheme, server.proxy.scheme if server.proxy else ""):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing will be checked
    check_certificates()
    return httpx2.create_ssl_context()


def http_proxy(proxy: Proxy | None, tls: ssl.SSLContext) -> httpx2.Proxy | None:
    """Return a proxy as the HTTP library takes it."""
    return httpx2.Proxy(proxy.url, ssl_context=tls if proxy.scheme == "https" else None) if proxy else None
