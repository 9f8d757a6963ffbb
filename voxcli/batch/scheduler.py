"""Hands out the items of a run in order to any number of workers; the turns of a session one after the other.

Items whose session is busy wait here. At most WINDOW items wait, so that a plan of any length takes the same memory.
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from voxcli.batch.item import Item
from voxcli.batch.plan import Planned
from voxcli.core.session import Session, Turn

WINDOW = 4096  # most items that wait, each about 500 bytes; a session blocks others only beyond that


@dataclass(frozen=True, slots=True)
class Job:
    """An item that may be answered now, with its session so far."""

    item: Item
    session: Session
    ends_session: bool = False  # no later item belongs to the session


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an item that was answered or has failed."""

    job: Job
    record: dict[str, Any]
    turn: Turn | None  # the turn that its session remembers; None: it failed


class Finished(Protocol):
    """The items that earlier runs finished."""

    def __contains__(self, item_id: str) -> bool: ...

    def turns(self, session: str) -> tuple[Turn, ...]:
        """Return the answered turns of a session, in the order of their numbers."""
        ...


@dataclass
class _SessionQueue:
    """A session of this run, and its items that wait."""

    session: Session
    waiting: deque[Planned] = field(default_factory=deque)
    is_busy: bool = False
    is_over: bool = False  # no later item belongs to the session


class Scheduler:
    """Hands out jobs. Every method may be called from any thread."""

    def __init__(self, plan: Iterator[Planned], finished: Finished, instructions: str) -> None:
        """Begin a run.

        Args:
            finished: items that are not handed out again. Their sessions begin with their turns, wherever the
                items stand in the plan, so that no two turns get the same number.
            instructions: for items and sessions without their own.
        """
        self._plan: Iterator[Planned] | None = plan  # None: all of it has been read
        self._finished = finished
        self._instructions = instructions
        self._changed = threading.Condition()
        self._ready: deque[Job] = deque()
        self._sessions: dict[str, _SessionQueue] = {}
        self._waiting = 0  # waiting items of all sessions
        self.stopped = False
        self.failure: Exception | None = None  # why the plan could not be read

    @property
    def open_sessions(self) -> int:
        """How many sessions are in memory: those that have begun and wait for more items."""
        return len(self._sessions)

    def take(self, *, wait: bool = True) -> Job | None:
        """Return the next job; None if there are no more.

        Args:
            wait: wait while every item that is left depends on a turn in flight; otherwise return None then, too.
        """
        with self._changed:
            while not self.stopped:
                if self._ready:
                    return self._ready.popleft()
                if self._plan is not None and self._waiting < WINDOW:
                    self._read_next(self._plan)
                elif self._waiting and wait:
                    self._changed.wait()
                else:
                    break
            self._changed.notify_all()
            return None

    def finish(self, job: Job, turn: Turn | None) -> None:
        """Continue the session of a job. It remembers `turn` unless that is None."""
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
        """Hand out no more jobs."""
        self.stopped = True  # Taking the lock could wait: it is held while finished items are skipped.
        with self._changed:
            self._changed.notify_all()

    def _read_next(self, plan: Iterator[Planned]) -> None:
        """Read the next item of the plan."""
        try:
            planned = next(plan, None)
        except Exception as error:  # noqa: BLE001 - raised by the runner, after jobs in flight are finished
            self.failure, planned = error, None
        if planned is None:
            self._plan = None
            return
        item = planned.item
        instructions = self._instructions if item.instructions is None else item.instructions
        if item.session is None:
            if item.id not in self._finished:
                self._ready.append(Job(item, Session(instructions=instructions)))
            return
        queue = self._sessions.get(item.session)
        if queue is None:
            turns = self._finished.turns(item.session)
            queue = self._sessions[item.session] = _SessionQueue(Session(item.session, instructions, turns))
        queue.waiting.append(planned)
        self._waiting += 1
        self._advance(item.session, queue)

    def _advance(self, name: str, queue: _SessionQueue) -> None:
        """Make the next item of a session ready that is not finished."""
        while queue.waiting and not queue.is_busy:
            item, queue.is_over = queue.waiting.popleft()
            self._waiting -= 1
            if item.id not in self._finished:
                instructions = queue.session.instructions if item.instructions is None else item.instructions
                self._ready.append(Job(item, replace(queue.session, instructions=instructions), queue.is_over))
                queue.is_busy = True
        if queue.is_over and not queue.is_busy:
            del self._sessions[name]
