"""Hands out the items of a run, in order and to many takers, the turns of a session one after the other.

What of the plan has been read and can't be handed out yet, because its session is busy, waits here: at
most WINDOW items, so that a plan of any length takes the same memory. The desk knows no recording, no
engine and no file. Whoever answers somewhere else - on other machines, many at once - takes jobs here.
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from voxcli.batch.item import Item
from voxcli.batch.plan import Planned
from voxcli.core.session import Session, Turn

WINDOW = 4096  # items, of half a kilobyte: how far apart turns may lie that run side by side


@dataclass(frozen=True, slots=True)
class Job:
    """An item that may be answered now, and the session as it is before it."""

    item: Item
    session: Session
    ends_session: bool = False  # no later item belongs to it


@dataclass(frozen=True, slots=True)
class Outcome:
    """An item that was answered, or has failed."""

    job: Job
    record: dict[str, Any]
    turn: Turn | None  # what its session remembers of it; None: it has failed


class Finished(Protocol):
    """What earlier runs have finished."""

    def __contains__(self, item_id: str) -> bool: ...

    def turn(self, item_id: str) -> Turn | None:
        """Return what is to be remembered of a finished item; None if it failed."""
        ...


@dataclass
class _SessionQueue:
    """A session in this run."""

    session: Session
    waiting: deque[Planned] = field(default_factory=deque)
    is_busy: bool = False
    is_over: bool = False  # no later item belongs to it


class Scheduler:
    """See the module. Every method may be called from any thread."""

    def __init__(self, plan: Iterator[Planned], finished: Finished, instructions: str) -> None:
        """Begin a run.

        Args:
            finished: items that are not handed out; what they said is remembered by their sessions.
            instructions: of items and sessions that bring none.
        """
        self._plan: Iterator[Planned] | None = plan  # None: read to its end
        self._finished = finished
        self._instructions = instructions
        self._changed = threading.Condition()
        self._ready: deque[Job] = deque()
        self._sessions: dict[str, _SessionQueue] = {}
        self._waiting = 0  # items, in all talks
        self.stopped = False
        self.failure: Exception | None = None  # why the plan could not be read to its end

    def take(self, *, wait: bool = True) -> Job | None:
        """Return the next job, waiting while all that is left depends on turns being answered; None: no more.

        Without `wait`, None may mean as well that there is none before one of those handed out is finished.
        """
        with self._changed:
            while not self.stopped:
                if self._ready:
                    return self._ready.popleft()
                if self._plan is not None and self._waiting < WINDOW:
                    self._read(self._plan)
                elif self._waiting and wait:
                    self._changed.wait()
                else:
                    break
            self._changed.notify_all()
            return None

    def finish(self, job: Job, turn: Turn | None) -> None:
        """Let a job's session go on, with `turn` remembered unless that is None."""
        if job.item.session is None:
            return
        with self._changed:
            queue = self._sessions[job.item.session]
            if turn:
                queue.session = queue.session.add(turn)
            queue.is_busy = False
            self._advance(job.item.session, queue)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        self.stopped = True  # without the lock: whoever skips a million finished items looks here
        with self._changed:
            self._changed.notify_all()

    def _read(self, plan: Iterator[Planned]) -> None:
        """Take in the next item of the plan."""
        try:
            planned = next(plan, None)
        except Exception as error:  # noqa: BLE001 - what was handed out goes on, and the runner raises it
            self.failure, planned = error, None
        if planned is None:
            self._plan = None
            return
        item = planned.item
        own = self._instructions if item.instructions is None else item.instructions
        if item.session is None:
            if item.id not in self._finished:
                self._ready.append(Job(item, Session(instructions=own)))
            return
        queue = self._sessions.setdefault(item.session, _SessionQueue(Session(item.session, own)))
        queue.waiting.append(planned)
        self._waiting += 1
        self._advance(item.session, queue)

    def _advance(self, name: str, queue: _SessionQueue) -> None:
        """Make the session's next item ready; remember those that were finished before."""
        while queue.waiting and not queue.is_busy:
            item, queue.is_over = queue.waiting.popleft()
            self._waiting -= 1
            if item.id not in self._finished:
                told = queue.session.instructions if item.instructions is None else item.instructions
                self._ready.append(Job(item, replace(queue.session, instructions=told), queue.is_over))
                queue.is_busy = True
            elif turn := self._finished.turn(item.id):
                queue.session = queue.session.add(turn)
        if queue.is_over and not queue.is_busy:
            del self._sessions[name]
