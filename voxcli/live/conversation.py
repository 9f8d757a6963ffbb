"""The live conversation: what was heard, typed or pressed goes in, events for views come out.

One loop takes one thing after another from one inbox; nothing here has a clock of its own, waits for a
device or draws. The listener says what the user does, an attempt says how its answer comes along; this
module decides which attempt is a draft, a turn or nothing, and remembers.

    listening --SpeechStarted--> hearing --SpeechPaused--> a draft begins
                                    ^                          | SpeechResumed: dropped, the utterance is open again
                                    |                          v
    barge-in: the turn is stopped   |   <-- speaking <-- thinking <--SpeechEnded: the draft is released
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal, Protocol

from voxcli.errors import VoxError
from voxcli.live.attempt import Answering, Attempt, AttemptEvent, AttemptOver, FirstAudio
from voxcli.live.events import (
    BargeIn,
    DraftUse,
    EndpointEvent,
    InputLevel,
    Latency,
    LiveEvent,
    Notice,
    Resumed,
    SessionEnded,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    State,
    StateChanged,
    TurnFailed,
    TurnTaken,
)
from voxcli.live.keys import Key
from voxcli.memory import Memory
from voxcli.turn import Event, TurnEnded, Utterance

SIGNAL_SECONDS = 0.1  # how long Ctrl-C may wait on Windows, where no signal ends a wait
SECOND_INTERRUPT_SECONDS = 2.0  # two Ctrl-C within this time end the conversation


@dataclass(frozen=True)
class Heard:
    """What the end-pointer found, and when the user was last heard, in monotonic seconds."""

    event: EndpointEvent
    last_voiced_at: float


@dataclass(frozen=True)
class Interrupt:
    """Ctrl-C."""


Inbound = Heard | Interrupt | Key | Notice | Resumed | InputLevel | AttemptEvent | FirstAudio | AttemptOver


class Ears(Protocol):
    """What the conversation asks of the listener."""

    @property
    def overruns(self) -> int: ...

    def commit(self) -> bool:
        """Settle the last utterance: it can't be opened again; False if it has been already."""
        ...

    def mute(self, muted: bool) -> None: ...

    def talk(self, talking: bool) -> None:
        """Push-to-talk: an utterance begins or ends now."""
        ...


@dataclass(frozen=True)
class ConversationOptions:
    """How the conversation goes."""

    drafts: bool = True
    push_to_talk: Literal["off", "hold", "toggle"] = "off"
    max_turns: int | None = None


class Conversation:
    """Runs one live conversation until it is ended."""

    def __init__(
        self,
        memory: Memory,
        answering: Answering,
        ears: Ears,
        inbox: SimpleQueue[Inbound],
        show: Callable[[LiveEvent], None],
        options: ConversationOptions,
        read_line: Callable[[], str],
    ) -> None:
        """Wire the parts together; their owners close them.

        Args:
            answering: runs attempts and puts their events into `inbox`.
            ears: the listener, which puts what it hears into `inbox`.
            show: draws an event; called on the thread that runs the conversation.
            read_line: lets the user type a line; empty if nothing was typed.
        """
        self._memory = memory
        self._answering = answering
        self._ears = ears
        self._inbox = inbox
        self._show = show
        self._options = options
        self._read_line = read_line
        self.interrupted = False  # ended by Ctrl-C
        self._attempt: Attempt | None = None  # the newest, a draft or a turn
        self._running: Attempt | None = None  # the one that was begun last and is not over
        self._state: State = "starting"
        self._ended = False
        self._muted = False
        self._talking = False
        self._ctrl_c_at = -math.inf
        self._latencies: list[Latency] = []
        self._dropped_drafts = 0
        self._dropped_of_turn = 0

    def run(self) -> None:
        """Take what comes until the end; what was heard of a last reply is remembered."""
        self._enter("listening")
        while not self._ended:
            self._take_next()
        self._ears.mute(True)
        if self._attempt:
            (self._attempt.stop if self._attempt.state == "turn" else self._attempt.drop)()
        while self._running:
            self._take_next()
        self._show(
            SessionEnded(
                len(self._latencies),
                tuple(self._latencies),
                self._ears.overruns,
                self._dropped_drafts,
                self._memory.session.name,
                self._memory.place,
            )
        )

    def _take_next(self) -> None:
        try:
            inbound = self._inbox.get(timeout=SIGNAL_SECONDS)
        except Empty:
            return
        match inbound:
            case Heard():
                self._hear(inbound.event, inbound.last_voiced_at)
            case AttemptEvent():
                self._follow(inbound.attempt, inbound.event)
            case FirstAudio():
                self._enter("speaking")
            case AttemptOver():
                self._over(inbound.attempt, inbound.error)
            case Interrupt():
                self._ctrl_c()
            case Key():
                self._press(inbound)
            case _:
                self._show(inbound)

    # What the user says.

    def _hear(self, event: EndpointEvent, last_voiced_at: float) -> None:
        self._show(event)
        match event:
            case SpeechStarted():  # of a new utterance: what is left of the last turn makes way
                self._stop_turn()
                self._enter("hearing")
            case SpeechPaused() if self._options.drafts:
                self._begin(Attempt(Utterance(event.clip), last_voiced_at))
            case SpeechResumed():
                self._drop()
                self._enter("hearing")
            case SpeechEnded():
                self._answer(event, last_voiced_at)
            case SpeechTooLong():
                self._show(Notice(f"{event.seconds:.0f} s without a pause; the utterance will be cut soon"))

    def _answer(self, event: SpeechEnded, last_voiced_at: float) -> None:
        """Release the draft of this utterance, or begin its turn now."""
        attempt = self._attempt
        if attempt and attempt.state == "draft":
            attempt.was_draft = True
        else:
            attempt = self._begin(Attempt(Utterance(event.clip), last_voiced_at))
        self._release(attempt, last_voiced_at)

    def _release(self, attempt: Attempt, last_voiced_at: float) -> None:
        attempt.ended_at = time.monotonic()
        attempt.last_voiced_at = last_voiced_at
        self._enter("thinking")
        for event in attempt.release():
            self._follow(attempt, event)

    def _begin(self, attempt: Attempt) -> Attempt:
        self._stop_turn()
        self._drop()
        self._attempt = attempt
        self._start()
        return attempt

    def _start(self) -> None:
        """Start the newest attempt, once the one before is over and remembered."""
        if self._running is None and self._attempt and self._attempt.state != "dropped":
            self._running = self._attempt
            self._answering.begin(self._attempt, self._memory.session)

    def _drop(self) -> None:
        """Forget the newest attempt: a draft, or a turn of which nothing was heard, whose utterance goes on."""
        if self._attempt:
            self._attempt.drop()
            self._dropped_drafts += 1
            self._dropped_of_turn += 1
        self._attempt = None

    def _stop_turn(self) -> None:
        if self._attempt and self._attempt.state == "turn":
            self._attempt.stop()
            self._attempt = None

    # How its answer comes along.

    def _follow(self, attempt: Attempt, event: Event) -> None:
        if attempt.state == "draft":
            attempt.held.append(event)
        elif attempt.state == "dropped":
            return
        elif isinstance(event, TurnEnded):
            self._end_turn(attempt, event)
        else:
            self._show(event)

    def _end_turn(self, attempt: Attempt, ended: TurnEnded) -> None:
        if attempt.interrupt.is_set():
            self._show(BargeIn(ended.turn.reply))
        if attempt.repeats:
            self._leave(attempt)
            return
        self._ears.commit()
        try:
            self._memory.remember(ended, self._answering.engine)
        except VoxError as error:
            self._show(TurnFailed(error))
        latency = self._latency(attempt)
        self._latencies.append(latency)
        self._dropped_of_turn = 0
        self._show(TurnTaken(ended, self._memory.turn_number, latency, attempt.utterance.clip))
        self._leave(attempt)
        if self._options.max_turns and len(self._latencies) >= self._options.max_turns:
            self._ended = True

    def _latency(self, attempt: Attempt) -> Latency:
        def since_voice(moment: float | None) -> float | None:
            return None if moment is None else 1000 * (moment - attempt.last_voiced_at)

        draft: DraftUse = "used" if attempt.was_draft else "dropped" if self._dropped_of_turn else "none"
        return Latency(
            since_voice(attempt.ended_at),
            since_voice(attempt.first_token_at),
            since_voice(attempt.first_audio_at),
            draft,
            self._dropped_of_turn,
        )

    def _over(self, attempt: Attempt, error: VoxError | None) -> None:
        self._running = None
        if error and attempt.state == "turn":
            self._show(TurnFailed(error))
        if error or attempt.state == "turn":  # a draft that is ready waits to be released
            self._leave(attempt)
        self._start()

    def _leave(self, attempt: Attempt) -> None:
        if attempt is self._attempt:
            self._attempt = None
            self._enter("listening")

    # What the user presses.

    def _press(self, key: Key) -> None:
        match key:
            case Key(" ") if self._options.push_to_talk == "hold":
                self._talk(key.kind != "release")
            case Key(_, "repeat" | "release"):
                pass
            case Key(" ") if self._options.push_to_talk == "toggle":
                self._talk(not self._talking)
            case Key(" "):
                self._mute(not self._muted)
            case Key("q"):
                self._ended = True
            case Key("i"):
                self._stop_turn()
            case Key("t"):
                self._type()
            case Key("r"):
                self._repeat()

    def _ctrl_c(self) -> None:
        now = time.monotonic()
        self._ended = self.interrupted = now - self._ctrl_c_at < SECOND_INTERRUPT_SECONDS
        self._ctrl_c_at = now
        if not self._ended:
            self._stop_turn()
            self._show(Notice("Ctrl-C again ends the conversation"))

    def _mute(self, muted: bool) -> None:
        self._muted = muted
        self._ears.mute(muted)
        self._enter("muted" if muted else "listening")

    def _talk(self, talking: bool) -> None:
        if talking == self._talking:
            return  # a key that is held repeats
        self._talking = talking
        if talking:
            self._stop_turn()
        self._ears.talk(talking)

    def _type(self) -> None:
        self._ears.mute(True)
        if line := self._read_line():
            self._ask(Attempt(Utterance(None, line), time.monotonic()))
        self._ears.mute(self._muted)

    def _repeat(self) -> None:
        if self._memory.session.turns and (reply := self._memory.session.turns[-1].reply):
            self._ask(Attempt(Utterance(None, "(repeat)"), time.monotonic(), repeats=reply))

    def _ask(self, attempt: Attempt) -> None:
        self._release(self._begin(attempt), time.monotonic())

    def _enter(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._show(StateChanged(state))
