"""Runs one turn: takes an utterance, yields events.

`run_turn` is the only way a turn runs. `chat`, `once` and `batch` drive it; views render its events.

                    deltas                pieces                  clips
    engine.reply() --------> PieceCutter -------> synthesize() --------> speaker.play()
    caller's thread                       speech thread                  device or file
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import cast

from voxcli.core.protocols import (
    Engine,
    Item,
    PassReport,
    Reply,
    ReplyWithTools,
    SpeechOutput,
    Transcript,
    Utterance,
)
from voxcli.core.session import Session, Turn
from voxcli.core.speaking import SIGNAL_SECONDS, Interjections, Speaking, Stopwatch, Timings
from voxcli.core.spoken_text import SpokenText
from voxcli.core.tools import StopReason, ToolCalled, ToolResult, ToolReturned, ToolRunner, ToolsStopped, answer_calls
from voxcli.core.understanding import NotUnderstood, Understanding, Understood
from voxcli.errors import VoxError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplyDelta:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class SpeechFailed:
    """The voice or the speaker failed; the reply continues as text. At most one per turn."""

    error: VoxError


@dataclass(frozen=True)
class TurnEnded:
    """The turn to be remembered, with its report and timings."""

    turn: Turn
    report: PassReport
    timings: Timings
    tools_stopped: StopReason | None = None  # why the model might call no more tools
    error: VoxError | None = None  # What the engine failed with after a tool had run; the turn counts as interrupted.

    @property
    def was_interrupted(self) -> bool:
        """Whether the user interrupted it."""
        return self.turn.interrupted and self.error is None


ToolEvent = ToolCalled | ToolReturned | ToolsStopped
Event = Transcript | ReplyDelta | ToolEvent | SpeechFailed | Understood | NotUnderstood | TurnEnded


def run_turn(
    engine: Engine,
    session: Session,
    utterance: Utterance,
    interrupt: threading.Event,
    speech: SpeechOutput | None = None,
    *,
    spoken: SpokenText | None = None,
    interjections: Interjections | None = None,
    tools: ToolRunner | None = None,
    understanding: Understanding | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Event, None, None]:
    """Run one turn; the last event is `TurnEnded`.

    The reply is generated on the caller's thread while events are consumed, and spoken on another thread. Close the
    generator to interrupt the turn. Once it is exhausted, closed or has raised, both have stopped.

    Args:
        interrupt: a new event for each turn; set it to stop generation and speech. It is never cleared, so that an
            old turn can't resume.
        speech: None for a reply that is not spoken.
        spoken: records where the pieces of the reply lie in the speaker's playback; another thread may ask it which
            were played.
        interjections: says sentences between the pieces of the reply for as long as the turn lasts.
        tools: runs the tools that the model calls; None if it has none.
        understanding: asks the engine what it understood, while the complete reply is played. What is not known by
            then does not delay the turn's end: the caller may go on with `advance`, until another turn begins.
            `TurnEnded` comes without it; its owner adds it by `with_understood`.
        clock: monotonic seconds.

    Raises:
        VoxError: raised by the engine before any tool ran; the turn did not take place. Later, `TurnEnded` holds the
            error, because what a tool has done has to be remembered.
    """
    stopwatch, understanding = Stopwatch(clock), understanding or Understanding()
    log.debug("turn begins: %s", utterance.placeholder or "typed text")
    spoken, interjections = spoken or SpokenText(), interjections or Interjections()
    speaking = Speaking(speech, interrupt, stopwatch, spoken, interjections) if speech else None
    generation = _Generation(stopwatch)
    failure: VoxError | None = None
    try:
        session = replace(session, tools=tools.specs if tools else ())
        reply = engine.reply(session, utterance, interrupt)
        with speaking or nullcontext(), closing(generation.items(reply, tools, interrupt)) as items:
            yield from _events(items, speaking)
            interrupted = interrupt.is_set()  # read once, because it may be set at any moment
            understanding.begin(engine, utterance, generation.report.transcript or "")
            yield from _understood_meanwhile(understanding, interrupt, speaking)
        if speaking:
            interrupted = speaking.was_interrupted
            yield from map(SpeechFailed, speaking.failures())
    except BaseException as error:
        interrupt.set()
        understanding.close()
        if not (isinstance(error, VoxError) and generation.has_run_tools):
            raise
        failure, interrupted = error, True
    text = speaking.spoken_text() if speaking and interrupted and not speaking.failed else generation.text
    yield replace(generation.end(utterance, text, interrupted=interrupted), error=failure)


def _events(items: Generator[Item, None, None], speaking: Speaking | None) -> Generator[Event, None, None]:
    """Yield the events of a reply while it is generated, and have its text spoken."""
    for item in items:
        if speaking and isinstance(item, ToolCalled):
            speaking.flush()
        yield ReplyDelta(item) if isinstance(item, str) else item
        if speaking and isinstance(item, str):
            speaking.add(item)
            yield from map(SpeechFailed, speaking.failures())


def _understood_meanwhile(
    understanding: Understanding, interrupt: threading.Event, speaking: Speaking | None
) -> Generator[Event, None, None]:
    """Ask what was understood for as long as the complete reply is spoken."""
    if speaking:
        speaking.end_text()
        seconds = 0.0
        while not interrupt.is_set() and speaking.goes_on(seconds):
            seconds = 0.0 if understanding.advance() else SIGNAL_SECONDS
            yield from understanding.news()
    if interrupt.is_set():
        understanding.cancel()
    yield from understanding.news()


def with_understood(ended: TurnEnded, understanding: Understanding) -> TurnEnded:
    """Return the end of a turn, as `run_turn` gave it, with what was understood and generated for that so far."""
    generations = ended.report.additional_generations + understanding.generations
    report = replace(
        ended.report,
        understood=understanding.text,
        not_understood=understanding.reason,
        additional_generations=generations,
    )
    turn = replace(ended.turn, understood=understanding.text if understanding.mode == "remember" else "")
    return replace(ended, turn=turn, report=report)


class _Generation:
    """Holds the text of a reply while it is generated, results of tools and, at the end, the engine's report."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self.text = ""
        self.tool_results: list[ToolResult] = []
        self.tools_stopped: StopReason | None = None
        self.report = PassReport(0, 0, 0, 0)

    @property
    def has_run_tools(self) -> bool:
        """Whether a tool may have had an effect."""
        return any(result.has_run for result in self.tool_results)

    def items(self, reply: Reply, tools: ToolRunner | None, interrupt: threading.Event) -> Generator[Item, None, None]:
        """Yield what a reply yields, with its tools run."""
        with closing(self._reported(reply, tools, interrupt)) as items:
            for item in items:
                if isinstance(item, ToolReturned):
                    self.tool_results.append(item.result)
                elif isinstance(item, ToolsStopped):
                    self.tools_stopped = item.reason
                elif not isinstance(item, Transcript | ToolCalled):
                    self._stopwatch.note("token")
                    self.text += item
                yield item

    def end(self, utterance: Utterance, reply: str, *, interrupted: bool) -> TurnEnded:
        """Return the end of the turn; `reply` is the part of the text that is remembered."""
        turn = utterance.answered(reply.strip(), interrupted=interrupted, tools=tuple(self.tool_results))
        report, timings = self.report, self._stopwatch.timings()
        counts = timings.total_seconds, report.prompt_tokens, report.cached_tokens, report.reply_tokens
        log.info("turn over after %.3f s: prompt %d tokens, %d of them cached, reply %d tokens", *counts)
        return TurnEnded(turn, report, timings, self.tools_stopped)

    def _reported(
        self, reply: Reply, tools: ToolRunner | None, interrupt: threading.Event
    ) -> Generator[Item, None, None]:
        with_tools = cast(ReplyWithTools, reply)  # One that calls no tools is sent None alone.
        items: Generator[Item, None, PassReport] = answer_calls(with_tools, tools, interrupt)
        self.report = yield from items
