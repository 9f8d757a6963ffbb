"""Answers the items of a run with an engine, on one thread or several.

A turn takes the same path as in `once`: `Memory.take_turn`, then `record_of`. A spoken reply is synthesized while it
is generated, and saved in a file.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, Protocol

from voxcli.audio.clip import AudioClip
from voxcli.batch.fingerprint import fingerprint_of
from voxcli.batch.prefetch import Prefetcher, Prepared
from voxcli.batch.replies import SpokenReplies
from voxcli.batch.scheduler import Job, Outcome
from voxcli.core.memory import Memory
from voxcli.core.protocols import Engine, Utterance
from voxcli.core.record import Context, failure_of, record_of
from voxcli.core.turn import SpeechFailed, TurnEnded
from voxcli.core.understanding import UnderstoodMode
from voxcli.errors import ConfigError


class Worker(Protocol):
    """Answers jobs until there are no more. Each worker runs on its own thread."""

    def work(self, report: Callable[[Outcome], None]) -> None:
        """Take jobs from a scheduler or prefetcher, and report each outcome, in any order.

        A job that fails is an outcome, too; an error that is raised ends the run.
        """
        ...


class EngineWorker:
    """Implements `Worker` with an engine. Several workers may share an engine that takes several turns at once."""

    def __init__(
        self,
        prefetcher: Prefetcher,
        engine: Engine,
        load_seconds: float,
        replies: SpokenReplies | None = None,
        understood: UnderstoodMode = "off",
    ) -> None:
        """Answer the jobs of `prefetcher`; `load_seconds` goes into the records."""
        self._prefetcher = prefetcher
        self._engine = engine
        self._load_seconds = load_seconds
        self._replies = replies
        self._understood: UnderstoodMode = understood

    def work(self, report: Callable[[Outcome], None]) -> None:
        """See `Worker`."""
        while prepared := self._prefetcher.take():
            outcome = self._outcome(prepared)
            outcome.record["fingerprint"] = fingerprint_of(prepared.job, prepared.content)
            report(outcome)

    def _outcome(self, prepared: Prepared) -> Outcome:
        job = prepared.job
        try:
            if isinstance(prepared.clip, Exception):
                raise prepared.clip
            return self._answer(job, prepared.clip)
        except Exception as error:  # noqa: BLE001 - a failed item, even one that hits a bug, does not end the run
            item = job.item
            record = failure_of(error, self._engine, path=item.path, prompt=item.prompt, session=item.session)
            return Outcome(job, {"id": item.id, **record}, None)

    def _answer(self, job: Job, clip: AudioClip) -> Outcome:
        item, utterance = job.item, Utterance(clip, job.item.prompt)
        memory = Memory(job.session, understood=self._understood)
        extra: dict[str, Any] = {}
        with ExitStack() as stack:
            speaker = stack.enter_context(self._replies.speaker(item.id)) if self._replies else None
            speech = self._replies.output(speaker) if self._replies and speaker else None
            events = stack.enter_context(closing(memory.take_turn(self._engine, utterance, threading.Event(), speech)))
            for event in events:
                if isinstance(event, SpeechFailed):
                    raise event.error
                if isinstance(event, TurnEnded):
                    ended = event
            if speaker:
                extra["saved_reply"] = str(speaker.path) if speaker.path else None
        context = Context(self._engine, utterance, item.path, item.session, memory.turn_number, self._load_seconds)
        return Outcome(job, {"id": item.id, **record_of(ended, context), **extra}, ended.turn)


def replies_at_once(engine: Engine) -> int | None:
    """Return how many replies an engine should be asked for at once; None: it takes one at a time."""
    return getattr(engine, "replies_at_once", None)


def workers_wanted(engine: Engine, concurrency: int | None) -> int:
    """Return how many workers should share an engine.

    Args:
        concurrency: the number that the user asked for; None for the engine's own.

    Raises:
        ConfigError: the engine takes one turn at a time, but `concurrency` is higher.
    """
    best = replies_at_once(engine)
    if best is None and concurrency not in (None, 1):
        raise ConfigError(f"the {engine.name} engine answers one item at a time", hint="leave out --concurrency")
    return concurrency or best or 1
