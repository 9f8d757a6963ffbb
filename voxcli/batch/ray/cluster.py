"""Runs a batch on a Ray cluster: a pool of actors that each load an engine once.

Ray places the actors and transports jobs and answers. The pool restarts an actor whose process or machine died, gives
its jobs to others, and sends the turns of a session to the actor that had the last one. `actor.py` answers the jobs.

Ray pickles jobs and answers, only between processes of the cluster.
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
from voxcli.batch.fingerprint import fingerprint_of
from voxcli.batch.ray.actor import ActorWorker, Answer, Setup, WorkerReady
from voxcli.batch.scheduler import Job, Outcome, Scheduler
from voxcli.core.protocols import Engine
from voxcli.core.record import failure_of
from voxcli.errors import ConfigError, VoxError, missing_extra
from voxcli.printable import first_line

CONNECT_SECONDS = 5.0
TICK_SECONDS = 0.1  # between checks whether the run should stop
WAITING_SECONDS = 30.0  # between notices while no actor is ready
ATTEMPTS = 3  # A retry runs alone on its actor: the item may be what killed the other.
START_ATTEMPTS = 3  # Consecutive deaths of an actor while it loads, as for lack of memory.
CALLS_AT_ONCE = 4096  # calls to one actor; more than any worker takes

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How many actors there are, and how many GPUs each gets besides one CPU."""

    workers: int | None = None  # None: as many as the cluster has room for now
    gpus: float | None = None  # GPUs of each actor; None: 1 if the cluster has GPUs, otherwise 0.


class AnsweringActor:
    """The Ray actor around an `ActorWorker`. `voxcli` must be installed on each machine."""

    def __init__(self, setup: Setup) -> None:
        self._worker: ActorWorker | None = None
        self._failure: VoxError | None = None
        try:
            self._worker = ActorWorker(setup)
        except VoxError as error:  # raised here, it would reach the caller as text of many lines
            self._failure = error

    async def ready(self) -> WorkerReady | VoxError:
        """Return facts about the worker, or why there is none."""
        return self._worker.ready if self._worker else self._failure or VoxError("the worker is not there")

    async def answer(self, job: Job) -> Answer:
        """Answer a job."""
        if self._worker is None:
            raise self._failure or VoxError("the worker is not there")
        return await asyncio.wrap_future(self._worker.answer(job))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Stay connected to a running cluster for as long as the context lasts.

    Args:
        address: `auto` for the cluster of this machine, `HOST:PORT`, or `ray://HOST:PORT`.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # instead of 20 tries of half a minute each
    try:
        import ray
    except ImportError as error:
        raise missing_extra(ConfigError, "--ray", "ray") from error
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} can be used: {first_line(error)}",
            hint="ray start --head on one machine, ray start --address HOST:6379 on the others; then --ray HOST:6379",
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints the state of the cluster
            yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_terminate)


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at the address, because Ray would try for minutes."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError("it is neither `auto` nor HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@dataclass(eq=False)
class _PooledActor:
    """An actor of the pool. A restart replaces its handle."""

    handle: Any  # Ray's
    failed_starts: int = 0  # since it was last ready
    ready: WorkerReady | None = None  # None: it is starting
    is_removed: bool = False  # it is not started again
    jobs: int = 0  # jobs that it has
    is_reserved: bool = False  # Reserved for one job whose earlier actor died.
    waiting: deque[Job] = field(default_factory=deque)  # turns of its sessions that wait for room

    @property
    def has_room(self) -> bool:
        """Whether it can take a job now."""
        return self.ready is not None and self.jobs < self.ready.room and not self.is_reserved

    def release(self) -> None:
        """Record that a job has left it."""
        self.jobs -= 1
        self.is_reserved = False


@dataclass(frozen=True)
class _Call:
    actor: _PooledActor
    job: Job | None  # None: the call waits until the actor is ready


class ActorPool:
    """The actors of a run. Implements `voxcli.batch.worker.Worker` for all of them together."""

    def __init__(
        self,
        scheduler: Scheduler,
        setup: Setup,
        size: Size,
        items: int,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the actors; call it within `connected`.

        Args:
            items: number of items to answer; no more actors than that are started.
            notify: told when actors are ready, lost or removed.

        Raises:
            ConfigError: the cluster has no room for an actor.
        """
        import ray

        workers, gpus = _pool_size(size, ray.cluster_resources())
        self._scheduler, self._notify, self._clock = scheduler, notify, clock
        actor_class = ray.remote(AnsweringActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,  # Ray would endlessly restart an actor that dies while it loads
            max_task_retries=0,  # a job goes to another actor at once instead of waiting for a restart
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )
        self._start = partial(actor_class.remote, setup)
        self._actors = [_PooledActor(self._start()) for _ in range(min(workers, items))]
        self._calls: dict[Any, _Call] = {}  # Keys: Ray's references to the results.
        self._session_actors: dict[str, _PooledActor] = {}  # Keys: names of sessions.
        self._retries: deque[Job] = deque()  # jobs whose actor died; each runs alone on an idle actor
        self._requeued: deque[Job] = deque()  # jobs that waited for an actor that died
        self._deaths: Counter[str] = Counter()  # actors that died, by id of the item
        self._notified: set[str] = set()

    def work(self, report: Callable[[Outcome], None]) -> None:
        """See `Worker`. Raises VoxError if no actor can be started, or one has a bug."""
        import ray

        try:
            for actor in self._actors:
                self._request_ready(actor)
            ready_at = self._clock()
            while not (self._dispatch_jobs() and not any(actor.jobs for actor in self._actors)):
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=TICK_SECONDS)
                if done:
                    done, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
                for reference in done:
                    self._on_call_done(reference, report)
                ready_at = self._notify_while_waiting(ready_at)
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)

    def _dispatch_jobs(self) -> bool:
        """Send jobs to actors that have room; return whether no jobs were left before the room was used up."""
        if self._scheduler.stopped:
            return True
        while actor := self._least_busy():
            job = actor.waiting.popleft() if actor.waiting else self._next_job(actor)
            if job is None:
                return True
            owner = self._actor_for(job, actor)
            if owner is actor or owner.has_room:
                self._send(owner, job)
            else:
                owner.waiting.append(job)
        return False

    def _least_busy(self) -> _PooledActor | None:
        free = [actor for actor in self._actors if actor.has_room]
        return min(free, key=lambda actor: (not actor.waiting, actor.jobs)) if free else None

    def _next_job(self, actor: _PooledActor) -> Job | None:
        if self._retries and not actor.jobs:
            actor.is_reserved = True
            return self._retries.popleft()
        return self._requeued.popleft() if self._requeued else self._scheduler.take(wait=False)

    def _actor_for(self, job: Job, actor: _PooledActor) -> _PooledActor:
        """Return the actor that has the job's session if it is ready, otherwise `actor`."""
        if job.item.session is None:
            return actor
        owner = self._session_actors.get(job.item.session)
        if owner is None or owner.ready is None or actor.is_reserved:
            owner = self._session_actors[job.item.session] = actor
        return owner

    def _send(self, actor: _PooledActor, job: Job) -> None:
        actor.jobs += 1
        self._calls[actor.handle.answer.remote(job)] = _Call(actor, job)

    def _request_ready(self, actor: _PooledActor) -> None:
        """Call the actor; the result arrives when it is ready."""
        self._calls[actor.handle.ready.remote()] = _Call(actor, None)

    def _restart(self, actor: _PooledActor) -> None:
        """Replace an actor that died or can't be reached."""
        import ray

        ray.kill(actor.handle)
        actor.handle = self._start()
        self._request_ready(actor)

    def _on_call_done(self, reference: Any, report: Callable[[Outcome], None]) -> None:
        """Handle the result or the error of a call."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(reference)
        try:
            value = ray.get(reference)
        except RayTaskError as error:  # raised by voxcli's code in the actor
            raise VoxError(f"a worker failed: {first_line(error.cause)}", hint="please report it") from error
        except RayError as error:
            if call.job:
                self._on_actor_lost(call.actor, call.job, error, report)
            else:
                self._on_failed_start(call.actor, error)
            return
        if call.job is None:
            self._on_ready(call.actor, value)
            return
        call.actor.release()
        if call.job.ends_session and call.job.item.session:
            self._session_actors.pop(call.job.item.session, None)
        record, turn = cast("Answer", value)
        report(Outcome(call.job, record, turn))

    def _on_ready(self, actor: _PooledActor, reply: WorkerReady | VoxError) -> None:
        if isinstance(reply, VoxError):
            self._remove(actor, reply)
        elif reply.version != __version__:
            self._remove(actor, ConfigError(f"{reply.host} has voxcli {reply.version}, this machine {__version__}"))
        else:
            for notice in reply.notices:
                self._notify_once(notice)
            self._notify(f"worker on {reply.host}: {reply.name} engine, ready in {reply.load_seconds:.1f} s")
            actor.ready, actor.failed_starts = reply, 0

    def _on_failed_start(self, actor: _PooledActor, error: Exception) -> None:
        """Restart an actor that died while it loaded, or remove it after the last attempt."""
        actor.failed_starts += 1
        if actor.failed_starts < START_ATTEMPTS:
            self._notify_once(f"a worker died while it loaded its engine; it is started again: {first_line(error)}")
            self._restart(actor)
            return
        why = f"a worker died {START_ATTEMPTS} times while it loaded its engine: {first_line(error)}"
        self._remove(actor, VoxError(why, hint="it may need more memory than its machine has; fewer with --workers N"))

    def _on_actor_lost(
        self, actor: _PooledActor, job: Job, error: Exception, report: Callable[[Outcome], None]
    ) -> None:
        """Restart an actor that died or can't be reached, and requeue its job."""
        actor.release()
        ready = actor.ready
        if ready:  # Its other jobs are requeued when their own calls fail.
            self._notify(f"worker on {ready.host}: lost; its items go to other workers")
            actor.ready = None
            self._requeued.extend(actor.waiting)
            actor.waiting.clear()
            self._restart(actor)
        self._deaths[job.item.id] += 1
        if self._deaths[job.item.id] < ATTEMPTS:
            self._retries.append(job)
            return
        item, why = job.item, VoxError(f"{ATTEMPTS} workers died while they answered it: {first_line(error)}")
        named = cast("Engine", ready or _NoEngine())  # a record needs only the names of an engine
        record = failure_of(why, named, path=item.path, prompt=item.prompt, session=item.session)
        report(Outcome(job, {"id": item.id, **record, "fingerprint": fingerprint_of(job, None)}, None))

    def _remove(self, actor: _PooledActor, reason: VoxError) -> None:
        """Continue without an actor. Raises `reason` if it was the last."""
        actor.is_removed = True
        if all(actor.is_removed for actor in self._actors):
            raise reason
        self._notify_once(f"left out: {reason}")

    def _notify_once(self, text: str) -> None:
        if text not in self._notified:
            self._notified.add(text)
            self._notify(text)

    def _notify_while_waiting(self, ready_at: float) -> float:
        """Give notice every `WAITING_SECONDS` without a ready actor; return when one was ready or notice was given."""
        now = self._clock()
        if any(actor.ready for actor in self._actors):
            return now
        if now - ready_at < WAITING_SECONDS:
            return ready_at
        left = sum(not actor.is_removed for actor in self._actors)
        self._notify(f"waiting for the cluster to start one of {left} workers; `ray status` says what is free")
        return now


@dataclass(frozen=True)
class _NoEngine:
    name: str = "unknown"
    model: str = "unknown"


def _pool_size(size: Size, resources: dict[str, float]) -> tuple[int, float]:
    """Return the number of actors and the GPUs of each, for the resources of a cluster."""
    gpus = size.gpus if size.gpus is not None else float(resources.get("GPU", 0) > 0)
    room = resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 0)
    if workers := size.workers or int(room):
        return workers, gpus
    raise ConfigError(
        f"the cluster has no room for a worker with {gpus:g} GPUs: {resources.get('GPU', 0):g} GPUs, "
        f"{resources.get('CPU', 0):g} CPUs",
        hint="--gpus-per-worker 0 runs without GPUs; --workers N waits for N workers on a cluster that grows by itself",
    )
