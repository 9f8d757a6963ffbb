"""Several servers as one engine, for many requests at a time: the fewest in flight get the next one.

A server that fails is left out and asked again later, by one request. It knows servers as engines alone,
and neither the network nor what is asked.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from voxcli.core.session import Session
from voxcli.core.turn import Engine, PassReport, Transcript, Utterance
from voxcli.engines.openai.errors import RequestRefusedError
from voxcli.errors import RemoteError

FIRST_OUT_SECONDS, LONGEST_OUT_SECONDS = 1.0, 30.0  # that a failed server is left alone; doubled each time
PATIENCE_SECONDS = 60.0  # for all of them to come back: as long as a server takes to start again
LOOK_SECONDS = 0.05  # how often a request that waits looks whether it is still wanted


@dataclass
class _Place:
    """A server, as the pool sees it."""

    engine: Engine
    in_flight: int = 0
    failures: int = 0  # one after the other
    back_at: float = 0.0  # on the pool's clock; when it is asked again

    def room(self, most: int, now: float) -> bool:
        """Return whether it takes a request: one that failed is asked by one request first."""
        return self.in_flight < most if self.failures == 0 else self.in_flight == 0 and now >= self.back_at


class RemotePool(Engine):
    """Implements `voxcli.core.turn.Engine` with several servers; for use by many threads.

    A reply that breaks off is asked for again, elsewhere where there is an elsewhere. So replies are
    yielded whole; an empty delta tells when the first token came.
    """

    name = "remote"

    def __init__(
        self,
        engines: Sequence[Engine],
        concurrency: int,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take one engine a server.

        Args:
            concurrency: requests that a server gets at once; more wait.
            patience_seconds: how long requests wait for a server when all have failed. When that is
                over they fail, until a server answers again.
            clock: seconds, monotonic.
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

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply; see `voxcli.core.turn.Engine`. Blocks while all servers have enough to do.

        Raises:
            RemoteError: the request is refused; it failed once more than there are servers, each time on
                one that was well; or no server has answered for as long as the patience lasts.
        """
        failed_on_well = 0
        while place := self._take(interrupt):
            was_well = place.failures == 0
            error: RemoteError | None = None
            try:
                return (yield from _whole(place.engine.reply(session, utterance, interrupt)))
            except RequestRefusedError:
                raise
            except RemoteError as caught:
                error = caught
                failed_on_well += was_well
                if failed_on_well > len(self._places):
                    raise
            finally:
                self._give_back(place, error)
        return PassReport(0, 0, 0, 0)

    def close(self) -> None:
        """Close the engines."""
        for place in self._places:
            place.engine.close()

    def _take(self, interrupt: threading.Event) -> _Place | None:
        """Return the best server that has room, once one has; None once `interrupt` is set."""
        with self._changed:
            while not interrupt.is_set():
                now = self._clock()
                if free := [place for place in self._places if place.room(self._concurrency, now)]:
                    chosen = min(free, key=lambda place: (place.in_flight, place.failures))
                    chosen.in_flight += 1
                    return chosen
                if self._all_out() and now - self._all_out_since > self._patience_seconds:
                    raise RemoteError(self._last_error.message, hint=self._last_error.hint)
                self._changed.wait(LOOK_SECONDS)
        return None

    def _give_back(self, place: _Place, error: RemoteError | None) -> None:
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


def _whole(reply: Generator[str | Transcript, None, PassReport]) -> Generator[str, None, PassReport]:
    """Yield a reply's text when it is over, and an empty delta when it begins; servers give no transcript before it."""
    deltas: list[str] = []
    with closing(reply):
        while True:
            try:
                piece = next(reply)
            except StopIteration as over:
                report: PassReport = over.value
                break
            if isinstance(piece, Transcript):
                continue
            deltas.append(piece)
            if len(deltas) == 1:
                yield ""
    yield "".join(deltas)
    return report
