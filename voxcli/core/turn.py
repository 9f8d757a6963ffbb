"""One turn: an utterance goes in, events come out.

The protocols here are the seams of the program. An engine knows nothing of voices, devices or
screens; a synthesizer knows nothing of models; `run_turn` joins them and knows no implementation of
either. `chat`, `once` and `batch` all drive `run_turn`, and only `voxcli.app.views` renders its events.

                    deltas                pieces                  clips
    engine.reply() --------> PieceCutter -------> synthesize() --------> speaker.play()
    caller's thread                       speech thread                  device or file

`voxcli.core.testing` has a double of each protocol.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from queue import Full, Queue
from typing import Protocol, Self

from voxcli.audio.clip import AudioClip
from voxcli.core.sentences import PieceCutter, speakable
from voxcli.core.session import Session, Turn, audio_placeholder
from voxcli.core.spoken_text import SpokenText
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

SIGNAL_SECONDS = 0.1  # how long Ctrl-C may wait on Windows, where no signal ends a wait
PIECES_AHEAD = 4  # pieces of text that generation may be ahead of the voice: the back-pressure


@dataclass(frozen=True)
class Utterance:
    """What the user said: speech at `audio.SAMPLE_RATE`, text typed beside it, or text alone."""

    clip: AudioClip | None
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.clip is None and not self.prompt:
            raise ValueError("an utterance needs a clip or a prompt")

    @property
    def placeholder(self) -> str:
        """What stands for the clip in memory; empty where there is none."""
        return audio_placeholder(len(self.clip.samples), self.clip.sample_rate) if self.clip else ""

    def answered(self, reply: str, *, interrupted: bool = False) -> Turn:
        """Return the finished turn, as it is remembered."""
        if self.clip is None:
            return Turn(self.prompt, reply, interrupted)
        return Turn(self.placeholder, reply, interrupted, self.prompt)


@dataclass(frozen=True)
class PassReport:
    """What an engine did for one reply."""

    model_passes: int  # the greater of audio-encoder calls and generations; the promise is one
    prompt_tokens: int  # of the whole prompt, cached ones included
    cached_tokens: int  # of these, how many were in the KV cache already
    reply_tokens: int
    transcript: str | None = None  # what was said, where the engine learns it anyway


class Engine(Protocol):
    """Turns (session, utterance) into a reply."""

    name: str
    model: str

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas, each valid text; return the report.

        Ends early, within one token, once `interrupt` is set.
        """
        ...

    def prefill_history(self, session: Session) -> None:
        """Read ahead what the next prompt will begin with; called after a turn, while nobody waits.

        Never called while a reply is under way, and neither is `encode_partial`. An engine that keeps nothing
        between turns does nothing.
        """
        del session  # so that this is no abstract method

    def encode_partial(self, clip: AudioClip) -> None:
        """Begin on a long utterance that goes on; `clip` is all of it so far, and how the next will begin.

        An engine that takes an utterance as a whole does nothing.
        """
        del clip

    def close(self) -> None: ...


class Synthesizer(Protocol):
    """Turns text into clips, in one voice. It makes itself ready in the background once it is opened."""

    def wait_until_ready(self) -> None:
        """Return when a first sentence takes no longer than others; raises what keeps the voice from speaking."""
        ...

    def synthesize(self, sentence: str) -> Iterator[AudioClip]: ...

    def close(self) -> None: ...


class Speaker(Protocol):
    """Where clips are heard: a loudspeaker or a file."""

    @property
    def position(self) -> float:
        """Seconds of sound that have been heard since it was opened."""
        ...

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        """Queue a clip, blocking while the queue is full; silent within one block of `interrupt`.

        Returns the position at which the clip will have been heard; once `interrupt` is set, that
        means nothing.
        """
        ...

    def wait(self, position: float, interrupt: threading.Event) -> None:
        """Block until `position` is reached or `interrupt` is set."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SpeechOutput:
    """A voice and where it is heard; whoever opened the two closes them."""

    synthesizer: Synthesizer
    speaker: Speaker


@dataclass(frozen=True)
class ReplyDelta:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class SpeechFailed:
    """The voice or the speaker gave up; the reply goes on as text. At most once a turn."""

    error: VoxError


@dataclass(frozen=True)
class Timings:
    """Seconds since the utterance was handed over."""

    first_token_seconds: float | None
    first_audio_seconds: float | None  # first clip handed to the speaker
    total_seconds: float


@dataclass(frozen=True)
class TurnEnded:
    """The turn as it is to be remembered, and what it took."""

    turn: Turn
    report: PassReport
    timings: Timings


Event = ReplyDelta | SpeechFailed | TurnEnded


def run_turn(
    engine: Engine,
    session: Session,
    utterance: Utterance,
    interrupt: threading.Event,
    speech: SpeechOutput | None = None,
    *,
    spoken: SpokenText | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Event, None, None]:
    """Run one turn; the last event is `TurnEnded`.

    The reply is generated on the caller's thread, as the events are taken, and spoken on a thread of its own.
    Close the generator to stop early; that interrupts the turn. Once it is exhausted, closed or has raised,
    nothing of the turn is running.

    Args:
        interrupt: a fresh event for this turn; set it to stop generation and speech. It is never cleared, so
            an old turn can't revive.
        speech: None for a reply that is only read.
        spoken: records where the pieces of the reply lie in what the speaker plays; another thread may ask it
            meanwhile which of them were played.
        clock: monotonic seconds.

    Raises:
        VoxError: raised by the engine; the turn did not take place.
    """
    stopwatch = _Stopwatch(clock)
    log.debug("turn begins: %s", utterance.placeholder or "typed text")
    speaking = _Speaking(speech, interrupt, stopwatch, spoken or SpokenText()) if speech else None
    try:
        generation = _Generation(engine.reply(session, utterance, interrupt), stopwatch)
        with speaking or nullcontext(), closing(generation.deltas()) as deltas:
            for delta in deltas:
                yield ReplyDelta(delta)
                if speaking:
                    speaking.add(delta)
                    yield from speaking.failures()
        if speaking:
            yield from speaking.failures()
    except BaseException:
        interrupt.set()
        raise
    interrupted = interrupt.is_set()  # read once: it may be set at any moment
    reply = speaking.spoken_text() if speaking and interrupted and not speaking.failed else generation.text
    turn = utterance.answered(reply.strip(), interrupted=interrupted)
    report, timings = generation.report, stopwatch.timings()
    log.info(
        "turn over after %.3f s: prompt %d tokens, %d of them cached, reply %d tokens%s",
        timings.total_seconds,
        report.prompt_tokens,
        report.cached_tokens,
        report.reply_tokens,
        ", interrupted" if interrupted else "",
    )
    yield TurnEnded(turn, report, timings)


class _Stopwatch:
    """Notes when things first happened in a turn."""

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
    """A reply that is being generated: its text so far and, at the end, the engine's report."""

    def __init__(self, reply: Generator[str, None, PassReport], stopwatch: _Stopwatch) -> None:
        self._reply = reply
        self._stopwatch = stopwatch
        self.text = ""
        self.report = PassReport(0, 0, 0, 0)

    def deltas(self) -> Generator[str, None, None]:
        with closing(self._reported()) as deltas:
            for delta in deltas:
                self._stopwatch.note("token")
                self.text += delta
                yield delta

    def _reported(self) -> Generator[str, None, None]:
        self.report = yield from self._reply


class _Speaking(threading.Thread):
    """Speaks a reply while it is being generated; the thread lives as long as its context."""

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
        self._closed = False  # the last piece was taken
        self._error: BaseException | None = None  # that ended the speech
        self._is_reported = False
        self.failed = False  # the voice or the speaker gave up

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Speak what is left and return when it was played; after an error, fall silent."""
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
        """Take the next delta; blocks while the voice is too far behind."""
        for piece in self._cutter.feed(delta):
            self._put(piece)

    def failures(self) -> Iterator[SpeechFailed]:
        """Report once that the voice or the speaker gave up; raises what else ended the speech."""
        if self._error is None or self._is_reported:
            return
        self._is_reported = True
        if not isinstance(self._error, VoxError):
            raise self._error
        yield SpeechFailed(self._error)

    def spoken_text(self) -> str:
        """Return what was played of a reply that was interrupted."""
        return self._spoken.text(self._output.speaker.position)

    def run(self) -> None:
        try:
            for piece in self._next_pieces():
                self._say(piece)
            if (end := self._spoken.end) is not None:
                self._output.speaker.wait(end, self._interrupt)
        except VoxError as error:
            if not self._interrupt.is_set():  # otherwise nobody waits for the rest
                self.failed = True
                self._spoken.stop(self._output.speaker.position)
                self._error = error
                log.info("speech failed: %s", error.code)
        except BaseException as error:  # noqa: BLE001 - raised again by failures(), on the caller's thread
            self._error = error
        finally:
            for _ in self._next_pieces():  # or add() would block for ever
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

    def _say(self, piece: str) -> None:
        end = self._spoken.begin(piece, self._output.speaker.position)
        sentence = speakable(piece)
        for clip in self._output.synthesizer.synthesize(sentence) if sentence else ():
            if self._interrupt.is_set():
                return
            self._stopwatch.note("audio")
            end = self._play(clip, end)
        self._spoken.finish(end)
        log.debug("sentence synthesized: it ends at %.2f s of the speaker", end)

    def _play(self, clip: AudioClip, start: float) -> float:
        """Queue a clip; return the position at which it ends, or would have ended."""
        end = self._output.speaker.play(clip, self._interrupt)
        return start + clip.seconds if self._interrupt.is_set() else end
