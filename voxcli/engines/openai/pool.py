"""Makes one engine of several servers, for many requests at a time: the server with the fewest gets the next one.

A server that fails is left out for a while, and then tried with one request. The pool sees servers only as engines
that can go on with a reply whose tools have run elsewhere.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, cast

from voxcli.core.protocols import Engine, PassReport, Reply, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.core.tools import ToolCalls, ToolResult
from voxcli.engines.openai.tool_calls import Round
from voxcli.errors import RemoteError
from voxcli.servers.errors import RequestRefusedError

FIRST_OUT_SECONDS, LONGEST_OUT_SECONDS = 1.0, 30.0  # a failed server is left out; doubled with each failure
PATIENCE_SECONDS = 60.0  # longest wait while all servers are out; about as long as one takes to restart
LOOK_SECONDS = 0.05  # between two looks whether a waiting request is still wanted


class PooledEngine(Engine, Protocol):
    """An engine for one of the servers; `RemoteEngine.reply` describes `rounds`."""

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event, rounds: list[Round] | None = None
    ) -> Reply: ...


@dataclass
class _Place:
    """A server and its state in the pool."""

    engine: PooledEngine
    in_flight: int = 0
    failures: int = 0  # Consecutive failures.
    back_at: float = 0.0  # time on the pool's clock when it is tried again

    def room(self, most: int, now: float) -> bool:
        """Return whether it may get a request. A failed server gets one at a time, and none before `back_at`."""
        return self.in_flight < most if self.failures == 0 else self.in_flight == 0 and now >= self.back_at


class RemotePool(Engine):
    """Implements `voxcli.core.protocols.Engine` with several servers, for many threads.

    A reply that breaks off is requested again, from another server if there is one. Replies are therefore yielded
    whole, or whole up to a call of a tool; an empty delta marks the arrival of the first token. Tools whose results are
    there do not run again.
    """

    name = "remote"
    supports_tools = True

    def __init__(
        self,
        engines: Sequence[PooledEngine],
        concurrency: int,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the pool.

        Args:
            engines: one for each server.
            concurrency: most requests that a server gets at once; further requests wait.
            patience_seconds: longest wait for a server when all have failed. After it, requests fail until a server
                answers again.
            clock: monotonic seconds.
        """
        self.model = ", ".join(dict.fromkeys(engine.model for engine in engines))
        self.replies_at_once = concurrency * len(engines)
        self._places = [_Place(engine) for engine in engines]
        self._concurrency = concurrency
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._all_out_since = 0.0
        self._last_error = RemoteError("no server answered")

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        """Yield the reply; see `voxcli.core.protocols.Engine`. Blocks while all servers are busy.

        Raises:
            RemoteError: the request is refused; it failed more often than there are servers, each time on one that
                worked before; or no server has answered for `patience_seconds`.
        """
        failed_on_well, rounds = 0, list[Round]()
        while place := self._acquire(interrupt):
            was_well = place.failures == 0
            error: RemoteError | None = None
            try:
                return (yield from _whole(place.engine.reply(session, utterance, interrupt, rounds)))
            except RequestRefusedError:
                raise
            except RemoteError as caught:
                error = caught
                failed_on_well += was_well
                if failed_on_well > len(self._places):
                    raise
            finally:
                self._release(place, error)
        return PassReport(0, 0, 0, 0)

    def understand(self, utterance: Utterance) -> Generator[str, None, None]:
        """Yield what a server understood, and an empty delta now and then while all servers are busy.

        See `voxcli.core.protocols.Engine`.

        Raises:
            RemoteError: the server that was asked failed, or no server has answered for `patience_seconds`.
        """
        while (place := self._look()) is None:
            yield ""
        error: RemoteError | None = None
        try:
            yield from place.engine.understand(utterance) or ()
        except RemoteError as caught:
            error = caught
            raise
        finally:
            self._release(place, error)

    def close(self) -> None:
        """Close the engines."""
        for place in self._places:
            place.engine.close()

    def _acquire(self, interrupt: threading.Event) -> _Place | None:
        """Wait for a server that may get a request and return the best one; None once `interrupt` is set."""
        while not interrupt.is_set():
            if place := self._look():
                return place
        return None

    def _look(self) -> _Place | None:
        """Return the best server that may get a request; None, after a short wait, if there is none.

        Raises:
            RemoteError: no server has answered for `patience_seconds`.
        """
        with self._changed:
            now = self._clock()
            if free := [place for place in self._places if place.room(self._concurrency, now)]:
                chosen = min(free, key=lambda place: (place.in_flight, place.failures))
                chosen.in_flight += 1
                return chosen
            if self._all_out() and now - self._all_out_since > self._patience_seconds:
                raise RemoteError(self._last_error.message, hint=self._last_error.hint)
            self._changed.wait(LOOK_SECONDS)
        return None

    def _release(self, place: _Place, error: RemoteError | None) -> None:
        with self._changed:
            place.in_flight -= 1
            if error is None:
                place.failures = 0
            else:
                were_all_out = self._all_out()
                self._last_error = error
                place.back_at = self._clock() + min(FIRST_OUT_SECONDS * 2**place.failures, LONGEST_OUT_SECONDS)
                place.failures += 1
                if not were_all_out:
                    self._all_out_since = self._clock()
            self._changed.notify_all()

    def _all_out(self) -> bool:
        return all(place.failures for place in self._places)


def _whole(reply: Reply) -> ReplyWithTools:
    """Yield an empty delta when a reply begins, and its text when it is over or calls tools.

    Servers send no transcript before it.
    """
    deltas: list[str] = []
    results: Sequence[ToolResult] | None = None
    with closing(cast(ReplyWithTools, reply)) as parts:
        while True:
            try:
                piece = parts.send(results)
            except StopIteration as over:
                report: PassReport = over.value
                break
            results = None
            if isinstance(piece, ToolCalls):
                yield "".join(deltas)
                deltas.clear()
                results = yield piece
            elif isinstance(piece, str):
                deltas.append(piece)
                if len(deltas) == 1:
                    yield ""
    yield "".join(deltas)
    return report
