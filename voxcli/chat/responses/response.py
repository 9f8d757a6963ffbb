"""The response to an utterance: a speculative reply until it is released, then a turn.

A speculative reply generates its text and synthesizes its first sentence, then waits before its first sound or,
if it makes no sound, before its end. Once released, it plays at once; once dropped, it stops and nothing of it is
remembered. The conversation decides which of the two happens. A turn ends once the user can no longer continue its
utterance, so a turn that was taken back has never been remembered.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Literal, Protocol

from voxcli.audio.clip import AudioClip
from voxcli.chat.events import Latency
from voxcli.chat.responses.approval import ChatTools, GatedTools, ToolAnnounced
from voxcli.core.protocols import Engine, PassReport, Speaker, SpeechOutput, Utterance
from voxcli.core.session import Session
from voxcli.core.speaking import Interjections, Timings
from voxcli.core.spoken_text import SpokenText
from voxcli.core.turn import Event, TurnEnded, run_turn, with_understood
from voxcli.core.understanding import Understanding, UnderstoodMode

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.02  # how long to wait before asking again whether the user has finished


@dataclass(eq=False)
class Response:
    """An utterance that is being answered."""

    utterance: Utterance
    last_voiced_at: float  # monotonic seconds; latency counts from here
    repeats: bool = False  # says something that is no turn, instead of asking the engine
    says: str = ""  # what it says then; empty: the last reply again
    state: Literal["speculative", "turn", "over", "dropped"] = "speculative"
    is_asked_again: bool = False  # the utterance was asked before: no latency counts from its end
    is_remembered: bool = False  # The turn is in memory.
    is_undone: bool = False  # once remembered, it is removed from memory again
    was_speculative: bool = False
    dropped_speculative_replies: int = 0  # those dropped earlier in the same turn
    interrupt: threading.Event = field(default_factory=threading.Event)
    decided: threading.Event = field(default_factory=threading.Event)  # set once it was released, stopped or dropped
    held_events: list[Event] = field(default_factory=list)  # events that came while it was speculative
    spoken: SpokenText = field(default_factory=SpokenText)
    interjections: Interjections = field(default_factory=Interjections)
    has_announced_tools: bool = False  # A tool was run or asked for, so the turn can't be taken back.
    is_speaking: bool = False  # the conversation knows that the first clip was played
    endpoint_at: float | None = None  # monotonic seconds when the utterance was found to be over
    started_at: float = 0.0  # monotonic seconds when the engine was asked
    first_audio_at: float | None = None  # monotonic seconds when the first clip was handed to the loudspeaker
    understanding: Understanding = field(default_factory=Understanding)
    understood: str = ""  # what the engine understood, once the turn is over; a transcript, where it has one
    number: int = 0  # number of its turn in the session, once it is remembered

    def expect_understanding(self, mode: UnderstoodMode) -> None:
        """Have the engine asked what it understood, as `mode` says, once the response is a turn."""
        self.understanding = Understanding("off" if self.repeats else mode, lambda: self.state in ("turn", "over"))

    def release(self) -> list[Event]:
        """Make the speculative reply a turn; return its events so far."""
        self.state = "turn"
        self.decided.set()
        events, self.held_events = self.held_events, []
        return events

    def stop(self) -> None:
        """Interrupt the response; a turn is remembered as far as it was played."""
        self.interrupt.set()
        self.understanding.cancel()
        self.decided.set()
        self.interjections.hush()

    def drop(self) -> None:
        """Interrupt the response and remember nothing of it."""
        self.state = "dropped"
        self.stop()

    def latency(self, timings: Timings) -> Latency:
        """Return the latency of the finished turn, given the timings that `run_turn` reported."""

        def since_voice(moment: float | None) -> float | None:
            return None if moment is None else 1000 * (moment - self.last_voiced_at)

        token_seconds = timings.first_token_seconds
        return Latency(
            since_voice(self.endpoint_at),
            since_voice(None if token_seconds is None else self.started_at + token_seconds),
            since_voice(self.first_audio_at),
            "used" if self.was_speculative else "dropped" if self.dropped_speculative_replies else "none",
            self.dropped_speculative_replies,
        )


@dataclass(frozen=True)
class ResponseEvent:
    """An event of `run_turn` for a response."""

    response: Response
    event: Event


@dataclass(frozen=True)
class FirstAudio:
    """The first clip of a response goes to the loudspeaker."""

    response: Response


@dataclass(frozen=True)
class ResponseOver:
    """Nothing of the response is running any more; `error` is what made it fail.

    A VoxError is meant for the user. Any other error is a defect and must be raised again.
    """

    response: Response
    error: BaseException | None = None


@dataclass(frozen=True)
class WorkAheadFailed:
    """The engine failed to work ahead of the next reply, which will be slower or fail, too."""

    error: BaseException


Post = Callable[[ResponseEvent | FirstAudio | ResponseOver | WorkAheadFailed | ToolAnnounced], None]


class LastUtterance(Protocol):
    """The part of `voxcli.chat.messages.ListenerControl` that a response waits for."""

    def begin_reply(self) -> bool: ...

    def is_final(self) -> bool: ...


class Gate:
    """Implements `voxcli.core.protocols.Speaker`: plays a response once it is a turn and the user has finished."""

    def __init__(self, speaker: Speaker, response: Response, begin_reply: Callable[[], bool], post: Post) -> None:
        self._speaker = speaker
        self._response = response
        self._begin_reply = begin_reply
        self._post = post

    @property
    def position(self) -> float:
        return self._speaker.position

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Wait until the first clip may be played, then play."""
        if self._response.first_audio_at is None and wait_until(self._begin_reply, self._response):
            self._response.first_audio_at = time.monotonic()
            log.debug("first audio goes to the loudspeaker")
            self._post(FirstAudio(self._response))
        return self._speaker.play(clip, interrupt)

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait until the response is released or dropped, then for the loudspeaker."""
        self._response.decided.wait()
        self._speaker.wait(position, interrupt)

    def close(self) -> None:
        """Do nothing: the owner of the loudspeaker closes it."""


def wait_until(
    condition: Callable[[], bool], response: Response, meanwhile: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until the response is released and a condition holds; return False if it was stopped or dropped.

    Args:
        meanwhile: does a little work and returns whether there is more.
    """
    response.decided.wait()
    while not response.interrupt.is_set():
        if condition():
            return True
        if not meanwhile():
            response.interrupt.wait(RETRY_SECONDS)
    return False


class Responder(threading.Thread):
    """Runs responses on one thread, one after another, because an engine generates one reply at a time."""

    def __init__(
        self,
        engine: Engine,
        speech: SpeechOutput | None,
        post: Post,
        utterance: LastUtterance | None = None,
        tools: ChatTools | None = None,
    ) -> None:
        """Answer with `engine`; speak with `speech`, or only in text if it is None.

        Args:
            post: receives events; called on this thread and on the one that speaks.
            utterance: the last utterance, which the user may continue; None where the user types.
            tools: what the model may call; None if it has no tools.
        """
        super().__init__(name="responder", daemon=True)
        self.engine = engine
        self.speech = speech  # may be replaced while no response runs
        self._utterance = utterance
        self._post = post
        self.tools = tools  # may be replaced, too
        self.additional_generations = 0  # those of all responses that are over, as `PassReport` counts them
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, response: Response, session: Session) -> None:
        """Queue a response; it starts once the one before it is over."""
        self._jobs.put(lambda: self._run_response(response, session))

    def submit_announcement(self, text: str) -> None:
        """Speak a sentence that is no turn, after the responses that wait; nothing happens without a voice."""
        if self.speech:
            response = Response(Utterance(None, text), time.monotonic(), repeats=True, says=text)
            response.release()
            self.submit(response, Session())

    def understand(self, response: Response) -> None:
        """Ask the engine what it understood in a turn that is remembered, unless another job is waiting."""
        response.understanding.cancel()  # The answering thread closes it.
        response.expect_understanding("off")
        again = response.understanding
        again.ask()
        self._jobs.put(lambda: self._work_ahead(lambda: self._understand(response, again)))

    def prefill_history(self, session: Session) -> None:
        """Let the engine prefill the session, unless another job is waiting."""
        self._jobs.put(lambda: self._work_ahead(lambda: self.engine.prefill_history(self._with_tools(session))))

    def encode_partial(self, clip: AudioClip) -> None:
        """Let the engine encode an utterance that is still open, unless another job is waiting."""
        self._jobs.put(lambda: self._work_ahead(lambda: self.engine.encode_partial(clip)))

    def newly_played(self, response: Response) -> list[str]:
        """Return the sentences of a reply that were played to their end since the last call."""
        return response.spoken.newly_played(self.speech.speaker.position) if self.speech else []

    def spoken_text(self, response: Response) -> str:
        """Return the spoken text of a reply that was stopped."""
        return response.spoken.text(self.speech.speaker.position).strip() if self.speech else ""

    def seconds_to_next_played(self, response: Response) -> float:
        """Return after how many seconds the next sentence will have been played; infinite if it is not known."""
        return response.spoken.seconds_to_next(self.speech.speaker.position) if self.speech else math.inf

    @property
    def language(self) -> str | None:
        """The language of what the voice has said last; None if it is not known."""
        return self.speech.language_of("") if self.speech else None

    def hush(self) -> None:
        """Let the voice fall silent with what is no part of a reply, such as a question."""
        if self.tools:
            self.tools.approver.interjections.hush()

    def finish(self) -> None:
        """Wait until all jobs are done and end the thread; the caller stops responses beforehand."""
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        for job in iter(self._jobs.get, None):
            job()

    def _run_response(self, response: Response, session: Session) -> None:
        error = None
        try:
            for event in self._turn_events(response, session):
                self._post(ResponseEvent(response, event))
        except BaseException as failure:  # noqa: BLE001 - raised again by whoever receives it
            error = failure
        self._post(ResponseOver(response, error))

    def _understand(self, response: Response, again: Understanding) -> None:
        again.begin(self.engine, response.utterance)
        for event in self._understood(again):
            self._post(ResponseEvent(response, event))

    def _understood(self, understanding: Understanding) -> Iterator[Event]:
        """Ask what was understood until it is known or cancelled."""
        with closing(understanding):
            while understanding.advance():
                pass
            self.additional_generations += understanding.generations
            yield from understanding.news()

    def _work_ahead(self, work: Callable[[], None]) -> None:
        if not self._jobs.empty():  # a response may be waiting
            return
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever receives it
            self._post(WorkAheadFailed(error))

    def _turn_events(self, response: Response, session: Session) -> Generator[Event, None, None]:
        if response.interrupt.is_set():  # interrupted before it started: no model pass is needed
            yield unanswered(response.utterance)
            return
        engine = _RepeatEngine(says=response.says) if response.repeats else self.engine
        response.started_at = time.monotonic()
        understanding = response.understanding
        events = run_turn(
            engine,
            session,
            response.utterance,
            response.interrupt,
            self._gated_output(response),
            spoken=response.spoken,
            interjections=response.interjections,
            tools=self._gated_tools(response),
            understanding=understanding,
        )
        for event in events:
            if isinstance(event, TurnEnded):
                self._wait_for_user(response)
                yield from understanding.news()
                self.additional_generations += event.report.additional_generations
                yield with_understood(event, understanding)
            else:
                yield event
        yield from self._understood(understanding)

    def _wait_for_user(self, response: Response) -> bool:
        """Wait until the user can no longer continue the utterance; return False if it was stopped or dropped.

        The time is used to ask what was understood, if the reply is complete.
        """
        response.decided.wait()
        if self._utterance is None:
            return not response.interrupt.is_set()
        advance = response.understanding.advance
        if response.first_audio_at is None and not wait_until(self._begin_reply, response, advance):
            return False
        return wait_until(self._utterance.is_final, response, advance)

    def _gated_tools(self, response: Response) -> GatedTools | None:
        tools = self.tools
        if tools is None or response.repeats:
            return None
        tools.approver.interjections = response.interjections
        tools.approver.language = lambda: self.language
        return GatedTools(tools, self._post, lambda: self._wait_for_user(response))

    def _with_tools(self, session: Session) -> Session:
        tools = self.tools  # Read once: another thread may replace it.
        return tools.given_to(session) if tools else session

    def _begin_reply(self) -> bool:
        return self._utterance is None or self._utterance.begin_reply()

    def _gated_output(self, response: Response) -> SpeechOutput | None:
        if self.speech is None:
            return None
        gate = Gate(self.speech.speaker, response, self._begin_reply, self._post)
        return replace(self.speech, speaker=gate)


def unanswered(utterance: Utterance) -> TurnEnded:
    """Return the end of a turn that was interrupted before it started."""
    report = PassReport(model_passes=0, prompt_tokens=0, cached_tokens=0, reply_tokens=0)
    return TurnEnded(utterance.answered("", interrupted=True), report, Timings(None, None, 0.0))


@dataclass
class _RepeatEngine(Engine):
    """Implements `voxcli.core.protocols.Engine`: replies with a text, or the spoken text of the last reply."""

    name: str = "repeat"
    model: str = ""
    says: str = ""

    def reply(
        self,
        session: Session,
        utterance: Utterance,  # noqa: ARG002 - the protocol's
        interrupt: threading.Event,  # noqa: ARG002
    ) -> Generator[str, None, PassReport]:
        yield self.says or session.last_reply
        return PassReport(model_passes=0, prompt_tokens=0, cached_tokens=0, reply_tokens=0)

    def close(self) -> None:
        pass
