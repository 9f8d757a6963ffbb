"""A server in this process that speaks OpenAI's protocols of chat and speech, and misbehaves on demand.

Answers can be queued; those that are not get what it `always` says. Each request is kept.
"""

import contextlib
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any, Self
from urllib.parse import urlsplit

REPLY = ("The capital", " of France", " is Paris.")
USAGE = {
    "prompt_tokens": 395,
    "completion_tokens": 8,
    "total_tokens": 403,
    "prompt_tokens_details": {"cached_tokens": 16},
}
WAIT_SECONDS = 30  # for what a test expects; far more than it takes


@dataclass
class Request:
    """What a client sent."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]


class Exchange:
    """A request that is being answered."""

    def __init__(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        self._handler = handler
        self.request = request

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """Send a whole response; `retry_after="1"` is the header Retry-After."""
        self._head(status, kind, headers | {"content_length": str(len(body))})
        self._handler.wfile.write(body)

    def begin(self, kind: str = "text/event-stream; charset=utf-8", **headers: str) -> None:
        """Send the head of a response whose body comes in chunks."""
        self._head(200, kind, headers | {"transfer_encoding": "chunked"})

    def chunk(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def event(self, event: Any) -> None:
        """Send an event; an object as JSON, text as it is."""
        text = event if isinstance(event, str) else json.dumps(event)
        self.chunk(f"data: {text}\n\n".encode())

    def delta(self, text: str | None, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": finish}
        self.event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]})

    def finish(self, *, usage: bool = True) -> None:
        self.delta(None, "stop")
        if usage and self.request.body.get("stream_options") == {"include_usage": True}:
            empty = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": []}
            self.event(empty | {"usage": USAGE})
        self.event("[DONE]")
        self.chunk(b"")

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def drop(self) -> None:
        """Close the connection, as a server that is killed does."""
        self._handler.close_connection = True
        self._handler.connection.shutdown(socket.SHUT_RDWR)

    def wait_until_left(self) -> None:
        """Wait until the client closes the connection."""
        self._handler.connection.settimeout(WAIT_SECONDS)
        try:
            while self._handler.connection.recv(1024):
                pass
        except OSError:  # it was reset
            pass
        self._handler.close_connection = True

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self._handler.send_response(status)
        self._handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()


Answer = Callable[[Exchange], None]


def says(*deltas: str, usage: bool = True) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.delta("")  # servers begin with the role, and no text
        for delta in deltas:
            exchange.delta(delta)
        exchange.finish(usage=usage)

    return answer


def refuses(status: int, body: object = "", kind: str = "application/json", **headers: str) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda exchange: exchange.send(status, content, kind, **headers)


def sends(*deltas: str, then: Callable[[Exchange], object]) -> Answer:
    """Begin a reply, and then do something else than to end it."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for delta in deltas:
            exchange.delta(delta)
        then(exchange)

    return answer


def writes(data: bytes, kind: str = "text/event-stream", **headers: str) -> Answer:
    """Send these bytes as the body of a whole response."""
    return lambda exchange: exchange.send(200, data, kind, **headers)


def streams(*events: Any) -> Answer:
    """Send these events, whatever they are, and end the response."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for event in events:
            exchange.event(event)
        exchange.chunk(b"")

    return answer


@dataclass
class OpenAIServer:
    """Listens on loopback; a context manager."""

    models: tuple[str, ...] = ("tiny",)
    owner: str = "test"  # of the models, as the list of them says
    software: str = "test"  # what it calls itself in a header
    tls: ssl.SSLContext | None = None
    list_of_models: Answer | None = None  # Replaces the documented list.
    always: Answer = field(default_factory=lambda: says(*REPLY))
    requests: list[Request] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # a client closed while it was to wait
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Answer] = SimpleQueue()
        self._connections: set[socket.socket] = set()
        self._http = _Listener(("127.0.0.1", 0), _handler_of(self))
        if self.tls:
            self._http.socket = self.tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Stop listening and drop every connection."""
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._http.join()
        self._thread.join()

    def queue(self, *answers: Answer) -> None:
        """Give these answers first, each once."""
        for answer in answers:
            self._queue.put(answer)

    @property
    def chats(self) -> list[Request]:
        return [request for request in self.requests if request.path == "/v1/chat/completions"]

    @property
    def speeches(self) -> list[Request]:
        return [request for request in self.requests if request.path == "/v1/audio/speech"]

    def hangs(self, *deltas: str) -> Answer:
        """Say these deltas and then nothing until the client leaves, which is noted."""

        def answer(exchange: Exchange) -> None:
            exchange.begin()
            for delta in deltas:
                exchange.delta(delta)
            exchange.wait_until_left()
            self.left.set()

        return answer

    def never_answers(self, exchange: Exchange) -> None:
        """Send not even a head, until the client leaves, which is noted."""
        exchange.wait_until_left()
        self.left.set()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        request = Request(
            handler.path, {name.lower(): value for name, value in handler.headers.items()}, json.loads(body or b"{}")
        )
        with self._lock:
            self.requests.append(request)
        if handler.path == "/v1/models" and self.list_of_models:
            self.list_of_models(Exchange(handler, request))
        elif handler.path == "/v1/models":
            data = [{"id": name, "object": "model", "created": 1, "owned_by": self.owner} for name in self.models]
            refuses(200, {"object": "list", "data": data})(Exchange(handler, request))
        elif handler.path in ("/v1/chat/completions", "/v1/audio/speech"):
            self._chat(Exchange(handler, request))
        else:
            refuses(404, {"detail": "Not Found"})(Exchange(handler, request))

    def _chat(self, exchange: Exchange) -> None:
        try:
            answer = self._queue.get_nowait()
        except Empty:
            answer = self.always
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer(exchange)
        finally:
            with self._lock:
                self.in_flight -= 1

    def connected(self, connection: socket.socket, *, open_: bool) -> None:
        with self._lock:
            (self._connections.add if open_ else self._connections.discard)(connection)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._workers: SimpleQueue[threading.Thread] = SimpleQueue()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._workers.put(threading.current_thread())
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that leave are part of the tests."""

    def join(self) -> None:
        while not self._workers.empty():
            self._workers.get().join(WAIT_SECONDS)


def _handler_of(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def version_string(self) -> str:
            return server.software

        def setup(self) -> None:
            server.connected(self.request, open_=True)
            super().setup()

        def finish(self) -> None:
            try:
                super().finish()
            finally:
                server.connected(self.request, open_=False)

        def do_GET(self) -> None:
            server.answer(self, b"")

        def do_POST(self) -> None:
            server.answer(self, self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@dataclass
class ProxyServer:
    """An HTTP proxy on loopback, for plain requests and for tunnels; a context manager.

    Every name is one of this machine's to it: loopback itself is never asked for through a proxy.
    """

    refusal: bytes = b""  # the status line to answer with, such as b"403 Forbidden"
    heads: list[bytes] = field(default_factory=list)  # Heads of the requests received.

    def __post_init__(self) -> None:
        self._tcp = _ProxyListener(("127.0.0.1", 0), _proxy_handler_of(self))
        self.port = self._tcp.server_address[1]
        self._thread = threading.Thread(target=self._tcp.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tcp.shutdown()
        self._tcp.server_close()
        self._thread.join()


class _ProxyListener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


def _proxy_handler_of(proxy: ProxyServer) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
                head += line
            proxy.heads.append(head)
            if proxy.refusal:
                self.wfile.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % proxy.refusal)
                return
            method, target, rest = head.split(b" ", 2)
            is_tunnel = method == b"CONNECT"
            url = urlsplit(f"http://{target.decode()}" if is_tunnel else target.decode())
            with socket.create_connection(("127.0.0.1", url.port or 80)) as server:
                if is_tunnel:
                    self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    server.sendall(b" ".join([method, url.path.encode(), rest]))
                threading.Thread(target=_copy, args=(self.rfile.read1, server), daemon=True).start()
                _copy(server.recv, self.connection)

    return Handler


def _copy(read: Callable[[int], bytes], to: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while data := read(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)
