"""One try at answering an utterance: a draft until it is released, then a turn.

A draft runs the pass and synthesises its first sentence; then it waits at the gate, in front of its
first sound or, where there is none, of its end. Released, it goes on with what is ready; dropped, it was
never there. This module knows nothing of microphones and does not decide when a draft is released.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from voxcli.audio.clip import AudioClip
from voxcli.chat.events import Latency
from voxcli.core.session import Session
from voxcli.core.spoken_text import SpokenText
from voxcli.core.turn import Engine, Event, PassReport, Speaker, SpeechOutput, Timings, TurnEnded, Utterance, run_turn

log = logging.getLogger(__name__)

GATE_SECONDS = 0.02  # between two looks whether the user is done speaking


@dataclass(eq=False)
class Response:
    """An utterance that is being answered."""

    utterance: Utterance
    last_voiced_at: float  # monotonic seconds; latency counts from here
    repeats: bool = False  # say the last reply again instead of asking the engine
    state: Literal["speculative", "turn", "dropped"] = "speculative"
    was_speculative: bool = False
    dropped_speculative_replies: int = 0  # of the same utterance, before it
    interrupt: threading.Event = field(default_factory=threading.Event)
    decided: threading.Event = field(default_factory=threading.Event)  # no longer a draft
    held: list[Event] = field(default_factory=list)  # what happened while it was one
    spoken: SpokenText = field(default_factory=SpokenText)
    is_speaking: bool = False  # its first sound was told
    ended_at: float | None = None  # monotonic seconds: the end-pointer made up its mind
    began_at: float = 0.0  # the engine was asked
    first_audio_at: float | None = None  # its first clip went to the loudspeaker

    def release(self) -> list[Event]:
        """Turn the draft into a turn; return what happened so far."""
        self.state = "turn"
        self.decided.set()
        held, self.held = self.held, []
        return held

    def stop(self) -> None:
        """Interrupt it; a turn is remembered as far as it was heard."""
        self.interrupt.set()
        self.decided.set()

    def drop(self) -> None:
        """Stop it and forget it."""
        self.state = "dropped"
        self.stop()

    def latency(self, timings: Timings) -> Latency:
        """Return what its turn took, by what `run_turn` says and what was noted here."""

        def since_voice(moment: float | None) -> float | None:
            return None if moment is None else 1000 * (moment - self.last_voiced_at)

        token_seconds = timings.first_token_seconds
        return Latency(
            since_voice(self.ended_at),
            since_voice(None if token_seconds is None else self.began_at + token_seconds),
            since_voice(self.first_audio_at),
            "used" if self.was_speculative else "dropped" if self.dropped_speculative_replies else "none",
            self.dropped_speculative_replies,
        )


@dataclass(frozen=True)
class ResponseEvent:
    """An event of an attempt's turn."""

    response: Response
    event: Event


@dataclass(frozen=True)
class FirstAudio:
    """An attempt's first clip goes to the loudspeaker."""

    response: Response


@dataclass(frozen=True)
class ResponseOver:
    """Nothing of the attempt runs any more; `error` is what kept the engine from answering.

    Only a VoxError is meant for the user; anything else is a defect, to be raised where somebody sees it.
    """

    response: Response
    error: BaseException | None = None


@dataclass(frozen=True)
class NotPrepared:
    """The engine could not work ahead of the next reply, which will be slower, or fail likewise."""

    error: BaseException


Post = Callable[[ResponseEvent | FirstAudio | ResponseOver | NotPrepared], None]


class Gate:
    """Implements `voxcli.core.turn.Speaker`: lets an attempt through to the loudspeaker once it is a turn."""

    def __init__(self, speaker: Speaker, response: Response, commit: Callable[[], bool], post: Post) -> None:
        self._speaker = speaker
        self._response = response
        self._commit = commit
        self._post = post

    @property
    def position(self) -> float:
        return self._speaker.position

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Wait for the decision, then play."""
        if self._response.first_audio_at is None and may_begin(self._response, self._commit):
            self._response.first_audio_at = time.monotonic()
            log.debug("first audio goes to the loudspeaker")
            self._post(FirstAudio(self._response))
        return self._speaker.play(clip, interrupt)

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait for the decision, then for the loudspeaker."""
        self._response.decided.wait()
        self._speaker.wait(position, interrupt)

    def close(self) -> None:
        """Nothing to close: the loudspeaker is its owner's."""


def may_begin(response: Response, commit: Callable[[], bool]) -> bool:
    """Wait until the attempt is a turn and its user is done; return False if it was stopped before.

    A user who goes on has taken the utterance back, and the attempt is about to be dropped. A noise that
    looked like it is over in a moment.
    """
    response.decided.wait()
    while not response.interrupt.is_set():
        if commit():
            return True
        response.interrupt.wait(GATE_SECONDS)
    return False


class Responder(threading.Thread):
    """The thread that runs attempts one after the other: an engine answers one at a time."""

    def __init__(self, engine: Engine, speech: SpeechOutput | None, commit: Callable[[], bool], post: Post) -> None:
        """Answer with `engine`, in the voice and through the loudspeaker of `speech`.

        Args:
            commit: asked before the first sound of a reply, or its end; False while the user speaks on.
            post: takes what happens, from any thread.
        """
        super().__init__(name="answering", daemon=True)
        self.engine = engine
        self._output = speech
        self._commit = commit
        self._post = post
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def begin(self, response: Response, session: Session) -> None:
        """Queue an attempt; it starts as soon as the one before is over."""
        self._waiting.put(lambda: self._answer(response, session))

    def prefill_history(self, session: Session) -> None:
        """Let the engine read the session ahead, unless there is something to answer."""
        self._waiting.put(lambda: self._prepare(lambda: self.engine.prefill_history(session)))

    def encode_partial(self, clip: AudioClip) -> None:
        """Let the engine begin on an utterance that goes on, unless there is something to answer."""
        self._waiting.put(lambda: self._prepare(lambda: self.engine.encode_partial(clip)))

    def newly_played(self, response: Response) -> list[str]:
        """Return the pieces of a reply whose end the loudspeaker has passed since the last call."""
        return response.spoken.newly_played(self._output.speaker.position) if self._output else []

    def finish(self) -> None:
        """Return when all that was begun is over; to stop it is the caller's part."""
        self._waiting.put(None)
        self.join()

    def run(self) -> None:
        for work in iter(self._waiting.get, None):
            work()

    def _answer(self, response: Response, session: Session) -> None:
        error = None
        try:
            for event in self._events(response, session):
                self._post(ResponseEvent(response, event))
        except BaseException as failure:  # noqa: BLE001 - raised again by whoever takes it
            error = failure
        self._post(ResponseOver(response, error))

    def _prepare(self, work: Callable[[], None]) -> None:
        if not self._waiting.empty():  # it would keep somebody waiting
            return
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever takes it
            self._post(NotPrepared(error))

    def _events(self, response: Response, session: Session) -> Generator[Event, None, None]:
        if response.interrupt.is_set():  # before it could begin: no pass is spent on it
            yield unanswered(response.utterance)
            return
        engine = _Repeating() if response.repeats else self.engine
        response.began_at = time.monotonic()
        speech = self._speech(response)
        for event in run_turn(engine, session, response.utterance, response.interrupt, speech, spoken=response.spoken):
            if isinstance(event, TurnEnded) and response.first_audio_at is None:
                may_begin(response, self._commit)
            yield event

    def _speech(self, response: Response) -> SpeechOutput | None:
        if self._output is None:
            return None
        gate = Gate(self._output.speaker, response, self._commit, self._post)
        return SpeechOutput(self._output.synthesizer, gate)


def unanswered(utterance: Utterance) -> TurnEnded:
    """Return the end of a turn that was interrupted before anything was done for it."""
    report = PassReport(model_passes=0, prompt_tokens=0, cached_tokens=0, reply_tokens=0)
    return TurnEnded(utterance.answered("", interrupted=True), report, Timings(None, None, 0.0))


@dataclass
class _Repeating(Engine):
    """Implements `voxcli.core.turn.Engine` by saying the session's last reply again, as far as it was heard."""

    name: str = "repeat"
    model: str = ""

    def reply(
        self,
        session: Session,
        utterance: Utterance,  # noqa: ARG002 - the protocol's
        interrupt: threading.Event,  # noqa: ARG002
    ) -> Generator[str, None, PassReport]:
        yield next((turn.reply for turn in reversed(session.turns) if turn.reply), "")
        return PassReport(model_passes=0, prompt_tokens=0, cached_tokens=0, reply_tokens=0)

    def close(self) -> None:
        pass
