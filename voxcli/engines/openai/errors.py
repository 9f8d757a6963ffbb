"""Turns errors of `openai`, `httpx2` and sockets into RemoteErrors.

A server's message is quoted in one short line. Messages and causes, which `--verbose` shows, never contain the key.
"""

import email.utils
import json
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import openai

from voxcli.engines.openai.server import SERVICE, VARIABLE, Server
from voxcli.errors import RemoteError
from voxcli.printable import printable

QUOTED_CHARACTERS = 200
NO_SERVER = "is it an OpenAI-compatible server? its address usually ends with /v1"
AGAIN = "try again later; `voxcli doctor --engine remote` tells whether it answers"


class RequestRefusedError(RemoteError):
    """A request that a working server refuses, as another server would."""


class UnreadableError(ValueError):
    """An answer that violates the protocol; the message describes it."""


class CallError(Exception):
    """A failed request: the error for users, and what decides about another attempt. Users never see this one."""

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
            cause: the original exception, without the key.
            passing: whether the same request may succeed a little later.
            pause_seconds: seconds from the server's Retry-After.
            status: HTTP status; 0 if the server sent none.
            said: message of the server, without the key.
        """
        super().__init__(error.message)
        self.error = error
        self.cause = cause
        self.passing = passing
        self.pause_seconds = pause_seconds
        self.status = status
        self.said = said


# Exceptions of the libraries. ValueError: invalid JSON or UTF-8; RecursionError: JSON that is nested too deeply.
FOREIGN = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    OSError,
    ValueError,
    RecursionError,
)


def call_error(error: Exception, server: Server) -> CallError:
    """Return the CallError for one of FOREIGN."""
    cause = _cause(error, server)
    if isinstance(error, openai.APIStatusError):
        return _status(error.status_code, _said(error.body, server), error.response.headers, cause, server)
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        return _connection(list(_chain(error)), cause, server)
    if isinstance(error, openai.APIError):  # an error sent within the stream
        code = error.code or ""
        status = int(code) if code.isdecimal() and 400 <= int(code) <= 599 else 500
        return _status(status, _said(error.body, server), httpx2.Headers(), cause, server)
    what = str(error) if isinstance(error, UnreadableError) else "its answer is not what the protocol documents"
    return CallError(RemoteError(f"{server.url} can't be understood: {what}", hint=NO_SERVER), cause)


def broken_off(server: Server) -> CallError:
    """Return the error for a stream that ended before the reply."""
    error = RemoteError(f"{server.url} broke off before the reply was over", hint=f"the server may say why; {AGAIN}")
    return CallError(error, passing=True)


def too_late(server: Server, *, began: bool) -> CallError:
    """Return the error for a server that sent nothing within its time limit."""
    name, seconds = (
        ("token_seconds", server.token_seconds) if began else ("first_token_seconds", server.first_token_seconds)
    )
    did = "fell silent" if began else "did not answer"
    hint = f"see whether it is busy, or raise remote.{name} in the settings"
    return CallError(RemoteError(f"{server.url} {did} for {seconds:g} s", hint=hint))


def no_such_model(server: Server, model: str, names: Sequence[str]) -> RemoteError:
    """Return the error for a model that the server does not have."""
    return RemoteError(f"{server.url} has no model {model}", hint=_choice(names))


def unnamed_model(server: Server, names: Sequence[str]) -> RemoteError:
    """Return the error for a missing model name, where the server does not have exactly one model."""
    return RemoteError(f"{server.url} needs the name of a model", hint=_choice(names))


def _choice(names: Sequence[str]) -> str:
    return f"it has {_shortened(', '.join(names) or 'none to list')}; choose with --model NAME"


def _status(status: int, said: str, headers: httpx2.Headers, cause: Exception | None, server: Server) -> CallError:
    url, quoted = server.url, f": {said}" if said else ""
    passing = status == 429 or status >= 500
    kind: Callable[..., RemoteError] = RemoteError
    if 300 <= status <= 399:
        place = _shortened(printable(server.hidden_in(headers.get("location", ""))))
        message, hint = f"{url} sends elsewhere (HTTP {status})", f"it names {place}" if place else NO_SERVER
    elif status in (401, 403):
        message, hint = f"{url} refuses access (HTTP {status})", _key_hint(server)
    elif status == 404:
        message, hint = f"{url} has nothing at /chat/completions (HTTP 404)", NO_SERVER
    elif status == 413:
        kind, message = RequestRefusedError, f"the recording is too big for {url} (HTTP 413)"
        hint = "cut it into shorter pieces, or raise the server's limit"
    elif status == 429:
        message, hint = (
            f"{url} has too many requests (HTTP 429){quoted}",
            "try again later, or send fewer requests at once",
        )
    elif status >= 500:
        message, hint = f"{url} failed (HTTP {status}){quoted}", AGAIN
    else:
        kind, message = RequestRefusedError, f"{url} refuses the request (HTTP {status}){quoted}"
        hint = _refused_hint(said)
    pause = _pause_seconds(headers.get("retry-after")) if passing else None
    return CallError(kind(message, hint=hint), cause, passing=passing, pause_seconds=pause, status=status, said=said)


def _key_hint(server: Server) -> str:
    if server.key:
        return f"check the key: it came from {server.key.origin}"
    return f"set {VARIABLE}, or: keyring set {SERVICE} {server.host}"


def _refused_hint(said: str) -> str:
    if "context" in said or "too long" in said or "max_model_len" in said:
        return "lower session.context_tokens or reply.max_tokens in the settings, or shorten the recording"
    return 'see whether the model takes audio; Mistral\'s API needs remote.audio_style = "string"'


def _connection(chain: list[BaseException], cause: Exception, server: Server) -> CallError:
    """Return why there is no connection, or no longer one, from the cause of the library's error."""

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(error, kinds) for error in chain)

    if has(httpx2.TimeoutException) and not has(httpx2.ConnectTimeout):
        return too_late(server, began=False)
    if has(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol):
        return CallError(_unreachable(chain[-1], server, late=has(httpx2.ConnectTimeout)), cause)
    if has(httpx2.LocalProtocolError, httpx2.DecodingError) or "illegal" in str(chain[-1]):
        return CallError(RemoteError(f"{server.url} does not answer as a web server does", hint=NO_SERVER), cause)
    return CallError(RemoteError(f"{server.url} dropped the connection", hint=AGAIN), cause, passing=True)


def _unreachable(root: BaseException, server: Server, *, late: bool) -> RemoteError:
    host, hint = server.host, "start the server, or check --url"
    if late:
        message = f"{host} did not take the connection for {server.connect_seconds:g} s"
    elif isinstance(root, socket.gaierror):
        message, hint = f"{host} is not known: no address was found for it", "check the name in --url, and the network"
    elif isinstance(root, ssl.SSLCertVerificationError):
        message = f"the certificate of {host} is not trusted: {root.verify_message}"
        hint = "for a certificate of your own: SSL_CERT_FILE=FILE.pem"
    elif isinstance(root, ssl.SSLError):
        message, hint = f"{host} does not speak TLS: {root.reason or 'no handshake'}", "if it speaks http, say http://"
    elif isinstance(root, ConnectionRefusedError):
        message = f"nothing listens at {host} (connection refused)"
    else:
        message = f"{host} can't be reached: {_reason(root, server)}"
    return RemoteError(message, hint=hint)


def _reason(error: BaseException, server: Server) -> str:
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    return _shortened(server.hidden_in(text))


def _said(body: object, server: Server) -> str:
    """Return the message in an error's body as one short line; empty for a web page or without a message."""
    inner: Any = body
    while isinstance(inner, dict):
        inner = next((inner[name] for name in ("error", "message", "detail") if inner.get(name)), "")
    text = inner if isinstance(inner, str) else json.dumps(inner) if inner else ""
    text = " ".join(printable(server.hidden_in(text), keep="\n\t").split())
    return "" if text.startswith("<") else _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}..."


def _pause_seconds(header: str | None) -> float | None:
    """Return the seconds of Retry-After, which has seconds or a date."""
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
    """Return an error's chain as one exception without the key, with the traceback of the error."""
    texts = [f"{type(link).__name__}: {link}" for link in _chain(error)]
    text = server.hidden_in(" <- ".join(texts))
    return Exception(_shortened(text)).with_traceback(error.__traceback__)
