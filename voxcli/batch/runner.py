"""Runs a batch: workers answer, one thread writes what they report, counts it and shows how far it is.

It knows no engine, no recording and no terminal. Whatever answers jobs of a desk is a worker.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any, Protocol

from voxcli.batch.scheduler import Outcome, Scheduler
from voxcli.batch.stats import Stats, Status
from voxcli.batch.worker import Worker

TICK_SECONDS = 0.1  # between looks at the clock and at `stop` while nothing is reported
OUTCOMES_WAITING = 256  # that workers may be ahead of the disk


class ProgressView(Protocol):
    """Shows how far a run is."""

    def show(self, status: Status) -> None: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """What a run is made of, beside its workers."""

    scheduler: Scheduler
    items: int  # to be answered
    write: Callable[[dict[str, Any]], None]
    stats: Stats  # counts what is written
    view: ProgressView
    stop: threading.Event  # set it, and what is in flight is finished, nothing more is begun
    fail_fast: bool = False  # stop at the first item that fails
    clock: Callable[[], float] = time.monotonic

    def answer(self, workers: Sequence[Worker]) -> Status:
        """Have all items answered and written; return how far it got. Nothing of it runs on.

        Raises:
            VoxError: the results can't be written, or the inputs can't be read to their end; what was
                answered before is written.
        """
        started, done = self.clock(), Stats()  # of this run alone: the other may hold what others wrote
        status = done.status(self.items, 0.0)
        with closing(_outcomes(self.scheduler, workers)) as outcomes:
            for outcome in outcomes:
                if outcome:
                    self.write(outcome.record)
                    self.stats.add(outcome.record)
                    done.add(outcome.record)
                if not self.scheduler.stopped and self._is_to_stop(done):
                    self.scheduler.stop()
                status = done.status(self.items, self.clock() - started)
                self.view.show(status)
        if self.scheduler.failure:
            raise self.scheduler.failure
        return status

    def _is_to_stop(self, done: Stats) -> bool:
        if self.stop.is_set():
            self.view.say("finishing what is in flight; Ctrl-C again ends at once")
            return True
        return self.fail_fast and done.failed > 0


def _outcomes(scheduler: Scheduler, workers: Sequence[Worker]) -> Generator[Outcome | None, None, None]:
    """Give outcomes as they are reported, and None from time to time; end with the last worker.

    Closing it lets the workers finish what is in flight. Raises what a worker raised.
    """
    reported: Queue[Outcome | BaseException | None] = Queue(OUTCOMES_WAITING)

    def report(outcome: Outcome) -> None:
        reported.put(outcome)  # before the session goes on: so its records come in order
        scheduler.finish(outcome.job, outcome.turn)

    def work(worker: Worker) -> None:
        try:
            worker.work(report)
        except BaseException as error:  # noqa: BLE001 - raised again, on the caller's thread
            reported.put(error)
        reported.put(None)

    threads = [threading.Thread(target=work, args=(worker,), name="batch", daemon=True) for worker in workers]
    busy = len(threads)
    for thread in threads:
        thread.start()
    try:
        while busy:
            try:
                outcome = reported.get(timeout=TICK_SECONDS)
            except Empty:
                yield None
                continue
            if outcome is None:
                busy -= 1
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                yield outcome
    finally:
        scheduler.stop()
        while busy:  # nobody writes these: a worker must not wait for room
            busy -= reported.get() is None
        for thread in threads:
            thread.join()
