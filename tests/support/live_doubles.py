"""Doubles of a live conversation's parts, and a conversation that runs on its own thread."""

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
from voxcli.chat.keyboard.tools import UserTools
from voxcli.chat.messages import Inbound, ListenerControl, SpeechEvent
from voxcli.chat.responses.approval import Approver, ChatTools, ToolAnnounced, Transcribe
from voxcli.chat.responses.response import Responder, ResponseOver
from voxcli.core.memory import Memory
from voxcli.core.protocols import Engine, PassReport, Speaker, SpeechOutput, Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSynthesizer
from voxcli.core.tools import ToolRunner
from voxcli.tools.tool import Approve

PATIENCE_SECONDS = 30  # A test that waits longer fails.

HOLD = Notice("hold")

E = TypeVar("E")


class Journal:
    """Records the events that were shown, and lets tests wait for more."""

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
                raise AssertionError(f"the event did not come; these did: {self.events}")

    def wait_for(self, kind: type[E], count: int = 1) -> E:
        """Wait until `count` events of a kind were shown; return the last of them."""
        self.wait(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


@dataclass
class FakeListener:
    """Implements `ListenerControl`; records the calls."""

    is_open: bool = False  # the user continues the utterance
    may_continue: bool = False  # the user may still continue it while its reply plays
    overruns: int = 0
    underruns: int = 0
    asked: int = 0  # how often a reply asked whether it may begin
    begun: int = 0  # replies that began
    waited: int = 0  # how often a reply that is over asked whether its utterance is final
    commits: int = 0
    calls: list[tuple[str, bool]] = field(default_factory=list)

    def begin_reply(self) -> bool:
        self.asked += 1
        self.begun += not self.is_open
        return not self.is_open

    def is_final(self) -> bool:
        self.waited += 1
        return not (self.is_open or self.may_continue)

    def commit(self) -> bool:
        self.commits += 1
        return not self.is_open

    def mute(self, muted: bool) -> None:
        self.calls.append(("mute", muted))

    def push_to_talk(self, pressed: bool) -> None:
        self.calls.append(("push_to_talk", pressed))


@dataclass
class HeldSpeaker:
    """A speaker whose `position` the test sets; `wait` returns at the interrupt, or once `finish` is set."""

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


class RunningConversation:
    """A conversation on its own thread: put messages into its inbox, wait for the events that it shows."""

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker | None = None,
        *,
        listener: ListenerControl | None = None,
        inbox: SimpleQueue[Inbound] | None = None,
        memory: Memory | None = None,
        options: ConversationOptions | None = None,
        read_line: Callable[[], str] = str,
        copy: Callable[[str], str] = str,
        show: Callable[[LiveEvent], None] = lambda _: None,
        tools: Callable[[Approve], ToolRunner] | None = None,
        transcribe: Transcribe | None = None,
        has_keys: bool = True,
    ) -> None:
        self.inbox = inbox or SimpleQueue()
        self.journal = Journal()
        self.fake_listener = FakeListener()
        self.listener = listener or self.fake_listener
        self.memory = memory or Memory(Session())
        self.error: BaseException | None = None
        self.synthesizer = FakeSynthesizer()
        approver = Approver(self._post, transcribe, has_keys=has_keys)
        self.responder = Responder(
            engine,
            SpeechOutput(self.synthesizer, speaker) if speaker else None,
            self._post,
            self.listener,
            ChatTools(tools(approver), approver) if tools else None,
        )

        def shown(event: LiveEvent) -> None:
            if event is HOLD:
                assert self._held.acquire(timeout=PATIENCE_SECONDS)
            show(event)
            self.journal.show(event)

        self.conversation = Conversation(
            self.memory,
            self.responder,
            self.listener,
            self.inbox,
            shown,
            options or ConversationOptions(),
            UserTools(read_line, read_line, copy),
        )
        self._thread = threading.Thread(target=self._run, name="conversation", daemon=True)
        self._held = threading.Semaphore(0)
        self._announced = threading.Semaphore(0)
        self.responses_over = 0
        self._barriers = 0
        self._position = 0
        self.silent_seconds = 0.6  # Time from the last voiced sample to each speech event.

    def _post(self, inbound: Inbound) -> None:
        self.inbox.put(inbound)
        self.responses_over += isinstance(inbound, ResponseOver)
        if isinstance(inbound, ToolAnnounced):
            self._announced.release()

    def _run(self) -> None:
        try:
            self.conversation.run()
        except BaseException as error:  # noqa: BLE001 - raised by join()
            self.error = error

    def __enter__(self) -> Self:
        self.responder.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the conversation with `q`, if it has not ended yet, and wait for its threads."""
        self.put(Key("q"))
        self.join()

    def press(self, *chars: str) -> None:
        self.put(*(Key(char) for char in chars))

    def put(self, *inbound: Inbound) -> None:
        for each in inbound:
            self.inbox.put(each)

    def wait_for_announcement(self) -> None:
        """Wait until a call of a tool was announced, whether or not that was handled."""
        assert self._announced.acquire(timeout=PATIENCE_SECONDS)

    def catch_up(self) -> None:
        """Wait until all messages put so far were handled."""
        self._barriers += 1
        barrier = Notice(f"barrier {self._barriers}")
        self.put(barrier)
        self.journal.wait(lambda: barrier in self.journal.events)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Put all messages of the context into the inbox before the conversation handles the first of them."""
        self.put(HOLD)
        yield
        self._held.release()

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for a condition that no event announces."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert time.monotonic() < deadline
            self.catch_up()

    @property
    def taken(self) -> list[TurnTaken]:
        return self.journal.of(TurnTaken)

    @property
    def notices(self) -> list[str]:
        """The notices, without those that this class put in."""
        return [each.text for each in self.journal.of(Notice) if not each.text.startswith(("barrier", "hold"))]

    @property
    def remembered(self) -> list[tuple[str, bool]]:
        return [(turn.reply, turn.interrupted) for turn in self.memory.session.turns]

    def join(self) -> None:
        """Wait until the conversation has ended; raise its exception, if any."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.responder.finish()
        error, self.error = self.error, None
        if error:
            raise error

    @property
    def ended(self) -> SessionEnded:
        last = self.journal.events[-1]
        assert isinstance(last, SessionEnded)
        return last

    # Speech events.

    def speech_started(self) -> None:
        self._position += 1000
        self._put_speech(SpeechStarted(self._position))

    def speech_paused(self, samples: int = 8000) -> None:
        self._put_speech(SpeechPaused(clip_of(samples), self._position + samples))

    def speech_resumed(self) -> None:
        self._put_speech(SpeechResumed(self._position))

    def speech_ended(self, samples: int = 16000) -> None:
        at = self._position + samples
        self._put_speech(SpeechEnded(clip_of(samples), at, at + 9600))

    def utterance(self, samples: int = 16000) -> None:
        """Put a whole utterance without a `SpeechPaused`."""
        self.speech_started()
        self.speech_ended(samples)

    def _put_speech(self, event: EndpointEvent) -> None:
        self.put(SpeechEvent(event, time.monotonic() - self.silent_seconds))


@dataclass
class StuckEngine(Engine):
    """An engine that stops before each delta until `go_on` is released; counts the replies that run at once."""

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
class FailingPrefillEngine(FakeEngine):
    """An engine that fails to prefill the history."""

    failure: Exception = field(default_factory=Exception)

    def prefill_history(self, session: Session) -> None:
        raise self.failure


def utterance_samples(engine: FakeEngine | StuckEngine) -> list[int]:
    """Return the lengths of the utterances that the engine was asked to answer, in samples."""
    return [len(utterance.clip.samples) for _, utterance in engine.asked if utterance.clip]
