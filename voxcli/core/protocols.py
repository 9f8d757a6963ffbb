"""Defines utterances, the report of a pass, and the protocols of engine, synthesizer and speaker.

`voxcli.core.testing` has a double of each protocol.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from voxcli.audio.clip import AudioClip
from voxcli.core.session import Session, Turn, audio_placeholder
from voxcli.core.tools import ToolCalled, ToolCalls, ToolResult, ToolReturned, ToolsStopped


@dataclass(frozen=True)
class Utterance:
    """What the user said: speech at `SAMPLE_RATE`, speech with typed text, or text only."""

    clip: AudioClip | None
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.clip is None and not self.prompt:
            raise ValueError("an utterance needs a clip or a prompt")

    @property
    def placeholder(self) -> str:
        """The placeholder of the clip; empty if there is no clip."""
        return audio_placeholder(len(self.clip.samples), self.clip.sample_rate) if self.clip else ""

    def answered(self, reply: str, *, interrupted: bool = False, tools: tuple[ToolResult, ...] = ()) -> Turn:
        """Return the finished turn as it is remembered."""
        if self.clip is None:
            return Turn(self.prompt, reply, interrupted, tools=tools)
        return Turn(self.placeholder, reply, interrupted, self.prompt, tools=tools)


@dataclass(frozen=True)
class PassReport:
    """Counts of what an engine did for one reply."""

    model_passes: int  # the larger of audio-encoder calls and generations; one is the promise
    prompt_tokens: int  # the whole prompt, cached tokens included
    cached_tokens: int  # prompt tokens that were in the KV cache already
    reply_tokens: int
    transcript: str | None = None  # None: the engine has none
    # Why the reply ended: a server's "stop", "length"...; "context": no room for results of tools; None: not known.
    finish_reason: str | None = None
    additional_generations: int = 0  # Generations after tool results and for `understood`; `model_passes` counts none.
    understood: str = ""  # what the model understood of the utterance, in one line; empty where nobody asked
    not_understood: str = ""  # why that is not known although it was asked for; empty while it may still come

    @property
    def cut_note(self) -> str:
        """One line that says that the reply was cut, and why; empty if it was not."""
        if self.finish_reason == "length":
            return "the reply was cut off at its longest (reply.max_tokens, or the server's own limit)"
        if self.finish_reason == "content_filter":
            return "the server's content filter cut the reply off"
        if self.finish_reason == "context":
            return "the reply was cut off: the context has no room for more results of tools (session.context_tokens)"
        return ""


@dataclass(frozen=True)
class Transcript:
    """The words of the utterance, where an engine knows them before its reply."""

    text: str


Item = str | Transcript | ToolCalled | ToolReturned | ToolsStopped
ReplyWithTools = Generator[str | Transcript | ToolCalls, Sequence[ToolResult] | None, PassReport]
Reply = Generator[str | Transcript, None, PassReport] | ReplyWithTools


class Engine(Protocol):
    """Replies to an utterance in a session."""

    name: str
    model: str
    supports_tools: bool = False  # If false, `reply` refuses sessions with tools.

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> Reply:
        """Yield the transcript, if the engine has one, then the reply in deltas, each valid text; return the report.

        Ends within one token once `interrupt` is set. An engine that can call the session's tools yields `ToolCalls`
        and is sent their results; sent None, it ends the reply. Iterating sends None.
        """
        ...

    def prefill_history(self, session: Session) -> None:
        """Prefill what the next prompt will begin with. Called after a turn, while nobody waits.

        The session has the tools of the next turn: with others, its prompt would begin differently.
        Neither this nor `encode_partial` is called during a reply. An engine that keeps nothing between turns does
        nothing.
        """
        del session  # a body makes the method optional

    def encode_partial(self, clip: AudioClip) -> None:
        """Encode a part of an utterance while the user is still speaking; `clip` is the utterance so far.

        An engine that encodes only whole utterances does nothing.
        """
        del clip

    def understand(self, utterance: Utterance) -> Generator[str, None, None] | None:
        """Yield what the model understood of an utterance that it has just replied to, in deltas of one line.

        The audio is not encoded again. Each step takes at most one token, or the time of one where nothing comes: a
        delta is then empty. Closed at any time, it leaves the engine as the reply left it. Returns None where the
        engine can't tell; raises VoxError where it can't tell any more. Called by the thread that called `reply`.
        """
        del utterance
        return None

    def close(self) -> None: ...


class Synthesizer(Protocol):
    """Turns text into clips in one voice. It gets ready in the background once it is opened."""

    def wait_until_ready(self) -> None:
        """Wait until the first sentence takes no longer than later ones; raise the error if the voice can't speak."""
        ...

    def synthesize(self, sentence: str) -> Iterator[AudioClip]: ...

    def close(self) -> None: ...


class Speaker(Protocol):
    """Plays clips: a loudspeaker, or a file that records them."""

    @property
    def position(self) -> float:
        """Seconds of audio played since it was opened."""
        ...

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip; block while the queue is full. Falls silent within one block once `interrupt` is set.

        Returns the position at which the clip ends; meaningless once `interrupt` is set.
        """
        ...

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is reached or `interrupt` is set."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SpeechOutput:
    """A voice and the speaker that plays it; their owner closes both."""

    synthesizer: Synthesizer
    speaker: Speaker
    language_of: Callable[[str], str | None] = lambda _piece: None  # code of a piece's language; None: not known
