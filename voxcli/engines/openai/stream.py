"""Runs one request to a server, on a thread and a connection of its own.

The caller waits on a queue, so it can give up at once whatever the request is waiting for: a name lookup, a handshake,
a slow server. Giving up shuts the socket, which tells the server to stop. This module knows neither sessions nor
retries.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from voxcli.config.proxies import Proxy, check_certificates
from voxcli.engines.openai.chunks import ReplyReader, Usage
from voxcli.engines.openai.errors import FOREIGN, UnreadableError, broken_off, call_error, no_text
from voxcli.engines.openai.server import Server

AHEAD = 64  # deltas that the server may be ahead of the caller
LOOK_SECONDS = 0.05  # between two looks whether a waiting thread is still wanted
LEAVE_SECONDS = 1.0  # longest wait for a thread whose socket was shut; one in a name lookup ends later by itself
RESPONSE_BYTES = 1 << 25  # longest response; a reply of 8192 tokens takes about 3 MB
DONE = object()  # what a stream ends with
EVENT_TYPES = ("text/event-stream", "text/plain", "")  # Streams; some servers name the type wrongly or not at all.
ENCODINGS = ("identity", "gzip", "deflate")
COMPRESSED_BYTES = RESPONSE_BYTES >> 6  # Limit of a compressed response, which expands a thousandfold at most.
LLAMA_CPP, LLAMA_CPP_OWNER = "llama.cpp", "llamacpp"  # names of llama.cpp's server, in a header and in a list
# No other header is sent: openai adds some, even from the environment.
HEADERS_SENT = frozenset({"host", "accept", "content-type", "content-length", "connection", "user-agent"})


@dataclass
class ModelList:
    """What a server lists."""

    names: list[str] = field(default_factory=list)
    from_llama_cpp: bool = False


@dataclass(frozen=True)
class Over:
    """The last item of a call that went well."""

    usage: Usage | None = None  # None where the server counts nothing
    finish_reason: str = ""  # empty where the server gives none


Item = str | Over
Work = Callable[[openai.OpenAI], Iterator[Item]]


class Call:
    """A running request. It must be closed."""

    def __init__(self, server: Server, tls: ssl.SSLContext, path: str, work: Work) -> None:
        """Start the request.

        Args:
            tls: as from `tls_context`; shared by the calls of an engine, because it takes a while to make.
            path: the part of the protocol that is asked, for messages.
            work: sends the request and yields what is wanted of the answer; `Over` comes last.
        """
        self._server = server
        self._path = path
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
                # openai's own retries and key are not used: the engine and _http_client do that.
                client = openai.OpenAI(base_url=self._server.url, api_key="-", max_retries=0, http_client=self._http)
                with closing(self._work(client)) as items:  # type: ignore[type-var]  # a generator
                    for item in items:
                        self._put(item)
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


def chat(body: dict[str, Any], server: Server) -> Work:
    """Return the work of asking for a completion: its text in deltas, without the model's reasoning.

    A delta is empty where the reply grew by text that may be reasoning.
    """

    def work(client: openai.OpenAI) -> Iterator[Item]:
        reader, is_whole = ReplyReader(), False
        with client.chat.completions.create(**body) as stream:  # openai's own reader is too strict.
            for answer in _answers(stream.response):
                if answer is DONE:
                    is_whole = True
                elif (text := reader.read(answer)) is not None:
                    yield text
        if rest := reader.rest():
            yield rest
        if not (is_whole or reader.finish_reason):
            raise broken_off(server)
        if not reader.has_text:
            raise no_text(server, reader.finish_reason, reasoning=reader.has_reasoning, tool=reader.calls_tool)
        yield Over(reader.usage, reader.finish_reason)

    return work


def models(found: "ModelList") -> Work:
    """Return the work of asking which models a server lists: their names, and in `found` who made the list."""

    def work(client: openai.OpenAI) -> Iterator[Item]:
        response = client.get("/models", cast_to=httpx2.Response)
        if not _content_type(response).endswith("json"):
            raise _unexpected_type(response)
        listed = json.loads(response.content)
        entries = listed.get("data") if isinstance(listed, dict) else listed  # some send the bare list
        if entries is None and isinstance(listed, dict) and "data" in listed:  # Ollama without models
            entries = []
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
        yield Over()

    return work


def _answers(response: httpx2.Response) -> Iterator[Any]:
    """Yield the objects of a stream, or the one of an answer that is not streamed; DONE where it is said to be whole.

    Raises:
        UnreadableError: it is neither.
        ValueError: it is not JSON.
    """
    kind = _content_type(response)
    if kind in EVENT_TYPES:
        yield from _streamed(response)
    elif kind.endswith("json"):
        answer = json.loads(response.read())
        if not isinstance(answer, dict) or not (answer.get("choices") or answer.get("error")):
            raise UnreadableError("its answer holds no choices")
        yield answer
        yield DONE
    else:
        raise _unexpected_type(response)


def _streamed(response: httpx2.Response) -> Iterator[Any]:
    response.headers["content-type"] = EVENT_TYPES[0]  # else EventSource refuses it
    response.encoding = "utf-8-sig"  # events are UTF-8 whatever a header says, and may begin with a byte-order mark
    for event in httpx2.EventSource(response, max_event_size=RESPONSE_BYTES):
        data = event.data.strip()
        if data.startswith("[DONE]"):
            yield DONE
            return
        if not data or event.event == "ping":
            continue
        if event.event != "error":
            yield json.loads(data)
            continue
        try:
            body = json.loads(data)
        except ValueError:
            body = data
        yield body if isinstance(body, dict) and body.get("error") else {"error": body}


def _content_type(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _unexpected_type(response: httpx2.Response) -> UnreadableError:
    return UnreadableError(f"it answers with {_content_type(response)[:40] or 'nothing known'}")


def tls_context(server: Server) -> ssl.SSLContext:
    """Return what checks the certificates of a server and of its proxy.

    Raises:
        ConfigError: the certificates that the environment names can't be used.
    """
    if "https" not in (urlsplit(server.url).scheme, server.proxy.scheme if server.proxy else ""):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing will be checked
    check_certificates()
    return httpx2.create_ssl_context()


def _http_client(server: Server, tls: ssl.SSLContext, connection: "_Connection") -> httpx2.Client:
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
            response.stream = _Repaired(response.stream, compressed=encoding != "identity")

    return httpx2.Client(
        verify=tls,
        trust_env=False,  # the environment was read before, when the server was looked for
        proxy=_proxy(server.proxy, tls),
        timeout=httpx2.Timeout(server.first_token_seconds + server.token_seconds, connect=server.connect_seconds),
        event_hooks={"request": [prepare], "response": [check]},
    )


def _proxy(proxy: Proxy | None, tls: ssl.SSLContext) -> httpx2.Proxy | None:
    return httpx2.Proxy(proxy.url, ssl_context=tls if proxy.scheme == "https" else None) if proxy else None


class _Repaired(httpx2.SyncByteStream):
    """A response's bytes, up to a limit: a server may send without end. Events are made to be what EventSource reads.

    The last event gets its end, which some servers leave out. llama.cpp's server gave errors a field of their own
    until late 2025 (ggml-org/llama.cpp#16104): it becomes an event of that name.
    """

    def __init__(self, stream: httpx2.SyncByteStream, *, compressed: bool) -> None:
        self._stream = stream
        self._compressed = compressed

    def __iter__(self) -> Iterator[bytes]:
        limit = COMPRESSED_BYTES if self._compressed else RESPONSE_BYTES
        received, begins_line = 0, True
        for block in self._stream:
            received += len(block)
            if received > limit:
                raise UnreadableError(f"it has more than {limit / (1 << 20):g} MB")
            yield block if self._compressed else _renamed(block, begins_line=begins_line)
            begins_line = block.endswith(b"\n")
        if not self._compressed:
            yield b"\n\n"

    def close(self) -> None:
        self._stream.close()


def _renamed(block: bytes, *, begins_line: bool) -> bytes:
    """Return a block of events with the field `error` as data of an event of that name."""
    if begins_line and block.startswith(b"error:"):
        block = b"\n" + block
    return block.replace(b"\nerror:", b"\nevent: error\ndata:")


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
