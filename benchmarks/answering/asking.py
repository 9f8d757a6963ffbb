"""Asks an engine the questions of a set, aloud and as text, and keeps a record of each reply in a results file."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.answering.matching import is_right
from benchmarks.answering.questions import SpokenQuestion
from voxcli.batch.results import Results
from voxcli.core.protocols import Engine, Utterance
from voxcli.core.record import Context, failure_of, record_of
from voxcli.core.session import Session
from voxcli.core.turn import TurnEnded, run_turn
from voxcli.errors import AudioInputError, ConfigError, RemoteError

Way = Literal["speech", "text"]
WAYS: tuple[Way, ...] = ("speech", "text")


@dataclass(frozen=True)
class Asked:
    """What became of a question, asked in one way."""

    question: SpokenQuestion
    way: Way
    record: dict[str, Any]  # What `voxcli once --json` prints.

    @property
    def is_right(self) -> bool | None:
        """Whether the reply gives an accepted answer; None if it is unclear what it answers, or there is no reply."""
        if "error" in self.record:
            return None
        return is_right(self.record["reply"], self.question.answers, self.question.kind)


def ask_all(
    questions: Iterable[SpokenQuestion],
    engine: Engine,
    setup: dict[str, Any],
    ways: Iterable[Way],
    results: Results,
    shown: Callable[[str], None] = lambda _: None,
) -> Iterator[Asked]:
    """Yield what became of each question in each way, one after the other; what is in the results is not asked again.

    Each question begins a conversation of its own. One whose recording can't be read, or that the server refuses, is
    recorded as failed; any other error ends the run, which can be continued.

    Args:
        setup: what replies depend on besides the question; of it, `instructions` are those of each conversation.
        shown: told of each question that is asked.

    Raises:
        ConfigError: the results are of another setup.
        VoxError: the engine can't answer.
    """
    ways, session = tuple(ways), Session(instructions=setup["instructions"])
    for question in questions:
        for way in ways if question.text else [way for way in ways if way == "speech"]:
            name = f"{way}/{question.id}"
            record = results.record(name)
            if record is None:
                shown(name)
                record = {"id": name, "setup": setup, **_asked(question, way, engine, session)}
                results.write(record)
            elif record.get("setup") != setup:
                hint = "give the same flags again, or name another file with --out"
                raise ConfigError(f"{name} was answered with other settings or another engine", hint=hint)
            yield Asked(replace(question, clip=_forgotten), way, record)


def _asked(question: SpokenQuestion, way: Way, engine: Engine, session: Session) -> dict[str, Any]:
    """Return the record of one reply."""
    try:
        utterance = Utterance(question.clip()) if way == "speech" else Utterance(None, question.text)
        for event in run_turn(engine, session, utterance, threading.Event()):
            if isinstance(event, TurnEnded):
                path = question.id if way == "speech" else None
                return record_of(event, Context(engine, utterance, path, None, 1, load_seconds=0.0))
    except (AudioInputError, RemoteError) as error:
        if isinstance(error, RemoteError) and not _is_refusal(error):
            raise
        prompt = question.text if way == "text" else ""
        return failure_of(error, engine, path=None, prompt=prompt, session=None)
    raise AssertionError("a turn ends with TurnEnded")


def _is_refusal(error: RemoteError) -> bool:
    """Return whether a working server refuses the one question."""
    with suppress(ImportError):
        from voxcli.servers.errors import RequestRefusedError

        return isinstance(error, RequestRefusedError)
    return False


def _forgotten() -> Any:
    raise AssertionError("the recording of an answered question is not kept")
