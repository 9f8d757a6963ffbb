"""One request to a server, on a thread and a connection of its own.

Whoever waits for a call waits on a queue, so it can give up at once, whatever the request hangs in: a
name that is looked up, a handshake, a server that thinks. Giving up shuts the socket, which tells the
server to stop. This module knows neither sessions nor retries.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any

import httpx2
import openai

from voxcli.engines.openai.errors import FOREIGN, UnreadableError, broken_off, call_error
from voxcli.engines.openai.server import Server

AHEAD = 64  # deltas that the server may be ahead of whoever takes them
LOOK_SECONDS = 0.05  # how often somebody who waits looks whether it is still wanted
LEAVE_SECONDS = 1.0  # for a thread to end whose socket was shut; one that looks up a name goes on without us
RESPONSE_BYTES = 1 << 25  # a reply of 8192 tokens takes some 3 MB
LLAMA_CPP, LLAMA_CPP_OWNER = "llama.cpp", "llamacpp"  # what llama.cpp's server calls itself in a header and in a list
# No other header leaves this machine: openai adds some, from the environment too.
HEADERS_SENT = frozenset({"host", "accept", "content-type", "content-length", "connection", "user-agent"})


@dataclass(frozen=True)
class Usage:
    """What a server counted."""

    prompt_tokens: int
    cached_tokens: int
    reply_tokens: int


@dataclass
class ModelList:
    """What a server lists."""

    names: list[str] = field(default_factory=list)
    from_llama_cpp: bool = False


class Over:
    """The last item of a call that went well."""


Item = str | Usage | Over
Work = Callable[[openai.OpenAI], Iterator[str | Usage]]


class Call:
    """A request that runs; close it in any case."""

    def __init__(self, server: Server, tls: ssl.SSLContext, work: Work) -> None:
        """Begin.

        Args:
            tls: shared by the calls of an engine, for it takes a while to make.
            work: what to ask, and what to give of the answers.
        """
        self._server = server
        self._work = work
        self._items: Queue[Item | BaseException] = Queue(AHEAD)
        self._left = threading.Event()
        self._connection = _Connection()
        self._http = _http_client(server, tls, self._connection)
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
                # No retries and no key of openai's own: both are seen to here.
                client = openai.OpenAI(base_url=self._server.url, api_key="-", max_retries=0, http_client=self._http)
                with closing(self._work(client)) as items:  # type: ignore[type-var]  # a generator
                    for item in items:
                        self._put(item)
                self._put(Over())
        except FOREIGN as error:
            self._put(call_error(error, self._server))
        except BaseException as error:  # noqa: BLE001 - raised again by next(), where somebody sees it
            self._put(error)

    def _put(self, item: Item | BaseException) -> None:
        while not self._left.is_set():
            try:
                self._items.put(item, timeout=LOOK_SECONDS)
            except Full:
                continue
            break


def chat(body: dict[str, Any], server: Server) -> Work:
    """Return the work of asking for a completion: its deltas, and the server's counts where it sends them."""

    def work(client: openai.OpenAI) -> Iterator[str | Usage]:
        finished = False
        with client.chat.completions.create(**body) as stream:
            _check_content(stream.response, "text/event-stream")
            for chunk in stream:
                text, ended = _delta(chunk)
                finished = finished or ended
                if text:
                    yield text
                if usage := _usage(chunk):
                    yield usage
        if not finished:
            raise broken_off(server)

    return work


def models(found: "ModelList") -> Work:
    """Return the work of asking which models a server lists: their names, and in `found` who made the list."""

    def work(client: openai.OpenAI) -> Iterator[str]:
        response = client.get("/models", cast_to=httpx2.Response)
        _check_content(response, "application/json")
        listed = response.json()
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise UnreadableError("its list of models has no data")
        models = [entry for entry in entries if isinstance(entry, dict)]
        # A proxy puts its own name into the header, but leaves the list as it is.
        found.from_llama_cpp = response.headers.get("server", "").lower() == LLAMA_CPP or any(
            model.get("owned_by") == LLAMA_CPP_OWNER for model in models
        )
        for model in models:
            if isinstance(name := model.get("id"), str):
                yield name

    return work


def _check_content(response: httpx2.Response, wanted: str) -> None:
    found = response.headers.get("content-type", "nothing known").partition(";")[0].strip()
    if found != wanted:
        raise UnreadableError(f"it answers with {found[:40]}, not with {wanted}")


def _delta(chunk: Any) -> tuple[str, bool]:
    """Return a chunk's text, and whether the reply ends with it; anything may stand in a chunk."""
    choices = getattr(chunk, "choices", None)
    if not isinstance(choices, list):
        raise UnreadableError("what it streams are no chat completions")
    if not choices:  # the usage comes in such a chunk
        return "", False
    delta = getattr(choices[0], "delta", None)
    text = getattr(delta, "content", None)
    ended = bool(getattr(choices[0], "finish_reason", None))
    # JSON can spell half of a surrogate pair, which is no text.
    return text.encode(errors="replace").decode() if isinstance(text, str) else "", ended


def _usage(chunk: Any) -> Usage | None:
    usage = getattr(chunk, "usage", None)
    if usage is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    return Usage(_count(usage, "prompt_tokens"), _count(details, "cached_tokens"), _count(usage, "completion_tokens"))


def _count(holder: Any, name: str) -> int:
    count = getattr(holder, name, None)
    return count if isinstance(count, int) and count >= 0 else 0


def _http_client(server: Server, tls: ssl.SSLContext, connection: "_Connection") -> httpx2.Client:
    """Return a client for one request: what it sends is written here, and it follows nobody elsewhere."""

    def prepare(request: httpx2.Request) -> None:
        for name in set(request.headers) - HEADERS_SENT:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        if server.key:
            request.headers["authorization"] = f"Bearer {server.key.secret}"
        request.extensions = {**request.extensions, "trace": connection.note}

    def check(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnreadableError("it is compressed, which was not asked for")
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _Bounded(response.stream)

    return httpx2.Client(
        verify=tls,
        timeout=httpx2.Timeout(server.first_token_seconds + server.token_seconds, connect=server.connect_seconds),
        event_hooks={"request": [prepare], "response": [check]},
    )


class _Bounded(httpx2.SyncByteStream):
    """A response's bytes, up to a limit: a server may send without end."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for block in self._stream:
            received += len(block)
            if received > RESPONSE_BYTES:
                raise UnreadableError(f"it has more than {RESPONSE_BYTES >> 20} MB")
            yield block

    def close(self) -> None:
        self._stream.close()


class _Connection:
    """The socket of a request, for whoever ends the request from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    def note(self, _event: str, info: dict[str, Any]) -> None:
        """Take what the HTTP library tells of its doings: the socket that it opened, plain or within TLS."""
        ask = getattr(info.get("return_value"), "get_extra_info", None)
        if ask and (found := ask("socket")):
            with self._lock:
                self._socket = found
                if self._is_shut:
                    self._shut()

    def shut(self) -> None:
        """Wake whoever reads from the socket or writes to it; from now on nobody can."""
        with self._lock:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        # The plain socket's method, for that of TLS drops the encryption first, and a write might go past it.
        if self._socket:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
