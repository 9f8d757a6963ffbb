"""A batch on a Ray cluster: actors that each load an engine once, and the jobs that are with them.

Ray places the actors, and carries jobs and answers. Here an actor whose process or machine died is started again, and
it is kept which job is with which actor: that of an actor that died goes to another, and a session's turns go to the
actor that had the last one. What an actor does with a job is the business of `station.py`; nothing is known here
of engines, recordings and files.

Jobs and answers are pickled by Ray, among processes of the cluster alone.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from voxcli import __version__
from voxcli.batch.ray.actor import ActorWorker, Answer, Setup, WorkerReady
from voxcli.batch.scheduler import Job, Outcome, Scheduler
from voxcli.core.record import failure_of
from voxcli.core.turn import Engine
from voxcli.errors import ConfigError, VoxError, missing_extra
from voxcli.printable import first_line

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.1  # between looks at whether the run is to stop
PATIENCE_SECONDS = 30.0  # without any actor, before it is said again what is waited for
ATTEMPTS = 3  # at an item whose actor dies each time; from the second on it is alone there, for it may be the cause
START_ATTEMPTS = 3  # in a row, of an actor whose process dies while it loads, for lack of memory say
CALLS_AT_ONCE = 4096  # to one actor; more than any asks for

Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How many actors, and what each is given; beside that a CPU."""

    workers: int | None = None  # None: as many as there is room for now
    gpus: float | None = None  # of each; None: 1 where the cluster has any, else 0


class AnsweringActor:
    """A station behind Ray; `voxcli` has to be installed on each machine."""

    def __init__(self, setup: Setup) -> None:
        self._worker: ActorWorker | None = None
        self._failure: VoxError | None = None
        try:
            self._worker = ActorWorker(setup)
        except VoxError as error:  # raised here it would reach the caller as a text of many lines
            self._failure = error

    async def ready(self) -> WorkerReady | VoxError:
        """Return what the station is, or why there is none."""
        return self._worker.ready if self._worker else self._failure or VoxError("the worker is not there")

    async def answer(self, job: Job) -> Answer:
        if self._worker is None:
            raise self._failure or VoxError("the worker is not there")
        return await asyncio.wrap_future(self._worker.answer(job))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be part of a running cluster.

    Args:
        address: `auto` for the one that runs on this machine, `HOST:PORT`, or `ray://HOST:PORT`.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers there.
    """
    on_terminate = signal.getsignal(signal.SIGTERM)  # which Ray puts its own in place of
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 20 tries to reach a cluster, each takes half a minute
    try:
        import ray
    except ImportError as error:
        raise missing_extra(ConfigError, "--ray", "ray") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} can be used: {first_line(error)}",
            hint="ray start --head on one machine, ray start --address HOST:6379 on the others; then --ray HOST:6379",
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # where Ray prints what becomes of the cluster
            yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_terminate)


def _knock(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at an address; Ray would try for minutes."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError("it is neither `auto` nor HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@dataclass(eq=False)
class _Actor:
    """A place for an actor, from its first start to the end of the run."""

    actor: Any
    failed_starts: int = 0  # since it was ready
    ready: WorkerReady | None = None  # None: it is starting, for the first time or again
    is_lost: bool = False  # it starts no more
    calls: int = 0  # jobs that are there
    is_reserved: bool = False  # for one job that has seen an actor die
    waiting: deque[Job] = field(default_factory=deque)  # turns of its sessions, while there is no room

    @property
    def has_room(self) -> bool:
        return self.ready is not None and self.calls < self.ready.room and not self.is_reserved

    def release(self) -> None:
        """Take note that a job is there no more."""
        self.calls -= 1
        self.is_reserved = False


@dataclass(frozen=True)
class _Call:
    member: _Actor
    job: Job | None  # None: it was asked whether it is ready


class ActorPool:
    """The actors of a run. Implements `voxcli.batch.worker.Worker`, for all of them at once."""

    def __init__(
        self,
        scheduler: Scheduler,
        setup: Setup,
        size: Size,
        items: int,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin within `connected`.

        Args:
            items: how many there are to answer: no more actors than that are started.
            say: is told what becomes of the actors.

        Raises:
            ConfigError: the cluster has no GPU, though they are asked for.
        """
        import ray

        workers, gpus = _measured(size, ray.cluster_resources())
        self._scheduler, self._say, self._clock = scheduler, say, clock
        actor_class = ray.remote(AnsweringActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,  # Ray would start one that dies while it loads again and again
            max_task_retries=0,  # a job goes to another actor at once, instead of waiting for this one to be back
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        self._start = partial(actor_class.remote, setup)
        self._members = [_Actor(self._start()) for _ in range(min(workers, items))]
        self._calls: dict[Any, _Call] = {}  # by Ray's reference to the answer
        self._homes: dict[str, _Actor] = {}  # of sessions
        self._returned: deque[Job] = deque()  # by actors that died; each runs alone, when an actor has nothing to do
        self._displaced: deque[Job] = deque()  # that waited for an actor that died
        self._deaths: Counter[str] = Counter()  # that an item has seen
        self._said: set[str] = set()
        self._failure = VoxError("no worker can be started")

    def work(self, report: Callable[[Outcome], None]) -> None:
        """See `Worker`; raises VoxError where no actor can be had, or one has a bug."""
        import ray

        try:
            for member in self._members:
                self._ask_whether_ready(member)
            heard = self._clock()
            while not (self._hand_out() and not any(member.calls for member in self._members)):
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=TICK_SECONDS)
                if done:
                    done, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
                for reference in done:
                    self._settle(reference, report)
                heard = self._complained_since(heard)
        finally:
            for member in self._members:
                ray.kill(member.actor)

    def _hand_out(self) -> bool:
        """Give jobs to actors as long as they have room; return whether there were too few."""
        if self._scheduler.stopped:
            return True
        while member := self._freest():
            job = member.waiting.popleft() if member.waiting else self._next(member)
            if job is None:
                return True
            home = self._home(job, member)
            if home is member or home.has_room:
                self._send(home, job)
            else:
                home.waiting.append(job)
        return False

    def _freest(self) -> _Actor | None:
        free = [member for member in self._members if member.has_room]
        return min(free, key=lambda member: (not member.waiting, member.calls)) if free else None

    def _next(self, member: _Actor) -> Job | None:
        if self._returned and not member.calls:
            member.is_reserved = True
            return self._returned.popleft()
        return self._displaced.popleft() if self._displaced else self._scheduler.take(wait=False)

    def _home(self, job: Job, member: _Actor) -> _Actor:
        """Return where a job belongs: to the actor that knows its session if that is there, else to `member`."""
        if job.item.session is None:
            return member
        home = self._homes.get(job.item.session)
        if home is None or home.ready is None or member.is_reserved:
            home = self._homes[job.item.session] = member
        return home

    def _send(self, member: _Actor, job: Job) -> None:
        member.calls += 1
        self._calls[member.actor.answer.remote(job)] = _Call(member, job)

    def _ask_whether_ready(self, member: _Actor) -> None:
        """Have Ray answer when the actor is there, wherever and whenever that is."""
        self._calls[member.actor.ready.remote()] = _Call(member, None)

    def _start_again(self, member: _Actor) -> None:
        """Put a new actor in the place of one that is gone, or can't be reached."""
        import ray

        ray.kill(member.actor)
        member.actor = self._start()
        self._ask_whether_ready(member)

    def _settle(self, reference: Any, report: Callable[[Outcome], None]) -> None:
        """Take what a call has come to."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(reference)
        try:
            value = ray.get(reference)
        except RayTaskError as error:  # raised by our own code there
            raise VoxError(f"a worker failed: {first_line(error.cause)}", hint="please report it") from error
        except RayError as error:
            if call.job:
                self._lose(call.member, call.job, error, report)
            else:
                self._on_failed_start(call.member, error)
            return
        if call.job is None:
            self._welcome(call.member, value)
            return
        call.member.release()
        if call.job.ends_session and call.job.item.session:
            self._homes.pop(call.job.item.session, None)
        record, turn = cast("Answer", value)
        report(Outcome(call.job, record, turn))

    def _welcome(self, member: _Actor, said: WorkerReady | VoxError) -> None:
        if isinstance(said, VoxError):
            self._leave_out(member, said)
        elif said.version != __version__:
            self._leave_out(member, ConfigError(f"{said.host} has voxcli {said.version}, this machine {__version__}"))
        else:
            for notice in said.notices:
                self._say_once(notice)
            self._say(f"worker on {said.host}: {said.name} engine, ready in {said.load_seconds:.1f} s")
            member.ready, member.failed_starts = said, 0

    def _on_failed_start(self, member: _Actor, error: Exception) -> None:
        """Start an actor again that died while it loaded, unless that was the last attempt."""
        member.failed_starts += 1
        if member.failed_starts < START_ATTEMPTS:
            self._say_once(f"a worker died while it loaded its engine; it is started again: {first_line(error)}")
            self._start_again(member)
            return
        why = f"a worker died {START_ATTEMPTS} times while it loaded its engine: {first_line(error)}"
        self._leave_out(
            member, VoxError(why, hint="it may need more memory than its machine has; fewer with --workers N")
        )

    def _lose(self, member: _Actor, job: Job, error: Exception, report: Callable[[Outcome], None]) -> None:
        """Take a job back from an actor that is gone, or can't be reached."""
        member.release()
        ready = member.ready
        if ready:  # its other jobs are given back by their own calls
            self._say(f"worker on {ready.host}: gone; what it had goes to others")
            member.ready = None
            self._displaced.extend(member.waiting)
            member.waiting.clear()
            self._start_again(member)
        self._deaths[job.item.id] += 1
        if self._deaths[job.item.id] < ATTEMPTS:
            self._returned.append(job)
            return
        item, why = job.item, VoxError(f"{ATTEMPTS} workers died while they answered it: {first_line(error)}")
        named = cast("Engine", ready or _NoEngine())  # of an engine, a record has the names alone
        record = failure_of(why, named, path=item.path, prompt=item.prompt, session=item.session)
        report(Outcome(job, {"id": item.id, **record}, None))

    def _leave_out(self, member: _Actor, why: VoxError) -> None:
        """Go on without an actor that starts no more; raises `why` if it was the last."""
        member.is_lost = True
        if all(member.is_lost for member in self._members):
            raise why
        self._say_once(f"left out: {why}")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _complained_since(self, heard: float) -> float:
        """Say from time to time that there is no actor; return when there was one, or it was said."""
        now = self._clock()
        if any(member.ready for member in self._members):
            return now
        if now - heard < PATIENCE_SECONDS:
            return heard
        left = sum(not member.is_lost for member in self._members)
        self._say(f"waiting for the cluster to start one of {left} workers; `ray status` says what is free")
        return now


@dataclass(frozen=True)
class _NoEngine:
    name: str = "unknown"
    model: str = "unknown"


def _measured(size: Size, there: dict[str, float]) -> tuple[int, float]:
    """Return the number of actors and the GPUs of each, for a cluster that has this."""
    gpus = size.gpus if size.gpus is not None else float(there.get("GPU", 0) > 0)
    room = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 0)
    if workers := size.workers or int(room):
        return workers, gpus
    raise ConfigError(
        f"the cluster has no room for a worker with {gpus:g} GPUs: {there.get('GPU', 0):g} GPUs, "
        f"{there.get('CPU', 0):g} CPUs",
        hint="--gpus-per-worker 0 runs without; --workers N waits for N workers, where the cluster grows by itself",
    )
