"""Runs one request to a server, on a thread and a connection of its own.

The caller waits on a queue, so it can give up at once whatever the request is waiting for: a name lookup, a handshake,
a slow server. Giving up shuts the socket, which tells the server to stop. This module does not retry.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

import httpx2
import openai

from voxcli.servers.errors import FOREIGN, UnreadableError, call_error
from voxcli.servers.server import Server
from voxcli.servers.tls import http_proxy

AHEAD = 64  # items that the server may be ahead of the caller
LOOK_SECONDS = 0.05  # between two looks whether a waiting thread is still wanted
LEAVE_SECONDS = 1.0  # longest wait for a thread whose socket was shut; one in a name lookup ends later by itself
ENCODINGS = ("identity", "gzip", "deflate")
# No other header is sent: openai adds some, even from the environment.
HEADERS_SENT = frozenset({"host", "accept", "content-type", "content-length", "connection", "user-agent"})

Item = TypeVar("Item")
Limit = Callable[[httpx2.SyncByteStream, bool], httpx2.SyncByteStream]


class Call(Generic[Item]):
    """A running request. It must be closed."""

    def __init__(
        self,
        server: Server,
        tls: ssl.SSLContext,
        path: str,
        work: Callable[[openai.OpenAI], Iterator[Item]],
        limit: Limit,
    ) -> None:
        """Start the request.

        Args:
            tls: as from `voxcli.servers.tls`; shared by the calls of an engine, because it takes a while to make.
            path: the part of the protocol that is asked, for messages.
            work: sends the request and yields what is wanted of the answer.
            limit: wraps the response's bytes, told whether they are compressed; it bounds them, because a server may
                send without end.
        """
        self._server = server
        self._path = path
        self._work = work
        self._items: Queue[Item | BaseException] = Queue(AHEAD)
        self._left = threading.Event()
        self._connection = _Connection()
        self._http = _http_client(server, tls, self._connection, limit)
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)
        self._thread.start()

    def next(self, deadline: float, interrupt: threading.Event) -> Item | None:
        """Return the next item; None once `interrupt` is set.

        Raises:
            TimeoutError: `time.monotonic()` reached `deadline`, in seconds.
            CallError: the request failed.
        """
        while not interrupt.is_set():
            try:
                item = self._items.get(timeout=LOOK_SECONDS)
            except Empty:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        return None

    def close(self) -> None:
        """Stop the request, on the server too."""
        self._left.set()
        self._connection.shut()
        self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        try:
            with self._http:
                # openai's own retries and key are not used: the engine and _http_client do that.
                client = openai.OpenAI(base_url=self._server.url, api_key="-", max_retries=0, http_client=self._http)
                with closing(self._work(client)) as items:  # type: ignore[type-var]  # a generator
                    for item in items:
                        self._put(item)
                        if self._left.is_set():  # A shut socket still gives what has arrived.
                            break
        except FOREIGN as error:
            self._put(call_error(error, self._server, self._path))
        except BaseException as error:  # noqa: BLE001 - raised again by next(), on the caller's thread
            self._put(error)

    def _put(self, item: Item | BaseException) -> None:
        while not self._left.is_set():
            try:
                self._items.put(item, timeout=LOOK_SECONDS)
            except Full:
                continue
            break


def content_type(response: httpx2.Response) -> str:
    """Return the type that a response names, in lower case and without parameters; empty if it names none."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def unexpected_type(response: httpx2.Response) -> UnreadableError:
    """Return the error of a response that is of another type than was asked for."""
    return UnreadableError(f"it answers with {content_type(response)[:40] or 'nothing known'}")


def _http_client(server: Server, tls: ssl.SSLContext, connection: "_Connection", limit: Limit) -> httpx2.Client:
    """Return a client for one request. It sends only the headers given here and follows no redirect."""

    def prepare(request: httpx2.Request) -> None:
        for name in set(request.headers) - HEADERS_SENT:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        if server.key:
            request.headers["authorization"] = f"Bearer {server.key.secret}"
        request.extensions = {**request.extensions, "trace": connection.note}

    def check(response: httpx2.Response) -> None:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in ENCODINGS:
            raise UnreadableError(f"it is compressed in a way that was not asked for: {encoding[:40]}")
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = limit(response.stream, encoding != "identity")

    return httpx2.Client(
        verify=tls,
        trust_env=False,  # the environment was read before, when the server was looked for
        proxy=http_proxy(server.proxy, tls),
        timeout=httpx2.Timeout(server.first_token_seconds + server.token_seconds, connect=server.connect_seconds),
        event_hooks={"request": [prepare], "response": [check]},
    )


class _Connection:
    """Holds the socket of a request, so that another thread can end the request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    def note(self, _event: str, info: dict[str, Any]) -> None:
        """Keep the socket, plain or within TLS, from a trace event of the HTTP library."""
        ask = getattr(info.get("return_value"), "get_extra_info", None)
        if ask and (found := ask("socket")):
            with self._lock:
                self._socket = found
                if self._is_shut:
                    self._shut()

    def shut(self) -> None:
        """End every read and write on the socket, now and later."""
        with self._lock:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        # The plain socket's method: that of TLS drops the encryption first, so a write could be sent unencrypted.
        if self._socket:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
