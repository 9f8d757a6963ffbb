"""Doubles and questions that the tests of a turn share."""

import faulthandler
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import pytest

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Engine, PassReport, Speaker, SpeechOutput, Synthesizer, Utterance
from voxcli.core.session import Session
from voxcli.core.spoken_text import SpokenText
from voxcli.core.testing import FakeSynthesizer
from voxcli.core.turn import Event, ReplyDelta, SpeechFailed, TurnEnded, run_turn
from voxcli.errors import VoxError

REPLY = ["It rains", " today. Take", " a coat. Good", "bye."]
PIECES = ["It rains today. ", "Take a coat. ", "Goodbye."]
TEXT = "".join(REPLY)

QUESTION = Utterance(AudioClip(np.full(SAMPLE_RATE, 0.1, np.float32)))


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """End the run with every thread's stack where a turn waits for ever, and let no thread of a turn live on."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert not running()


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "speech"]


def turn_events(
    engine: Engine,
    synthesizer: Synthesizer | None = None,
    speaker: Speaker | None = None,
    interrupt: threading.Event | None = None,
    spoken: SpokenText | None = None,
) -> Generator[Event, None, None]:
    speech = SpeechOutput(synthesizer or FakeSynthesizer(), speaker) if speaker else None
    return run_turn(engine, Session(), QUESTION, interrupt or threading.Event(), speech, spoken=spoken)


def ended(events: list[Event]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    assert sum(isinstance(event, TurnEnded) for event in events) == 1
    return events[-1]


def written(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReplyDelta))


def failures(events: list[Event]) -> list[VoxError]:
    return [event.error for event in events if isinstance(event, SpeechFailed)]


def deltas_of(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@dataclass
class WatchedEngine(Engine):
    """Yields deltas, does something before each, and remembers that it was closed."""

    deltas: list[str]
    before_delta: Callable[[int], object] = lambda _: None
    name: str = "watched"
    model: str = "watched"
    closed: bool = False

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        count = 0
        try:
            for delta in self.deltas:
                self.before_delta(count)
                if interrupt.is_set():
                    break
                count += 1
                yield delta
        finally:
            self.closed = True
        return PassReport(1, 10, 0, count)

    def close(self) -> None:
        pass


@dataclass
class LoudSpeaker:
    """A speaker that does something as a clip is played, and is heard only as somebody waits for it."""

    on_play: Callable[[threading.Event], object] = lambda _: None
    on_wait: Callable[[threading.Event], object] = lambda _: None
    queued: float = 0.0
    position: float = 0.0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        self.on_play(interrupt)
        if not interrupt.is_set():
            self.queued += clip.seconds
        return self.queued

    def wait(self, position: float, interrupt: threading.Event) -> None:
        self.on_wait(interrupt)
        if not interrupt.is_set():
            self.position = max(self.position, position)

    def close(self) -> None:
        pass


@dataclass
class ScriptedSynthesizer:
    """A voice that does something before it speaks, then gives a clip for each word."""

    on_sentence: Callable[[str], object] = lambda _: None
    said: list[str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        pass

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        self.said.append(sentence)
        self.on_sentence(sentence)
        for word in sentence.split():
            yield AudioClip(np.full(len(word) * SAMPLE_RATE // 10, 0.1, np.float32))

    def close(self) -> None:
        pass


def raising(error: BaseException) -> Callable[[object], NoReturn]:
    def do(_: object) -> NoReturn:
        raise error

    return do
