"""Opens the two ways to an MCP server: the standard streams of a program, and streamable HTTP."""

import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from voxcli.printable import first_line
from voxcli.tools.process import found_program

if TYPE_CHECKING:
    import httpx2
    from mcp.client._transport import TransportStreams

    from voxcli.servers.server import Server

log = logging.getLogger(__name__)

RESPONSE_BYTES = 8 << 20  # longest answer to a request; one event of a stream may have 1 MB
LINE_BYTES = 4096
LOGGED_LINES = 1000  # Lines of a program's standard error that are logged; the rest is dropped.
CONNECT_SECONDS = 10.0

Said = Callable[[str], None]  # told why a connection may fail, in words of the server
OpenTransport = Callable[[Said], "AbstractAsyncContextManager[TransportStreams]"]


def stdio(name: str, command: Sequence[str], environ: Mapping[str, str]) -> OpenTransport:
    """Return what starts a program that is a server.

    Args:
        name: that of the server, for the log.
        environ: what it gets beside the few variables that the package passes on.
    """

    @asynccontextmanager
    async def opened(said: Said) -> "AsyncIterator[TransportStreams]":
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *arguments = found_program(command, environ)
        parameters = StdioServerParameters(
            command=program,
            args=arguments,
            env=dict(environ),
            cwd=Path.home(),
            encoding_error_handler="replace",
        )
        with _stderr_log(name, said) as errors:
            async with stdio_client(parameters, errlog=errors) as streams:
                yield streams

    return opened


def http(server: "Server", tls: ssl.SSLContext) -> OpenTransport:
    """Return what connects to a server over HTTP.

    Args:
        tls: as from `voxcli.servers.tls`.
    """

    @asynccontextmanager
    async def opened(said: Said) -> "AsyncIterator[TransportStreams]":
        from mcp.client.streamable_http import streamable_http_client

        said(f"{server.host} can't be reached{server.way}")
        async with (
            _http_client(server, tls, said) as client,
            streamable_http_client(server.url, http_client=client) as streams,
        ):
            yield streams

    return opened


def _http_client(server: "Server", tls: ssl.SSLContext, said: Said) -> "httpx2.AsyncClient":
    """Return a client that sends the key to this server alone."""
    import httpx2

    from voxcli.servers.tls import http_proxy

    async def check(response: httpx2.Response) -> None:
        if response.status_code in (401, 403):
            said(f"it refuses access (HTTP {response.status_code}): {_key_hint(server)}")
        else:
            said(f"it answers with HTTP {response.status_code}" if response.status_code >= 400 else "")
        if "event-stream" not in response.headers.get("content-type", "") and isinstance(
            response.stream, httpx2.AsyncByteStream
        ):
            response.stream = _bounded(response.stream)

    headers = {"accept-encoding": "identity"}
    if server.key:
        headers["authorization"] = f"Bearer {server.key.secret}"
    return httpx2.AsyncClient(
        verify=tls,
        trust_env=False,  # the environment was read before, when the server was looked for
        proxy=http_proxy(server.proxy, tls),
        follow_redirects=False,
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),  # each call has its own limit
        headers=headers,
        event_hooks={"response": [check]},
    )


def _key_hint(server: "Server") -> str:
    from voxcli.servers.server import SERVICE

    if server.key:
        return f"check the key from {server.key.origin}"
    return f"set {server.use.key_variable}, or: keyring set {SERVICE} {server.host}"


def _bounded(stream: "httpx2.AsyncByteStream") -> "httpx2.AsyncByteStream":
    import httpx2

    class BoundedBody(httpx2.AsyncByteStream):
        """Ends a response that is too long with an error."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            count = 0
            async for chunk in stream:
                count += len(chunk)
                if count > RESPONSE_BYTES:
                    raise httpx2.ReadError(f"an answer has more than {RESPONSE_BYTES >> 20} MB")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return BoundedBody()


@contextmanager
def _stderr_log(name: str, said: Said) -> Iterator[TextIO]:
    """Give a file whose lines go to the log, and to `said`."""
    reading, writing = os.pipe()
    threading.Thread(target=_log_lines, args=(reading, name, said), name="mcp stderr", daemon=True).start()
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        yield file


def _log_lines(descriptor: int, name: str, said: Said) -> None:
    """Log the lines that come from a pipe until all who write to it have ended."""
    count = 0
    with os.fdopen(descriptor, "rb") as pipe, suppress(OSError):
        while line := pipe.readline(LINE_BYTES):
            count += 1
            text = first_line(line.decode("utf-8", "replace")) if line.strip() else ""
            if text and count <= LOGGED_LINES:
                log.info("mcp %s: stderr: %s", name, text)
                said(text)
