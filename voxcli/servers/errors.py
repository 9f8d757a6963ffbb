"""Turns what goes wrong between voxcli and a server into a RemoteError.

This is the only module that knows what `openai`, `httpx2` and the sockets under them raise. What a server says is
quoted in one short line, and never with the key in it. The same holds for the causes that `--verbose` shows.
"""

import email.utils
import json
import math
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import openai

from voxcli.config.proxies import Proxy
from voxcli.errors import RemoteError
from voxcli.printable import printable
from voxcli.servers.server import SERVICE, Server

QUOTED_CHARACTERS = 200
CHAT, MODELS, SPEECH = "/chat/completions", "/models", "/audio/speech"  # the parts of the protocol that are used
NO_SERVER = "is it an OpenAI-compatible server? its address usually ends with /v1"
PROXY_LOGIN = "put them into the proxy's URL: http://NAME:PASSWORD@HOST:PORT"
TOOLS = re.compile(r"\btools?\b|function.call", re.IGNORECASE)  # Matches what a server says that refuses tools.
NO_TOOLS = (
    "take a model that can call them, or go on without; vLLM: --enable-auto-tool-choice --tool-call-parser mistral"
)
UNKNOWN_VOICE = "see whether the server has this model and voice: openai:URL#MODEL/VOICE"


class RequestRefusedError(RemoteError):
    """A working server refuses a request, or has no reply to it. Another server would do the same."""


class NoModelListError(RemoteError):
    """A server answers, but not with a list of models. It may have a model all the same."""


class UnreadableError(ValueError):
    """An answer that is not what the protocol documents; the text says what it is."""


class StreamedError(Exception):
    """An error that a server sent in a stream, after it had begun with HTTP 200."""

    def __init__(self, body: object) -> None:
        super().__init__("the server sent an error")
        self.body = body

    @property
    def status(self) -> int:
        """The HTTP status that the error names; 500 if it names none."""
        code = str(self.body.get("code")) if isinstance(self.body, dict) else ""
        return int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500


class CallError(Exception):
    """A failed request: the error for users, and what the engine needs to decide how to continue."""

    def __init__(
        self,
        error: RemoteError,
        cause: Exception | None = None,
        *,
        passing: bool = False,
        pause_seconds: float | None = None,
        status: int = 0,
        said: str = "",
    ) -> None:
        """Describe a failure.

        Args:
            cause: what was raised, without the key.
            passing: whether the same request may succeed a little later.
            pause_seconds: how long the server asks to wait.
            status: the HTTP status; 0 if the server sent none.
            said: the server's message, without the key.
        """
        super().__init__(error.message)
        self.error = error
        self.cause = cause
        self.passing = passing
        self.pause_seconds = pause_seconds
        self.status = status
        self.said = said


# What the libraries raise. ValueError: bytes that are not JSON or UTF-8; RecursionError: JSON nested too deep.
FOREIGN = (
    StreamedError,
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    OSError,
    ValueError,
    RecursionError,
)


def call_error(error: Exception, server: Server, path: str = CHAT) -> CallError:
    """Return what one of FOREIGN means, raised by a request for `path`."""
    cause = _cause(error, server)
    if isinstance(error, openai.APIStatusError):
        return _status(error.status_code, _said(error.body, server), error.response.headers, cause, server, path)
    if isinstance(error, StreamedError):
        return _status(error.status, _said(error.body, server), httpx2.Headers(), cause, server, path)
    if isinstance(error, httpx2.SSEError):
        error = UnreadableError("one of its events is too big")
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        return _connection(list(_chain(error)), cause, server)
    what = str(error) if isinstance(error, UnreadableError) else "its answer is not what the protocol documents"
    message = f"{server.url} can't be understood: {what}{server.way}"
    if path == MODELS:
        return CallError(NoModelListError(message, hint=f"name a model with --model NAME; {NO_SERVER}"), cause)
    return CallError(RemoteError(message, hint=NO_SERVER), cause)


def broken_off(server: Server) -> CallError:
    """Return the error of a stream that ended before the reply did."""
    hint = f"the server may say why; {_again(server)}"
    error = RemoteError(f"{server.url} broke off before the reply was over{server.way}", hint=hint)
    return CallError(error, passing=True)


def too_late(server: Server, *, began: bool) -> CallError:
    """Return the error of a server that sent nothing for as long as it is given."""
    name, seconds = (
        ("token_seconds", server.token_seconds) if began else ("first_token_seconds", server.first_token_seconds)
    )
    did = "fell silent" if began else "did not answer"
    hint = f"see whether it is busy, or raise remote.{name} in the settings"
    return CallError(RemoteError(f"{server.url} {did} for {seconds:g} s{server.way}", hint=hint))


def no_text(server: Server, reason: str, *, reasoning: bool, tool: bool) -> CallError:
    """Return the error of a reply without text.

    Args:
        reason: why the reply ended, as the server says.
        reasoning: whether the model's reasoning came.
        tool: whether the model called a tool.
    """
    hint = "see whether the model takes audio; name another with --model NAME"
    if reason == "content_filter":
        did, hint = "withheld the reply (content_filter)", "put the question in other words"
    elif reasoning:
        did, hint = "sent the model's reasoning, but no reply", "turn reasoning off on the server, or use another model"
        if reason == "length":
            did, hint = f"{did}: reply.max_tokens was reached", f"raise reply.max_tokens in the settings; {hint}"
    elif tool:
        did = "called a tool instead of replying"
    else:
        did = "sent an empty reply"
    return CallError(RequestRefusedError(f"{server.url} {did}", hint=hint))


def no_such_model(server: Server, model: str, names: Sequence[str]) -> RemoteError:
    """Return the error of a server that has models, but not this one."""
    return RemoteError(f"{server.url} has no model {model}", hint=_choice(names))


def tools_refused(server: Server, failed: CallError) -> RemoteError | None:
    """Return the error of a server that refuses a request because of its tools; None if it fails for another reason.

    OpenRouter says so with HTTP 404, llama.cpp's server with 500 if it was not started with --jinja.
    """
    is_refusal = failed.status in (400, 404, 422, 501) or (failed.status == 500 and "jinja" in failed.said)
    if not (is_refusal and TOOLS.search(failed.said)):
        return None
    message = f"{server.url} refuses tools (HTTP {failed.status}): {failed.said}{server.way}"
    return RequestRefusedError(message, hint=NO_TOOLS)


def unnamed_model(server: Server, names: Sequence[str]) -> RemoteError:
    """Return the error of a request without a model's name to a server that does not have exactly one."""
    return RemoteError(f"{server.url} needs the name of a model", hint=_choice(names))


def _choice(names: Sequence[str]) -> str:
    return f"it has {_shortened(', '.join(names) or 'none to list')}; choose with --model NAME"


def _status(
    status: int, said: str, headers: httpx2.Headers, cause: Exception | None, server: Server, path: str
) -> CallError:
    url, told = server.url, f"{f': {said}' if said else ''}{server.way}"
    passing = status == 429 or status >= 500
    kind: Callable[..., RemoteError] = RemoteError
    if 300 <= status <= 399:
        place = _shortened(printable(server.hidden_in(headers.get("location", ""))))
        message, hint = f"{url} sends elsewhere (HTTP {status})", f"it names {place}" if place else NO_SERVER
    elif status in (401, 403):
        message, hint = f"{url} refuses access (HTTP {status}){server.way}", _key_hint(server)
    elif status == 407 and server.proxy:
        message, hint = f"{server.proxy} asks for a name and password (HTTP 407)", PROXY_LOGIN
    elif path == MODELS and status in (404, 405, 501):
        kind, message = NoModelListError, f"{url} has no list of models (HTTP {status} for {path}){server.way}"
        hint = f"name a model with --model NAME; {NO_SERVER}"
    elif status == 404:
        message, hint = f"{url} has nothing at {path} (HTTP 404){server.way}", NO_SERVER
    elif status == 413:
        what = "sentence" if path == SPEECH else "recording"
        kind, message = RequestRefusedError, f"the {what} is too big for {url} (HTTP 413){server.way}"
        hint = "cut it into shorter pieces, or raise the server's limit"
    elif status == 429:
        message, hint = f"{url} has too many requests (HTTP 429){told}", "try again later, or ask for less at once"
    elif status >= 500:
        message, hint = f"{url} failed (HTTP {status}){told}", _again(server)
    else:
        kind, message = RequestRefusedError, f"{url} refuses the request (HTTP {status}){told}"
        hint = UNKNOWN_VOICE if path == SPEECH else _refused_hint(said)
    pause = _pause_seconds(headers.get("retry-after")) if passing else None
    return CallError(kind(message, hint=hint), cause, passing=passing, pause_seconds=pause, status=status, said=said)


def _again(server: Server) -> str:
    return f"try again later; `{server.use.check}` asks whether it answers"


def _key_hint(server: Server) -> str:
    if server.key:
        return f"check the key: it came from {server.key.origin}"
    return f"set {server.use.key_variable}, or: keyring set {SERVICE} {server.host}"


def _refused_hint(said: str) -> str:
    if "context" in said or "too long" in said or "max_model_len" in said:
        return "lower session.context_tokens or reply.max_tokens in the settings, or shorten the recording"
    return 'see whether the model takes audio; Mistral\'s API needs remote.audio_style = "string"'


def _connection(chain: list[BaseException], cause: Exception, server: Server) -> CallError:
    """Return why there is no connection, or no longer one, by the chain of causes of a library's error."""

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in chain)

    if has(httpx2.TimeoutException) and not has(httpx2.ConnectTimeout):
        return too_late(server, began=False)
    if has(httpx2.ProxyError) and server.proxy:
        return CallError(_refused_by_proxy(chain[-1], server.proxy, server), cause)
    if has(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol):
        return CallError(_unreachable(chain[-1], server, late=has(httpx2.ConnectTimeout)), cause)
    if has(httpx2.LocalProtocolError, httpx2.DecodingError) or "illegal" in str(chain[-1]):
        message = f"{server.url} does not answer as a web server does{server.way}"
        return CallError(RemoteError(message, hint=NO_SERVER), cause)
    message = f"{server.url} dropped the connection{server.way}"
    return CallError(RemoteError(message, hint=_again(server)), cause, passing=True)


def _refused_by_proxy(root: BaseException, proxy: Proxy, server: Server) -> RemoteError:
    reason = _reason(root, server)
    hint = PROXY_LOGIN if reason.startswith("407") else f"ask its owner, or name {server.host} in NO_PROXY"
    return RemoteError(f"{proxy} makes no connection to {server.host}: {reason}", hint=hint)


def _unreachable(root: BaseException, server: Server, *, late: bool) -> RemoteError:
    """Return why there is no connection. With a proxy, it is the proxy that is connected to."""
    if isinstance(root, ssl.SSLCertVerificationError):
        message = f"the certificate of {server.host} is not trusted: {root.verify_message}{server.way}"
        return RemoteError(message, hint="for a certificate of your own: SSL_CERT_FILE=FILE.pem")
    if isinstance(root, ssl.SSLError):
        message = f"{server.host} does not speak TLS: {root.reason or 'no handshake'}{server.way}"
        return RemoteError(message, hint="if it speaks http, say http://")
    host, hint = server.host, f"start the server, or check {server.use.flag}"
    if server.proxy:
        host, hint = str(server.proxy), f"check {server.proxy.origin}, or name {server.host} in NO_PROXY"
    if late:
        message = f"{host} did not take the connection for {server.connect_seconds:g} s"
    elif isinstance(root, socket.gaierror):
        message = f"{host} is not known: no address was found for it"
        hint = hint if server.proxy else f"check the name in {server.use.flag}, and the network"
    elif isinstance(root, ConnectionRefusedError):
        message = f"nothing listens at {host} (connection refused)"
    else:
        message = f"{host} can't be reached: {_reason(root, server)}"
    return RemoteError(message, hint=hint)


def _reason(error: BaseException, server: Server) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return _shortened(server.hidden_in(text))


def _said(body: object, server: Server) -> str:
    """Return the message in an error's body as one short line; empty if it has none or is a web page."""
    inner: Any = body
    while isinstance(inner, dict):
        inner = next((inner[name] for name in ("error", "message", "detail") if inner.get(name)), "")
    text = inner if isinstance(inner, str) else json.dumps(inner) if inner else ""
    text = " ".join(printable(server.hidden_in(text), keep="\n\t").split())
    return "" if text.startswith("<") else _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}..."


def _pause_seconds(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for; it gives seconds or a date."""
    try:
        seconds = float(header or "")
    except ValueError:
        date = email.utils.parsedate_tz(header or "")
        seconds = email.utils.mktime_tz(date) - time.time() if date else math.nan
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _cause(error: Exception, server: Server) -> Exception:
    """Return an error and its causes as one exception without the key, with the traceback of the error."""
    texts = [f"{type(link).__name__}: {link}" for link in _chain(error)]
    text = server.hidden_in(" <- ".join(texts))
    return Exception(_shortened(text)).with_traceback(error.__traceback__)
