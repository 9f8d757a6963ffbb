"""The remote engine: replies come from a server that speaks OpenAI's chat protocol and takes audio.

vLLM and Mistral's API do. The parts are beside it: `server` (address, key, proxy), `request` (the body that is sent),
`stream` (one request on a thread), `chunks`, `reasoning` and `tool_calls` (the answer), `errors`. Several threads may
use the engine at once.
"""

import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Self

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Engine, PassReport, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.core.tools import ToolCall, ToolCalls
from voxcli.core.understanding import LINE_TOKENS
from voxcli.engines.openai.request import RequestOptions, chat_body, understanding_body
from voxcli.errors import RemoteError, missing_extra
from voxcli.printable import printable
from voxcli.servers.server import WRONG_VOXTRAL, Server

try:  # Without its packages, importing this module raises the error with the hint.
    from voxcli.engines.openai.chunks import Usage
    from voxcli.engines.openai.stream import CallsGrew, Item, ModelList, Over, RepairedStream, chat, models
    from voxcli.engines.openai.tool_calls import Round
    from voxcli.servers.call import Call
    from voxcli.servers.errors import CHAT, MODELS, CallError, no_such_model, too_late, tools_refused, unnamed_model
    from voxcli.servers.tls import tls_context
except ImportError as error:
    raise missing_extra(RemoteError, "The remote engine", "remote") from error

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # before a request is sent again
LIST_SECONDS = 10.0  # longest wait for a list of models
LOOK_SECONDS = 3.0  # longest wait for the same list if it is only needed for a warning
MODELS_LISTED, NAME_CHARACTERS = 1000, 100
NOT_INTERRUPTED = threading.Event()  # is never set


class RemoteEngine(Engine):
    """Implements `voxcli.core.protocols.Engine` with a server."""

    name = "remote"
    supports_tools = True

    def __init__(
        self,
        server: Server,
        options: RequestOptions,
        *,
        pause: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Create the engine; nothing is sent.

        Args:
            pause: waits for the seconds, or until the event is set; returns whether it is.

        Raises:
            ConfigError: certificates that the environment names can't be used.
        """
        self.model = options.model
        self._server = server
        self._options = options
        self._pause = pause
        self._tls = tls_context(server)
        self._sends_usage = True  # Cleared, by any thread, once the server refuses the option.

    @classmethod
    def open(cls, server: Server, options: RequestOptions, notice: Callable[[str], None] = lambda _: None) -> Self:
        """Return the engine for a model; if none is named, for the only one that the server has.

        Args:
            notice: is called with what a user should know about the server.

        Raises:
            RemoteError: no model is named, and the server does not answer or does not have exactly one.
            ConfigError: certificates that the environment names can't be used.
        """
        try:
            found = list_models(server, LOOK_SECONDS if options.model else LIST_SECONDS)
        except RemoteError:
            if options.model:  # A reply needs no list, and its error is clearer.
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
        self,
        session: Session,
        utterance: Utterance,
        interrupt: threading.Event,
        rounds: list[Round] | None = None,
    ) -> ReplyWithTools:
        """Yield the reply in deltas and calls of the session's tools; return the report.

        The results of calls are sent in a further request, which repeats the utterance: the server encodes its audio
        again, unless it keeps what it computed. The report counts the tokens of all requests.

        Once `interrupt` is set, the reply ends with the next delta, or within 0.05 s if none comes, and the connection
        is closed. The server counts the tokens. If it does not, deltas are counted, and the prompt's tokens are 0. A
        delta is empty while text is held back that may be the model's reasoning.

        Args:
            rounds: the requests of this reply whose calls have results; the reply goes on after them, and those that
                follow are added.

        Raises:
            RemoteError: there is no reply, or it broke off; what came of it was yielded.
        """
        rounds = [] if rounds is None else rounds
        while True:
            answer = yield from self._answer(chat_body(session, utterance, self._options, rounds), interrupt)
            results = (yield ToolCalls(answer.calls)) if answer.calls else None
            if not results:
                return _joined([*(each.report for each in rounds), answer.report])
            rounds.append(Round(answer.text, tuple(results), answer.report))

    def understand(self, utterance: Utterance) -> Generator[str, None, None] | None:
        """Yield what the model understood, in a request that is sent once; see `voxcli.core.protocols.Engine`.

        Raises:
            RemoteError: the server refuses it, fails or is too late.
        """
        return self._understood(utterance.clip) if utterance.clip else None

    def close(self) -> None:
        """Do nothing: each reply closes its own connection."""

    def _understood(self, clip: AudioClip) -> Generator[str, None, None]:
        body, progress = understanding_body(clip, self._options), _Attempt()
        with closing(Call(self._server, self._tls, CHAT, chat(body, self._server), RepairedStream)) as call:
            deadline = time.monotonic() + self._server.first_token_seconds
            while progress.deltas <= 2 * LINE_TOKENS:  # a delta is at least one token
                try:
                    item = call.next(0.0, NOT_INTERRUPTED)
                except TimeoutError:
                    if time.monotonic() > deadline:
                        raise too_late(self._server, began=bool(progress.deltas)).error from None
                    yield ""
                    continue
                except CallError as failed:
                    raise failed.error from failed.cause
                if not isinstance(item, str):
                    return
                progress.deltas += 1
                yield item
                deadline = time.monotonic() + self._server.token_seconds

    def _answer(self, body: dict[str, Any], interrupt: threading.Event) -> Generator[str, None, "_Answer"]:
        """Yield the text of one response, which is asked for again if it fails before its first text."""
        for attempt in count():
            progress = _Attempt()
            try:
                return (yield from self._attempt(body, progress, interrupt))
            except CallError as failed:
                if self._has_refused_usage(failed):
                    continue
                if "tools" in body and (refused := tools_refused(self._server, failed)):
                    raise refused from failed.cause
                if progress.texts or not failed.passing or attempt >= self._server.retries:
                    raise self._explained(failed) from failed.cause
                seconds = pause_seconds(attempt, failed.pause_seconds, random.random())  # noqa: S311 - jitter
                if seconds > LONGEST_PAUSE_SECONDS:
                    raise _asks_for_too_long(failed) from failed.cause
            if self._pause(interrupt, seconds):
                break
        return _Answer(PassReport(model_passes=1, prompt_tokens=0, cached_tokens=0, reply_tokens=0))

    def _attempt(
        self, body: dict[str, Any], progress: "_Attempt", interrupt: threading.Event
    ) -> Generator[str, None, "_Answer"]:
        if not self._sends_usage:
            body = {name: value for name, value in body.items() if name != "stream_options"}
        with closing(Call(self._server, self._tls, CHAT, chat(body, self._server), RepairedStream)) as call:
            deadline = time.monotonic() + self._server.first_token_seconds
            while isinstance(item := self._next(call, deadline, progress, interrupt), str | CallsGrew):
                progress.deltas += 1
                if progress.deltas > 2 * self._options.max_reply_tokens:  # a delta is at least one token
                    raise CallError(RemoteError(f"{self._server.url} sends more than the reply that was asked for"))
                if isinstance(item, str):
                    progress.texts.append(item)
                    yield item
                deadline = time.monotonic() + self._server.token_seconds
        over = item or Over()
        return _Answer(_report(over, progress.deltas), "".join(progress.texts), over.calls)

    def _next(self, call: Call[Item], deadline: float, progress: "_Attempt", interrupt: threading.Event) -> Item | None:
        try:
            return call.next(deadline, interrupt)
        except TimeoutError:
            raise too_late(self._server, began=bool(progress.deltas)) from None

    def _has_refused_usage(self, failed: CallError) -> bool:
        """Return whether the server refused to count tokens, so that it is not asked for that again."""
        if not (self._sends_usage and failed.status in (400, 422) and "stream_options" in failed.said):
            return False
        self._sends_usage = False
        return True

    def _explained(self, failed: CallError) -> RemoteError:
        """Return the error; if the model may be missing, ask the server which models it has."""
        if failed.status != 404:
            return failed.error
        try:
            names = list_models(self._server).names
        except RemoteError:  # The address is wrong, as the first error says.
            return failed.error
        return no_such_model(self._server, self.model, names) if names else failed.error


@dataclass
class _Attempt:
    """How far an attempt at a response has come."""

    deltas: int = 0  # pieces of tool calls among them
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Answer:
    """A response: the whole reply, or what comes before the results of calls."""

    report: PassReport
    text: str = ""
    calls: tuple[ToolCall, ...] = ()


def _joined(reports: Sequence[PassReport]) -> PassReport:
    """Return the report of a reply that took several requests."""
    return replace(
        reports[-1],
        prompt_tokens=sum(report.prompt_tokens for report in reports),
        cached_tokens=sum(report.cached_tokens for report in reports),
        reply_tokens=sum(report.reply_tokens for report in reports),
        additional_generations=len(reports) - 1,
    )


def _report(over: Over, deltas: int) -> PassReport:
    usage = over.usage or Usage(0, 0, deltas)
    counts = (usage.prompt_tokens, usage.cached_tokens, usage.reply_tokens)
    return PassReport(1, *counts, finish_reason=printable(over.finish_reason)[:NAME_CHARACTERS] or None)


def list_models(server: Server, seconds: float = LIST_SECONDS) -> ModelList:
    """Return the models that a server lists, each name short and safe to print.

    Args:
        seconds: longest wait.

    Raises:
        NoModelListError: it answers, but not with a list.
        RemoteError: it does not answer, or refuses access.
        ConfigError: certificates that the environment names can't be used.
    """
    found = ModelList()
    with closing(Call(server, tls_context(server), MODELS, models(found), RepairedStream)) as call:
        try:
            deadline = time.monotonic() + seconds
            while isinstance(name := call.next(deadline, NOT_INTERRUPTED), str) and len(found.names) < MODELS_LISTED:
                found.names.append(printable(server.hidden_in(name))[:NAME_CHARACTERS])
        except TimeoutError as error:
            raise RemoteError(f"{server.url} did not answer for {seconds:g} s{server.way}") from error
        except CallError as failed:
            raise failed.error from failed.cause
    return found


def pause_seconds(attempt: int, asked: float | None, jitter: float) -> float:
    """Return how long to wait before the next attempt.

    Args:
        attempt: number of the attempt that failed, from 0.
        asked: what the server asks for, in seconds; the pause is never shorter.
        jitter: from 0 to 1, different each time, so that many clients do not retry at once.
    """
    if asked is not None:
        return asked + jitter * FIRST_PAUSE_SECONDS
    return float(min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS) * (0.5 + jitter / 2))


def _asks_for_too_long(failed: CallError) -> RemoteError:
    asked = f"it asks to wait {failed.pause_seconds:.0f} s"
    return RemoteError(failed.error.message, hint=f"{asked}; try again then")
