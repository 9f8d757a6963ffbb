"""Speaks a reply while it is generated, and times its parts."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Full, Queue
from typing import Self

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import SpeechOutput
from voxcli.core.sentences import PieceCutter
from voxcli.core.speakable import speakable
from voxcli.core.spoken_text import SpokenText
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

SIGNAL_SECONDS = 0.1  # longest delay of Ctrl-C on Windows, where a signal does not end a wait
PIECES_AHEAD = 4  # pieces that generation may be ahead of the voice; then it waits


@dataclass(frozen=True)
class Timings:
    """Times in seconds since the engine was given the utterance."""

    first_token_seconds: float | None
    first_audio_seconds: float | None  # Time when the speaker got the first clip.
    total_seconds: float


class Stopwatch:
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


@dataclass(eq=False)
class SpokenAside:
    """A sentence that is no part of the reply."""

    text: str
    interrupt: threading.Event = field(default_factory=threading.Event)


class Asides:
    """Says sentences between the pieces of a reply that are no part of it. Methods may be called on any thread."""

    def __init__(self) -> None:
        self._put: Callable[[SpokenAside, bool], bool] | None = None
        self._said: list[SpokenAside] = []

    def connect(self, put: Callable[[SpokenAside, bool], bool] | None) -> None:
        """Pass sentences to `put`, which is told whether to wait for room; None: what is said from now on is lost."""
        self._put = put

    def say(self, sentence: str, *, wait: bool = True) -> bool:
        """Say a sentence after all that the voice has been given; return False if the voice does not get it.

        Args:
            wait: wait for room where the voice is far behind; otherwise the sentence is dropped then.
        """
        aside = SpokenAside(sentence)
        self._said.append(aside)
        put = self._put
        return put is not None and put(aside, wait)

    def hush(self) -> None:
        """Fall silent with all that was said so far."""
        for aside in self._said:
            aside.interrupt.set()


class Speaking(threading.Thread):
    """Speaks a reply while it is generated. The thread runs for as long as the context lasts."""

    def __init__(
        self,
        output: SpeechOutput,
        interrupt: threading.Event,
        stopwatch: Stopwatch,
        spoken: SpokenText,
        asides: Asides,
    ) -> None:
        super().__init__(name="speech", daemon=True)
        self._output = output
        self._interrupt = interrupt
        self._stopwatch = stopwatch
        self._spoken = spoken
        self._asides = asides
        self._cutter = PieceCutter()
        self._pieces: Queue[str | SpokenAside | None] = Queue(PIECES_AHEAD)
        self._is_complete = False  # whether the last piece was put into the queue
        self._closed = False  # whether the last piece was taken from the queue
        self._error: BaseException | None = None  # why speech ended
        self._is_reported = False
        self.failed = False  # whether the voice or the speaker failed
        self.was_interrupted = False  # whether it was interrupted before its end

    def __enter__(self) -> Self:
        self.start()
        self._asides.connect(self._put_aside)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Speak the rest and wait until it was played; after an error, stop speaking at once."""
        if error:
            self._interrupt.set()
            self._asides.hush()
        self.end_text()
        while self.goes_on(SIGNAL_SECONDS):
            pass

    def add(self, delta: str) -> None:
        """Add a delta; block while the voice is too far behind."""
        for piece in self._cutter.feed(delta):
            self._put(piece)

    def flush(self) -> None:
        """Speak all that was added, because nothing follows for a while; block while the voice is too far behind."""
        for piece in self._cutter.flush():
            self._put(piece)

    def end_text(self) -> None:
        """Add what is left of the reply, which is complete now; block while the voice is too far behind."""
        if self._is_complete:
            return
        self._is_complete = True
        self._asides.connect(None)
        try:
            self.flush()
        finally:
            self._put(None)

    def goes_on(self, seconds: float) -> bool:
        """Wait for the end of the speech, at most some seconds; return whether it still goes on."""
        self.join(seconds)
        return self.is_alive()

    def failures(self) -> Iterator[VoxError]:
        """Report once why the voice or the speaker failed; raise any other error that ended speech."""
        if self._error is None or self._is_reported:
            return
        self._is_reported = True
        if not isinstance(self._error, VoxError):
            raise self._error
        yield self._error

    def spoken_text(self) -> str:
        """Return the spoken text of an interrupted reply."""
        return self._spoken.text(self._output.speaker.position)

    def run(self) -> None:
        try:
            for piece in self._next_pieces():
                if isinstance(piece, SpokenAside):
                    self._speak_aside(piece)
                else:
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
            self.was_interrupted = self._interrupt.is_set()

    def _put(self, piece: str | SpokenAside | None) -> None:
        while True:
            with suppress(Full):
                return self._pieces.put(piece, timeout=SIGNAL_SECONDS)

    def _put_aside(self, aside: SpokenAside, wait: bool) -> bool:
        while not (self._closed or self._interrupt.is_set() or aside.interrupt.is_set()):
            with suppress(Full):
                self._pieces.put(aside, timeout=SIGNAL_SECONDS if wait else 0.001)
                return True
            if not wait:
                break
        return False

    def _next_pieces(self) -> Iterator[str | SpokenAside]:
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

    def _speak_aside(self, aside: SpokenAside) -> None:
        """Speak a sentence that is no part of the reply; what follows begins once it was played or is silent."""
        end: float | None = None
        sentence = speakable(aside.text, self._output.language_of(aside.text))
        for clip in self._output.synthesizer.synthesize(sentence) if sentence else ():
            if self._interrupt.is_set() or aside.interrupt.is_set():
                return
            end = self._output.speaker.play(clip, aside.interrupt)
        if end is not None:
            self._output.speaker.wait(end, aside.interrupt)

    def _play(self, clip: AudioClip, start: float) -> float:
        """Queue a clip; return the position at which it ends, or would have ended without the interrupt."""
        end = self._output.speaker.play(clip, self._interrupt)
        return start + clip.seconds if self._interrupt.is_set() else end
