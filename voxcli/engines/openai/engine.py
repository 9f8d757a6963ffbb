"""The remote engine, for any server with OpenAI's chat protocol and audio input, such as vLLM and Mistral's API.

Several threads may use it at once.
"""

import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any, Self

from voxcli.core.session import Session
from voxcli.core.turn import Engine, PassReport, Utterance
from voxcli.engines.openai.request import RequestOptions, chat_body
from voxcli.engines.openai.server import WRONG_VOXTRAL, Server
from voxcli.errors import RemoteError, missing_extra
from voxcli.printable import printable

try:
    import httpx2

    from voxcli.engines.openai.errors import CallError, no_such_model, too_late, unnamed_model
    from voxcli.engines.openai.stream import Call, ModelList, Over, Usage, chat, models
except ImportError as error:
    raise missing_extra(RemoteError, "The remote engine", "remote") from error

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # pause before a request is sent again
LIST_SECONDS = 10.0  # time limit for a list of models
LOOK_SECONDS = 3.0  # time limit for the same list if only a warning depends on it
MODELS_LISTED, NAME_CHARACTERS = 1000, 100
NOT_INTERRUPTED = threading.Event()  # never set


class RemoteEngine(Engine):
    """Implements `voxcli.core.turn.Engine` with a server."""

    name = "remote"

    def __init__(
        self,
        server: Server,
        options: RequestOptions,
        *,
        pause: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Use a server, without sending anything yet.

        Args:
            pause: waits for some seconds or until the event is set; returns whether it is set.
        """
        self.model = options.model
        self._server = server
        self._options = options
        self._pause = pause
        self._tls = httpx2.create_ssl_context()
        self._sends_usage = True  # False once the server has refused the option, which several threads may find out

    @classmethod
    def open(cls, server: Server, options: RequestOptions, notice: Callable[[str], None] = lambda _: None) -> Self:
        """Return the engine for a model; without a name, for the server's only model.

        Args:
            notice: receives a warning about the server, if there is one.

        Raises:
            RemoteError: no model is named, and the server does not answer or does not have exactly one.
        """
        try:
            found = list_models(server, LOOK_SECONDS if options.model else LIST_SECONDS)
        except RemoteError:
            if options.model:  # a reply needs no list, and its error is more precise
                return cls(server, options)
            raise
        if found.from_llama_cpp:
            notice(f"{server.url} is {WRONG_VOXTRAL}")
        if options.model:
            return cls(server, options)
        if len(found.names) != 1:
            raise unnamed_model(server, found.names)
        return cls(server, replace(options, model=found.names[0]))

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas; return the report.

        Once `interrupt` is set, the reply ends with the next delta or within 0.05 s, and the request is
        stopped on the server. The server counts the tokens. If it does not, deltas are counted instead, and the
        prompt's tokens are 0.

        Raises:
            RemoteError: there is no reply, or it broke off after the deltas that were yielded.
        """
        body = chat_body(session, utterance, self._options)
        for attempt in count():
            taking = _Taking()
            try:
                return (yield from self._attempt(body, taking, interrupt))
            except CallError as failed:
                if self._has_refused_usage(failed):
                    continue
                if taking.deltas or not failed.passing or attempt >= self._server.retries:
                    raise self._explained(failed) from failed.cause
                seconds = pause_seconds(attempt, failed.pause_seconds, random.random())  # noqa: S311 - jitter
                if seconds > LONGEST_PAUSE_SECONDS:
                    raise _asks_for_too_long(failed) from failed.cause
            if self._pause(interrupt, seconds):
                break
        return PassReport(model_passes=1, prompt_tokens=0, cached_tokens=0, reply_tokens=0)

    def close(self) -> None:
        """Do nothing: each reply closes its own connection."""

    def _attempt(
        self, body: dict[str, Any], taking: "_Taking", interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        if not self._sends_usage:
            body = {name: value for name, value in body.items() if name != "stream_options"}
        with closing(Call(self._server, self._tls, chat(body, self._server))) as call:
            deadline = time.monotonic() + self._server.first_token_seconds
            while not isinstance(item := self._next(call, deadline, taking, interrupt), Over | None):
                if isinstance(item, Usage):
                    taking.usage = item
                    continue
                taking.deltas += 1
                if taking.deltas > 2 * self._options.max_reply_tokens:  # a delta has at least one token
                    raise CallError(RemoteError(f"{self._server.url} sends more than the reply that was asked for"))
                yield item
                deadline = time.monotonic() + self._server.token_seconds
        return taking.report()

    def _next(
        self, call: Call, deadline: float, taking: "_Taking", interrupt: threading.Event
    ) -> str | Usage | Over | None:
        try:
            return call.next(deadline, interrupt)
        except TimeoutError:
            raise too_late(self._server, began=bool(taking.deltas)) from None

    def _has_refused_usage(self, failed: CallError) -> bool:
        """Return whether the server refused the option to count tokens, which is then no longer sent."""
        if not (self._sends_usage and failed.status in (400, 422) and "stream_options" in failed.said):
            return False
        self._sends_usage = False
        return True

    def _explained(self, failed: CallError) -> RemoteError:
        """Return the error. If the model may be missing, list the models of the server in it."""
        if failed.status != 404:
            return failed.error
        try:
            names = list_models(self._server).names
        except RemoteError:  # the first error is the better one
            return failed.error
        return no_such_model(self._server, self.model, names) if names else failed.error


class _Taking:
    """The received part of a reply."""

    def __init__(self) -> None:
        self.deltas = 0
        self.usage: Usage | None = None

    def report(self) -> PassReport:
        found = self.usage or Usage(0, 0, self.deltas)
        return PassReport(1, found.prompt_tokens, found.cached_tokens, found.reply_tokens)


def list_models(server: Server, seconds: float = LIST_SECONDS) -> ModelList:
    """Return the models that a server lists, each name short and safe to print, within a time limit in seconds.

    Raises:
        RemoteError: the server does not answer, or its answer is not a list of models.
    """
    found = ModelList()
    with closing(Call(server, httpx2.create_ssl_context(), models(found))) as call:
        try:
            deadline = time.monotonic() + seconds
            while isinstance(name := call.next(deadline, NOT_INTERRUPTED), str) and len(found.names) < MODELS_LISTED:
                found.names.append(printable(server.hidden_in(name))[:NAME_CHARACTERS])
        except TimeoutError as error:
            raise RemoteError(f"{server.url} did not answer for {seconds:g} s") from error
        except CallError as failed:
            raise failed.error from failed.cause
    return found


def pause_seconds(attempt: int, asked: float | None, jitter: float) -> float:
    """Return the seconds to wait before the next attempt.

    Args:
        attempt: number of the failed attempt, from 0.
        asked: least seconds, from the server's Retry-After.
        jitter: random number from 0 to 1, so that many clients do not retry at the same time.
    """
    if asked is not None:
        return asked + jitter * FIRST_PAUSE_SECONDS
    return float(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS) * (0.5 + jitter / 2))


def _asks_for_too_long(failed: CallError) -> RemoteError:
    asked = f"it asks to wait {failed.pause_seconds:.0f} s"
    return RemoteError(failed.error.message, hint=f"{asked}; try again then")
