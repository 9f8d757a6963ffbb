"""Sends one request to a server, on a thread and a connection of its own.

The caller waits on a queue, so it can give up at once whatever the request waits for: a name lookup, a handshake
or a busy server. Giving up shuts the socket down, which stops the server too.
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

AHEAD = 64  # deltas that the server may be ahead of the reader
LOOK_SECONDS = 0.05  # interval at which a waiting caller checks its interrupt
LEAVE_SECONDS = 1.0  # wait for the thread of a closed socket to end; a name lookup may take longer and is left behind
RESPONSE_BYTES = 1 << 25  # largest response; a reply of 8192 tokens takes some 3 MB
LLAMA_CPP, LLAMA_CPP_OWNER = "llama.cpp", "llamacpp"  # names of llama.cpp's server in a header and in a list of models
# Only these headers are sent: openai adds others, some from the environment.
HEADERS_SENT = frozenset({"host", "accept", "content-type", "content-length", "connection", "user-agent"})


@dataclass(frozen=True)
class Usage:
    """Token counts of a server."""

    prompt_tokens: int
    cached_tokens: int
    reply_tokens: int


@dataclass
class ModelList:
    """The models that a server lists."""

    names: list[str] = field(default_factory=list)
    from_llama_cpp: bool = False


class Over:
    """The last item of a successful call."""


Item = str | Usage | Over
Work = Callable[[openai.OpenAI], Iterator[str | Usage]]


class Call:
    """A running request, which has to be closed."""

    def __init__(self, server: Server, tls: ssl.SSLContext, work: Work) -> None:
        """Start the request.

        Args:
            tls: shared by all calls of an engine, because it is slow to create.
            work: sends the request with a client and yields items of the answer.
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
                # openai's own retries and key are turned off.
                client = openai.OpenAI(base_url=self._server.url, api_key="-", max_retries=0, http_client=self._http)
                with closing(self._work(client)) as items:  # type: ignore[type-var]  # a generator
                    for item in items:
                        self._put(item)
                self._put(Over())
        except FOREIGN as error:
            self._put(call_error(error, self._server))
        except BaseException as error:  # noqa: BLE001 - raised again by `next`
            self._put(error)

    def _put(self, item: Item | BaseException) -> None:
        while not self._left.is_set():
            try:
                self._items.put(item, timeout=LOOK_SECONDS)
            except Full:
                continue
            break


def chat(body: dict[str, Any], server: Server) -> Work:
    """Return the work of a completion: yields its deltas, and the server's counts if it sends them."""

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
    """Return the work of listing models: yields their names, and records in `found` which software lists them."""

    def work(client: openai.OpenAI) -> Iterator[str]:
        response = client.get("/models", cast_to=httpx2.Response)
        _check_content(response, "application/json")
        listed = response.json()
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise UnreadableError("its list of models has no data")
        models = [entry for entry in entries if isinstance(entry, dict)]
        # A proxy puts its own name into the header, but does not change the list.
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
    """Return a chunk's text, and whether the reply ends with it. A chunk may contain anything."""
    choices = getattr(chunk, "choices", None)
    if not isinstance(choices, list):
        raise UnreadableError("what it streams are no chat completions")
    if not choices:  # this chunk has the usage
        return "", False
    delta = getattr(choices[0], "delta", None)
    text = getattr(delta, "content", None)
    ended = bool(getattr(choices[0], "finish_reason", None))
    # JSON can contain half of a surrogate pair, which is not valid text.
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
    """Return a client for one request, with the headers above and without redirects."""

    def prepare(request: httpx2.Request) -> None:
        for name in set(request.headers) - HEADERS_SENT:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        if server.key:
            request.headers["authorization"] = f"Bearer {server.key.secret}"
        request.extensions = {**request.extensions, "trace": connection.note}

    def check(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnreadableError("it is compressed, which the request did not allow")
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _Bounded(response.stream)

    return httpx2.Client(
        verify=tls,
        timeout=httpx2.Timeout(server.first_token_seconds + server.token_seconds, connect=server.connect_seconds),
        event_hooks={"request": [prepare], "response": [check]},
    )


class _Bounded(httpx2.SyncByteStream):
    """The bytes of a response up to a limit, because a server may send without end."""

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
    """The socket of a request, for ending the request from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_shut = False

    def note(self, _event: str, info: dict[str, Any]) -> None:
        """Receive trace events of the HTTP library, and keep the socket that it opened, plain or within TLS."""
        ask = getattr(info.get("return_value"), "get_extra_info", None)
        if ask and (found := ask("socket")):
            with self._lock:
                self._socket = found
                if self._is_shut:
                    self._shut()

    def shut(self) -> None:
        """Shut the socket down, which wakes threads that read from it or write to it."""
        with self._lock:
            self._is_shut = True
            self._shut()

    def _shut(self) -> None:
        # The method of the plain socket is called: the TLS one drops the encryption first, and a write might follow.
        if self._socket:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
