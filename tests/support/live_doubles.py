"""Doubles of a live conversation's parts, and a conversation that runs on a thread of its own."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Self, TypeVar

import numpy as np

from voxcli.audio.clip import AudioClip
from voxcli.chat.conversation import Conversation, ConversationOptions
from voxcli.chat.events import (
    EndpointEvent,
    LiveEvent,
    Notice,
    SessionEnded,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    StateChanged,
    TurnTaken,
)
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.messages import Inbound, ListenerControl, SpeechEvent
from voxcli.chat.response import FirstAudio, NotPrepared, Responder, ResponseEvent, ResponseOver
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSynthesizer
from voxcli.core.turn import Engine, PassReport, Speaker, SpeechOutput, Utterance

PATIENCE_SECONDS = 30  # until a test that waits for what never comes fails

HOLD = Notice("hold")

E = TypeVar("E")


class Journal:
    """What was shown, for others to wait for."""

    def __init__(self) -> None:
        self.events: list[LiveEvent] = []
        self._news = threading.Condition()

    def show(self, event: LiveEvent) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self) -> list[str]:
        return [event.state for event in self.of(StateChanged)]

    def wait(self, done: Callable[[], bool]) -> None:
        with self._news:
            if not self._news.wait_for(done, PATIENCE_SECONDS):
                raise AssertionError(f"it never came; shown was {self.events}")

    def wait_for(self, kind: type[E], count: int = 1) -> E:
        """Wait until so many of a kind were shown; return the last of them."""
        self.wait(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


@dataclass
class FakeEars:
    """ListenerControl that note what they are told."""

    is_open: bool = False  # the user speaks on
    overruns: int = 0
    underruns: int = 0
    commits: int = 0
    told: list[tuple[str, bool]] = field(default_factory=list)

    def commit(self) -> bool:
        self.commits += 1
        return not self.is_open

    def mute(self, muted: bool) -> None:
        self.told.append(("mute", muted))

    def talk(self, talking: bool) -> None:
        self.told.append(("talk", talking))


@dataclass
class HeldSpeaker:
    """A speaker whose `position` the test moves; who waits, waits for the interrupt or for `finish`."""

    position: float = 0.0
    queued: float = 0.0
    finish: threading.Event = field(default_factory=threading.Event)
    clips: int = 0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        if not interrupt.is_set():
            self.clips += 1
            self.queued += clip.seconds
        return self.queued

    def wait(self, position: float, interrupt: threading.Event) -> None:
        while not interrupt.wait(0.001):
            if self.finish.is_set():
                self.position = max(self.position, position)
                return

    def close(self) -> None:
        pass


def clip_of(samples: int, value: float = 0.1) -> AudioClip:
    return AudioClip(np.full(samples, value, np.float32))


class Talk:
    """A running conversation: put things into it, wait for what it shows."""

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker | None = None,
        *,
        ears: ListenerControl | None = None,
        inbox: SimpleQueue[Inbound] | None = None,
        memory: Memory | None = None,
        options: ConversationOptions | None = None,
        read_line: Callable[[], str] = str,
        show: Callable[[LiveEvent], None] = lambda _: None,
    ) -> None:
        self.inbox = inbox or SimpleQueue()
        self.journal = Journal()
        self.fake_ears = FakeEars()
        self.ears = ears or self.fake_ears
        self.memory = memory or Memory(Session())
        self.error: BaseException | None = None
        self.answering = Responder(
            engine,
            SpeechOutput(FakeSynthesizer(), speaker) if speaker else None,
            self.ears.commit,
            self._post,
        )

        def shown(event: LiveEvent) -> None:
            if event is HOLD:
                assert self._held.acquire(timeout=PATIENCE_SECONDS)
            show(event)
            self.journal.show(event)

        self.conversation = Conversation(
            self.memory,
            self.answering,
            self.ears,
            self.inbox,
            shown,
            options or ConversationOptions(),
            read_line,
        )
        self._thread = threading.Thread(target=self._run, name="conversation", daemon=True)
        self._held = threading.Semaphore(0)
        self.attempts_over = 0
        self._barriers = 0
        self._position = 0
        self.silent_seconds = 0.6  # since the last voiced sample, whenever something is heard

    def _post(self, inbound: ResponseEvent | FirstAudio | ResponseOver | NotPrepared) -> None:
        self.inbox.put(inbound)
        self.attempts_over += isinstance(inbound, ResponseOver)

    def _run(self) -> None:
        try:
            self.conversation.run()
        except BaseException as error:  # noqa: BLE001 - raised by join()
            self.error = error

    def __enter__(self) -> Self:
        self.answering.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it as `q` does, if it has not ended yet; nothing of it runs on."""
        self.put(Key("q"))
        self.join()

    def press(self, *chars: str) -> None:
        self.put(*(Key(char) for char in chars))

    def put(self, *inbound: Inbound) -> None:
        for each in inbound:
            self.inbox.put(each)

    def catch_up(self) -> None:
        """Wait until all that was put so far has been taken."""
        self._barriers += 1
        barrier = Notice(f"barrier {self._barriers}")
        self.put(barrier)
        self.journal.wait(lambda: barrier in self.journal.events)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is put within the context is all there before the conversation takes the first of it."""
        self.put(HOLD)
        yield
        self._held.release()

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for what is not shown."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert time.monotonic() < deadline
            self.catch_up()

    @property
    def taken(self) -> list[TurnTaken]:
        return self.journal.of(TurnTaken)

    @property
    def notices(self) -> list[str]:
        """What was noticed; not what the test put in for itself."""
        return [each.text for each in self.journal.of(Notice) if not each.text.startswith(("barrier", "hold"))]

    @property
    def remembered(self) -> list[tuple[str, bool]]:
        return [(turn.reply, turn.interrupted) for turn in self.memory.session.turns]

    def join(self) -> None:
        """Wait until the conversation has ended; raise what it raised."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.answering.finish()
        error, self.error = self.error, None
        if error:
            raise error

    @property
    def ended(self) -> SessionEnded:
        last = self.journal.events[-1]
        assert isinstance(last, SessionEnded)
        return last

    # What the listener would say.

    def started(self) -> None:
        self._position += 1000
        self._hear(SpeechStarted(self._position))

    def paused(self, samples: int = 8000) -> None:
        self._hear(SpeechPaused(clip_of(samples), self._position + samples))

    def resumed(self) -> None:
        self._hear(SpeechResumed(self._position))

    def finished(self, samples: int = 16000) -> None:
        at = self._position + samples
        self._hear(SpeechEnded(clip_of(samples), at, at + 9600))

    def said(self, samples: int = 16000) -> None:
        """A whole utterance without a pause that was told."""
        self.started()
        self.finished(samples)

    def _hear(self, event: EndpointEvent) -> None:
        self.put(SpeechEvent(event, time.monotonic() - self.silent_seconds))


@dataclass
class StuckEngine(Engine):
    """An engine that stops before each delta until it is let go on; notes how many replies run at once."""

    replies: list[list[str]]
    name: str = "stuck"
    model: str = ""
    asked: list[tuple[Session, Utterance]] = field(default_factory=list)
    go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    active: int = 0
    most_active: int = 0

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        self.asked.append((session, utterance))
        self.begun.release()
        try:
            for delta in self.replies.pop(0):
                assert self.go_on.acquire(timeout=PATIENCE_SECONDS)
                if interrupt.is_set():
                    break
                yield delta
        finally:
            self.active -= 1
        return PassReport(1, 10, 0, 1)

    def wait_until_asked(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        pass


@dataclass
class UnsettledEngine(FakeEngine):
    """An engine that can't read ahead."""

    failure: Exception = field(default_factory=Exception)

    def prefill_history(self, session: Session) -> None:
        raise self.failure


def heard_samples(engine: FakeEngine | StuckEngine) -> list[int]:
    """Return how long the utterances were that the engine was asked about."""
    return [len(utterance.clip.samples) for _, utterance in engine.asked if utterance.clip]
