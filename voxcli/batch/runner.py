"""Runs a batch: workers answer; one thread writes and counts their outcomes and shows the progress."""

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

TICK_SECONDS = 0.1  # between checks of the clock and `stop` while nothing is reported
OUTCOMES_WAITING = 256  # outcomes that workers may be ahead of the disk


class ProgressView(Protocol):
    """Shows the progress of a run."""

    def show(self, status: Status) -> None: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """A run, without its workers."""

    scheduler: Scheduler
    items: int  # items to answer
    write: Callable[[dict[str, Any]], None]
    stats: Stats  # counts all records of the results file
    view: ProgressView
    stop: threading.Event  # set it to begin no more items; those in flight are finished
    fail_fast: bool = False  # stop at the first item that fails
    clock: Callable[[], float] = time.monotonic

    def answer(self, workers: Sequence[Worker]) -> Status:
        """Answer and write all items; return the final status. All threads have ended when it returns.

        Raises:
            VoxError: the results can't be written, or the inputs can't be read. Earlier outcomes are written.
        """
        started, done = self.clock(), Stats()  # this run only; `self.stats` also counts earlier runs
        status = done.status(self.items, 0.0)
        with closing(_outcomes(self.scheduler, workers)) as outcomes:
            for outcome in outcomes:
                if outcome:
                    self.write(outcome.record)
                    self.stats.add(outcome.record)
                    done.add(outcome.record)
                if not self.scheduler.stopped and self._should_stop(done):
                    self.scheduler.stop()
                status = done.status(self.items, self.clock() - started)
                self.view.show(status)
        if self.scheduler.failure:
            raise self.scheduler.failure
        return status

    def _should_stop(self, done: Stats) -> bool:
        if self.stop.is_set():
            self.view.say("finishing what is in flight; Ctrl-C again ends at once")
            return True
        return self.fail_fast and done.failed > 0


def _outcomes(scheduler: Scheduler, workers: Sequence[Worker]) -> Generator[Outcome | None, None, None]:
    """Yield outcomes as they are reported, and None when none came for a while, until the last worker has ended.

    Close the generator to let the workers finish the items in flight. Raises what a worker raised.
    """
    reported: Queue[Outcome | BaseException | None] = Queue(OUTCOMES_WAITING)

    def report(outcome: Outcome) -> None:
        reported.put(outcome)  # Records of a session stay in order: it continues afterwards.
        scheduler.finish(outcome.job, outcome.turn)

    def work(worker: Worker) -> None:
        try:
            worker.work(report)
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
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
        while busy:  # these outcomes are not written, but no worker may wait for space in the queue
            busy -= reported.get() is None
        for thread in threads:
            thread.join()
