"""One try at answering an utterance: a draft until it is released, then a turn.

A draft runs the whole pass and synthesises its first sentence; then it waits at the gate in front of
the loudspeaker. Released, it plays what is ready; dropped, it was never there. This module knows
nothing of microphones and does not decide when a draft is released.
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from voxcli.audio import AudioClip
from voxcli.errors import VoxError
from voxcli.session import Session
from voxcli.turn import (
    Engine,
    Event,
    PassReport,
    ReplyDelta,
    Speaker,
    SpeechOutput,
    Utterance,
    run_turn,
)


@dataclass(eq=False)
class Attempt:
    """An utterance that is being answered."""

    utterance: Utterance
    last_voiced_at: float  # monotonic seconds; latency counts from here
    repeats: str = ""  # the reply to say again, instead of asking the engine
    state: Literal["draft", "turn", "dropped"] = "draft"
    was_draft: bool = False
    interrupt: threading.Event = field(default_factory=threading.Event)
    decided: threading.Event = field(default_factory=threading.Event)  # no longer a draft
    held: list[Event] = field(default_factory=list)  # what happened while it was one
    ended_at: float | None = None  # monotonic seconds: the end-pointer made up its mind
    first_token_at: float | None = None
    first_audio_at: float | None = None  # the first clip went to the loudspeaker

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


@dataclass(frozen=True)
class AttemptEvent:
    """An event of an attempt's turn."""

    attempt: Attempt
    event: Event


@dataclass(frozen=True)
class FirstAudio:
    """An attempt's first clip goes to the loudspeaker."""

    attempt: Attempt


@dataclass(frozen=True)
class AttemptOver:
    """Nothing of the attempt runs any more; `error` is what kept the engine from answering."""

    attempt: Attempt
    error: VoxError | None = None


Post = Callable[[AttemptEvent | FirstAudio | AttemptOver], None]


class Gate:
    """Implements `voxcli.turn.Speaker`: lets clips through to the loudspeaker once the attempt is a turn."""

    def __init__(self, speaker: Speaker, attempt: Attempt, commit: Callable[[], bool], post: Post) -> None:
        self._speaker = speaker
        self._attempt = attempt
        self._commit = commit
        self._post = post

    @property
    def position(self) -> float:
        return self._speaker.position

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Wait for the decision, then play."""
        self._attempt.decided.wait()
        if self._attempt.first_audio_at is None and not interrupt.is_set():
            self._pass_first()
        return self._speaker.play(clip, interrupt)

    def _pass_first(self) -> None:
        if self._commit():
            self._attempt.first_audio_at = time.monotonic()
            self._post(FirstAudio(self._attempt))
        else:  # the user speaks on, and has taken the utterance back
            self._attempt.interrupt.wait()

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Wait for the decision, then for the loudspeaker."""
        self._attempt.decided.wait()
        self._speaker.wait(position, interrupt)

    def close(self) -> None:
        """Nothing to close: the loudspeaker is its owner's."""


class Answering(threading.Thread):
    """The thread that runs attempts one after the other: an engine answers one at a time."""

    def __init__(self, engine: Engine, speech: SpeechOutput | None, commit: Callable[[], bool], post: Post) -> None:
        """Answer with `engine`, in the voice and through the loudspeaker of `speech`.

        Args:
            commit: asked before the first sound of a reply; False if the user has gone on speaking.
            post: takes what happens, from any thread.
        """
        super().__init__(name="answering", daemon=True)
        self.engine = engine
        self._output = speech
        self._commit = commit
        self._post = post
        self._waiting: SimpleQueue[tuple[Attempt, Session] | None] = SimpleQueue()

    def begin(self, attempt: Attempt, session: Session) -> None:
        """Queue an attempt; it starts as soon as the one before is over."""
        self._waiting.put((attempt, session))

    def finish(self) -> None:
        """Return when all that was begun is over; to stop it is the caller's part."""
        self._waiting.put(None)
        self.join()

    def run(self) -> None:
        for attempt, session in iter(self._waiting.get, None):
            error = None
            try:
                if attempt.state != "dropped":
                    self._answer(attempt, session)
            except VoxError as failure:
                error = failure
            self._post(AttemptOver(attempt, error))

    def _answer(self, attempt: Attempt, session: Session) -> None:
        engine = _Repeating(attempt.repeats) if attempt.repeats else self.engine
        for event in run_turn(engine, session, attempt.utterance, attempt.interrupt, self._speech(attempt)):
            if isinstance(event, ReplyDelta) and attempt.first_token_at is None:
                attempt.first_token_at = time.monotonic()
            self._post(AttemptEvent(attempt, event))

    def _speech(self, attempt: Attempt) -> SpeechOutput | None:
        if self._output is None:
            return None
        gate = Gate(self._output.speaker, attempt, self._commit, self._post)
        return SpeechOutput(self._output.synthesizer, gate)


@dataclass
class _Repeating:
    """Implements `voxcli.turn.Engine` by saying a given reply."""

    text: str
    name: str = "repeat"
    model: str = ""

    def reply(
        self,
        session: Session,  # noqa: ARG002 - the protocol's
        utterance: Utterance,  # noqa: ARG002
        interrupt: threading.Event,  # noqa: ARG002
    ) -> Generator[str, None, PassReport]:
        yield self.text
        return PassReport(model_passes=0, prompt_tokens=0, cached_tokens=0, reply_tokens=0)

    def close(self) -> None:
        pass
