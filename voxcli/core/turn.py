"""Runs one turn: takes an utterance, yields events. Defines the protocols of engine, synthesizer and speaker.

`run_turn` is the only way a turn runs. `chat`, `once` and `batch` drive it; views render its events.

                    deltas                pieces                  clips
    engine.reply() --------> PieceCutter -------> synthesize() --------> speaker.play()
    caller's thread                       speech thread                  device or file

`voxcli.core.testing` has a double of each protocol.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from queue import Full, Queue
from typing import Protocol, Self, cast

from voxcli.audio.clip import AudioClip
from voxcli.core.sentences import PieceCutter
from voxcli.core.session import Session, Turn, audio_placeholder
from voxcli.core.speakable import speakable
from voxcli.core.spoken_text import SpokenText
from voxcli.core.tools import ToolCalled, ToolCalls, ToolResult, ToolReturned, ToolRunner, answer_calls
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

SIGNAL_SECONDS = 0.1  # longest delay of Ctrl-C on Windows, where a signal does not end a wait
PIECES_AHEAD = 4  # pieces that generation may be ahead of the voice; then it waits


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
    finish_reason: str | None = None  # why a server ended the reply: "stop", "length"...; None: not known
    additional_generations: int = 0  # those after tool results; `model_passes` counts none of them

    @property
    def cut_note(self) -> str:
        """One line that says that the reply was cut, and why; empty if it was not."""
        if self.finish_reason == "length":
            return "the reply was cut off at its longest (reply.max_tokens, or the server's own limit)"
        if self.finish_reason == "content_filter":
            return "the server's content filter cut the reply off"
        return ""


@dataclass(frozen=True)
class Transcript:
    """The words of the utterance, where an engine knows them before its reply."""

    text: str


Item = str | Transcript | ToolCalled | ToolReturned
ReplyWithTools = Generator[str | Transcript | ToolCalls, Sequence[ToolResult] | None, PassReport]
Reply = Generator[str | Transcript, None, PassReport] | ReplyWithTools


class Engine(Protocol):
    """Replies to an utterance in a session."""

    name: str
    model: str

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> Reply:
        """Yield the transcript, if the engine has one, then the reply in deltas, each valid text; return the report.

        Ends within one token once `interrupt` is set. An engine that can call the session's tools yields `ToolCalls`
        and is sent their results; sent None, it ends the reply. Iterating sends None.
        """
        ...

    def prefill_history(self, session: Session) -> None:
        """Prefill what the next prompt will begin with. Called after a turn, while nobody waits.

        Neither this nor `encode_partial` is called during a reply. An engine that keeps nothing between turns does
        nothing.
        """
        del session  # a body makes the method optional

    def encode_partial(self, clip: AudioClip) -> None:
        """Encode a part of an utterance while the user is still speaking; `clip` is the utterance so far.

        An engine that encodes only whole utterances does nothing.
        """
        del clip

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


@dataclass(frozen=True)
class ReplyDelta:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class SpeechFailed:
    """The voice or the speaker failed; the reply continues as text. At most one per turn."""

    error: VoxError


@dataclass(frozen=True)
class Timings:
    """Times in seconds since the engine was given the utterance."""

    first_token_seconds: float | None
    first_audio_seconds: float | None  # Time when the speaker got the first clip.
    total_seconds: float


@dataclass(frozen=True)
class TurnEnded:
    """The turn to be remembered, with its report and timings."""

    turn: Turn
    report: PassReport
    timings: Timings


Event = Transcript | ReplyDelta | ToolCalled | ToolReturned | SpeechFailed | TurnEnded


def run_turn(
    engine: Engine,
    session: Session,
    utterance: Utterance,
    interrupt: threading.Event,
    speech: SpeechOutput | None = None,
    *,
    spoken: SpokenText | None = None,
    tools: ToolRunner | None = None,
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
        tools: runs the tools that the model calls; None if it has none.
        clock: monotonic seconds.

    Raises:
        VoxError: raised by the engine; the turn did not take place.
    """
    stopwatch = _Stopwatch(clock)
    log.debug("turn begins: %s", utterance.placeholder or "typed text")
    speaking = _Speaking(speech, interrupt, stopwatch, spoken or SpokenText()) if speech else None
    try:
        session = replace(session, tools=tools.specs if tools else ())
        generation = _Generation(engine.reply(session, utterance, interrupt), stopwatch)
        with speaking or nullcontext(), closing(generation.items(tools, interrupt)) as items:
            for item in items:
                if isinstance(item, Transcript | ToolCalled | ToolReturned):
                    yield item
                    continue
                yield ReplyDelta(item)
                if speaking:
                    speaking.add(item)
                    yield from speaking.failures()
        if speaking:
            yield from speaking.failures()
    except BaseException:
        interrupt.set()
        raise
    interrupted = interrupt.is_set()  # read once, because it may be set at any moment
    reply = speaking.spoken_text() if speaking and interrupted and not speaking.failed else generation.text
    turn = utterance.answered(reply.strip(), interrupted=interrupted, tools=tuple(generation.tool_results))
    report, timings = generation.report, stopwatch.timings()
    counts = timings.total_seconds, report.prompt_tokens, report.cached_tokens, report.reply_tokens
    log.info("turn over after %.3f s: prompt %d tokens, %d of them cached, reply %d tokens", *counts)
    yield TurnEnded(turn, report, timings)


class _Stopwatch:
    """Records when each thing first happened in a turn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._first: dict[str, float] = {}

    def note(self, what: str) -> None:
        if what not in self._first:
            self._first[what] = self._clock() - self._started
            log.debug("first %s after %.3f s", what, self._first[what])

    def timings(self) -> Timings:
        return Timings(self._first.get("token"), self._first.get("audio"), self._clock() - self._started)


class _Generation:
    """Holds the text of a reply while it is generated, results of tools and, at the end, the engine's report."""

    def __init__(self, reply: Reply, stopwatch: _Stopwatch) -> None:
        self._reply = reply
        self._stopwatch = stopwatch
        self.text = ""
        self.tool_results: list[ToolResult] = []
        self.report = PassReport(0, 0, 0, 0)

    def items(self, tools: ToolRunner | None, interrupt: threading.Event) -> Generator[Item, None, None]:
        with closing(self._reported(tools, interrupt)) as items:
            for item in items:
                if isinstance(item, ToolReturned):
                    self.tool_results.append(item.result)
                elif not isinstance(item, Transcript | ToolCalled):
                    self._stopwatch.note("token")
                    self.text += item
                yield item

    def _reported(self, tools: ToolRunner | None, interrupt: threading.Event) -> Generator[Item, None, None]:
        reply = cast(ReplyWithTools, self._reply)  # One that calls no tools is sent None alone.
        items: Generator[Item, None, PassReport] = answer_calls(reply, tools, interrupt)
        self.report = yield from items


class _Speaking(threading.Thread):
    """Speaks a reply while it is generated. The thread runs for as long as the context lasts."""

    def __init__(
        self, output: SpeechOutput, interrupt: threading.Event, stopwatch: _Stopwatch, spoken: SpokenText
    ) -> None:
        super().__init__(name="speech", daemon=True)
        self._output = output
        self._interrupt = interrupt
        self._stopwatch = stopwatch
        self._spoken = spoken
        self._cutter = PieceCutter()
        self._pieces: Queue[str | None] = Queue(PIECES_AHEAD)
        self._closed = False  # whether the last piece was taken from the queue
        self._error: BaseException | None = None  # why speech ended
        self._is_reported = False
        self.failed = False  # whether the voice or the speaker failed

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Speak the rest and wait until it was played; after an error, stop speaking at once."""
        try:
            if error:
                self._interrupt.set()
            for piece in self._cutter.flush():
                self._put(piece)
        finally:
            self._put(None)
            while self.is_alive():
                self.join(SIGNAL_SECONDS)

    def add(self, delta: str) -> None:
        """Add a delta; block while the voice is too far behind."""
        for piece in self._cutter.feed(delta):
            self._put(piece)

    def failures(self) -> Iterator[SpeechFailed]:
        """Report once that the voice or the speaker failed; raise any other error that ended speech."""
        if self._error is None or self._is_reported:
            return
        self._is_reported = True
        if not isinstance(self._error, VoxError):
            raise self._error
        yield SpeechFailed(self._error)

    def spoken_text(self) -> str:
        """Return the spoken text of an interrupted reply."""
        return self._spoken.text(self._output.speaker.position)

    def run(self) -> None:
        try:
            for piece in self._next_pieces():
                self._speak(piece)
            if (end := self._spoken.end) is not None:
                self._output.speaker.wait(end, self._interrupt)
        except VoxError as error:
            if not self._interrupt.is_set():  # An interrupt makes the rest unwanted.
                self.failed = True
                self._spoken.stop(self._output.speaker.position)
                self._error = error
                log.info("speech failed: %s", error.code)
        except BaseException as error:  # noqa: BLE001 - raised again by failures(), on the caller's thread
            self._error = error
        finally:
            for _ in self._next_pieces():  # otherwise add() would block for ever
                pass

    def _put(self, piece: str | None) -> None:
        while True:
            with suppress(Full):
                return self._pieces.put(piece, timeout=SIGNAL_SECONDS)

    def _next_pieces(self) -> Iterator[str]:
        while not self._closed:
            piece = self._pieces.get()
            if piece is None:
                self._closed = True
            elif not self._interrupt.is_set():
                yield piece

    def _speak(self, piece: str) -> None:
        language = self._output.language_of(piece)
        end = self._spoken.begin(piece, self._output.speaker.position, language)
        sentence = speakable(piece, language)
        for clip in self._output.synthesizer.synthesize(sentence) if sentence else ():
            if self._interrupt.is_set():
                return
            self._stopwatch.note("audio")
            end = self._play(clip, end)
        self._spoken.finish(end)
        log.debug("sentence synthesized: it ends at %.2f s of the speaker", end)

    def _play(self, clip: AudioClip, start: float) -> float:
        """Queue a clip; return the position at which it ends, or would have ended without the interrupt."""
        end = self._output.speaker.play(clip, self._interrupt)
        return start + clip.seconds if self._interrupt.is_set() else end
