"""The live conversation: what was heard, typed or pressed goes in, events for views come out.

One loop takes one thing after another from one inbox and, while that is empty, looks how far the loudspeaker
has come; nothing here waits for a device or draws. The listener says what the user does, an attempt says how
its answer comes along; this module decides which attempt is a draft, a turn or nothing, and remembers.
Attempts run one after the other, so that each sees the turns before it. The state shown follows from what is
under way.

    listening --SpeechStarted--> hearing --SpeechPaused--> a draft begins
                                    ^                          | SpeechResumed: dropped, the utterance is open again
                                    |                          v
    barge-in: the turn is stopped   |   <-- speaking <-- thinking <--SpeechEnded: the draft is released
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from voxcli.chat.events import (
    BargeIn,
    EndpointEvent,
    Latency,
    LiveEvent,
    Notice,
    SentenceSpoken,
    SessionEnded,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    State,
    StateChanged,
    TurnFailed,
    TurnTaken,
)
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.messages import Inbound, InboxMarker, Interrupt, ListenerControl, SpeechEvent, ThreadCrashed
from voxcli.chat.response import FirstAudio, NotPrepared, Responder, Response, ResponseEvent, ResponseOver
from voxcli.core.memory import Memory
from voxcli.core.turn import Event, TurnEnded, Utterance
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

# How late a spoken sentence may be announced, and how long Ctrl-C may wait on Windows, where no signal ends a wait.
LOOK_SECONDS = 0.05
SECOND_INTERRUPT_SECONDS = 2.0  # two Ctrl-C within this time end the conversation


@dataclass(frozen=True)
class ConversationOptions:
    """How the conversation goes."""

    speculative_replies: bool = True
    push_to_talk: Literal["off", "hold", "toggle"] = "off"
    max_turns: int | None = None


class Conversation:
    """Runs one live conversation until it is ended."""

    def __init__(
        self,
        memory: Memory,
        answering: Responder,
        listener: ListenerControl,
        inbox: SimpleQueue[Inbound],
        show: Callable[[LiveEvent], None],
        options: ConversationOptions,
        read_line: Callable[[], str],
    ) -> None:
        """Wire the parts together; their owners close them.

        Args:
            answering: runs attempts and puts their events into `inbox`.
            listener: the listener, which puts what it hears into `inbox`.
            show: draws an event; called on the thread that runs the conversation.
            read_line: lets the user type a line; empty if nothing was typed.
        """
        self._memory = memory
        self._answering = answering
        self._listener = listener
        self._inbox = inbox
        self._show = show
        self._options = options
        self._read_line = read_line
        self.interrupted = False  # ended by Ctrl-C
        self._response: Response | None = None  # the newest, a draft or a turn
        self._waiting: deque[Response] = deque()  # for `_running` to be over
        self._running: Response | None = None
        self._state: State = "starting"
        self._ended = False
        self._muted = False
        self._talking = False
        self._hearing = False  # an utterance is open
        self._speech_start = 0  # of the last utterance, as the listener counts
        self._forgotten: InboxMarker | None = None  # until it comes, what was heard is out of date
        self._ctrl_c_at = -math.inf
        self._latencies: list[Latency] = []
        self._dropped_speculative_replies = 0
        self._dropped_of_turn = 0

    def run(self) -> None:
        """Take what comes until the end; what was heard of a last reply is remembered.

        Raises:
            Exception: a defect, in whichever thread; nothing of an attempt runs on.
        """
        try:
            self._show_state()
            while not self._ended:
                self._take(self._next())
                self._show_state()
            self._finish()
        finally:
            for response in (self._response, self._running, *self._waiting):
                if response:
                    response.stop()
        self._show(
            SessionEnded(
                len(self._latencies),
                tuple(self._latencies),
                self._listener.overruns,
                self._listener.underruns,
                self._dropped_speculative_replies,
                self._memory.session.name,
                self._memory.place,
            )
        )

    def _next(self) -> Inbound:
        while True:
            with suppress(Empty):
                return self._inbox.get_nowait()
            if self._running:  # with the inbox empty, the text of all that was played has been shown
                self._show_played(self._running)
            with suppress(Empty):
                return self._inbox.get(timeout=LOOK_SECONDS)

    def _take(self, inbound: Inbound) -> None:
        match inbound:
            case SpeechEvent():
                if self._forgotten is None:
                    self._hear(inbound.event, inbound.last_voiced_at)
            case InboxMarker():
                if inbound is self._forgotten:
                    self._forgotten = None
            case ResponseEvent() | ResponseOver():
                self._take_answer(inbound)
            case FirstAudio():
                inbound.response.is_speaking = True
            case Interrupt():
                self._ctrl_c()
            case Key():
                self._press(inbound)
            case NotPrepared(VoxError() as error):
                self._show(Notice(error.message))
            case ThreadCrashed(error) | NotPrepared(error):
                raise error
            case _:
                self._show(inbound)

    def _take_answer(self, inbound: ResponseEvent | ResponseOver) -> None:
        if isinstance(inbound, ResponseEvent):
            self._follow(inbound.response, inbound.event)
        else:
            self._over(inbound.response, inbound.error)

    def _finish(self) -> None:
        """End what is under way and remember it; a Ctrl-C meanwhile is reason to wait for nothing."""
        self._forget_speech()
        self._stop_turn()
        while self._running:
            match self._next():
                case ResponseEvent() | ResponseOver() as inbound:
                    self._take_answer(inbound)
                case Interrupt():
                    self.interrupted = True
                    return
                case ThreadCrashed(error):
                    raise error

    def _show_state(self) -> None:
        response = self._response if self._response and self._response.state == "turn" else None
        state: State = "muted" if self._muted else "listening"
        if self._hearing:
            state = "hearing"
        elif response:
            state = "speaking" if response.is_speaking else "thinking"
        if state != self._state:
            self._state = state
            self._show(StateChanged(state))

    # What the user says.

    def _hear(self, event: EndpointEvent, last_voiced_at: float) -> None:
        self._show(event)
        match event:
            case SpeechStarted():  # of a new utterance: what is left of the last turn makes way
                self._stop_turn()
                self._drop()
                self._hearing, self._speech_start = True, event.start
                self._dropped_of_turn = 0
            case SpeechPaused() if self._options.speculative_replies:
                self._begin(Response(Utterance(event.clip), last_voiced_at))
            case SpeechGoesOn():
                self._answering.encode_partial(event.clip)
            case SpeechResumed():
                self._drop()
                self._hearing = True
            case SpeechEnded():
                self._hearing = False
                self._answer(event, last_voiced_at)
            case SpeechTooLong():
                self._show(Notice(f"{event.seconds:.0f} s without a pause; the utterance will be cut soon"))

    def _answer(self, event: SpeechEnded, last_voiced_at: float) -> None:
        """Release the draft of this utterance, or begin its turn now."""
        if event.last_voiced == self._speech_start:  # the key of push-to-talk was pressed, and that was all
            self._show(Notice("nothing was heard"))
            return
        response = self._response
        if response and response.state == "speculative":
            response.was_speculative = True
        else:
            response = self._begin(Response(Utterance(event.clip), last_voiced_at))
        self._release(response, last_voiced_at)

    def _release(self, response: Response, last_voiced_at: float) -> None:
        response.ended_at = time.monotonic()
        response.last_voiced_at = last_voiced_at
        response.dropped_speculative_replies, self._dropped_of_turn = self._dropped_of_turn, 0
        held = response.release()
        log.debug("reply released: %s", "it was speculative" if response.was_speculative else "its turn begins now")
        self._show_state()  # before the reply that may be there already
        for event in held:
            self._follow(response, event)

    def _begin(self, response: Response) -> Response:
        self._stop_turn()
        self._drop()
        log.debug("reply begun")
        self._response = response
        self._waiting.append(response)
        self._start()
        return response

    def _start(self) -> None:
        """Start the next attempt, once the one before is over and remembered."""
        if self._waiting and self._running is None:
            self._running = self._waiting.popleft()
            self._answering.begin(self._running, self._memory.session)

    def _drop(self) -> None:
        """Forget the newest attempt: a draft, or a turn of which nothing was heard, whose utterance goes on."""
        if self._response:
            log.debug("reply dropped")
            self._response.drop()
            self._dropped_speculative_replies += 1
            self._dropped_of_turn += 1 + self._response.dropped_speculative_replies
        self._response = None

    def _stop_turn(self) -> None:
        """Interrupt the turn; it is remembered, so what is said next is another one."""
        if self._response and self._response.state == "turn":
            log.debug("turn interrupted")
            self._response.stop()
            self._response = None
            self._listener.commit()

    def _forget_speech(self) -> None:
        """Hear nothing from now on, and forget what has been said of an utterance."""
        self._listener.mute(True)
        self._forgotten = InboxMarker()
        self._inbox.put(self._forgotten)
        self._hearing = self._talking = False
        if self._response and self._response.state == "speculative":
            self._drop()
        self._dropped_of_turn = 0

    # How its answer comes along.

    def _follow(self, response: Response, event: Event) -> None:
        if response.state == "speculative":
            response.held.append(event)
        elif response.state == "dropped":
            return
        elif isinstance(event, TurnEnded):
            self._show_played(response)
            self._end_turn(response, event)
        else:
            self._show(event)

    def _show_played(self, response: Response) -> None:
        """Announce the sentences of a turn whose end the loudspeaker has passed."""
        if response.state == "turn":
            for sentence in self._answering.newly_played(response):
                self._show(SentenceSpoken(sentence))

    def _end_turn(self, response: Response, ended: TurnEnded) -> None:
        if ended.turn.interrupted:
            self._show(BargeIn(ended.turn.reply))
        if not response.repeats:
            self._remember(response, ended)
        self._leave(response)

    def _remember(self, response: Response, ended: TurnEnded) -> None:
        try:
            self._memory.remember(ended, self._answering.engine)
        except VoxError as error:
            self._show(TurnFailed(error))
        latency = response.latency(ended.timings)
        self._latencies.append(latency)
        self._show(TurnTaken(ended, self._memory.turn_number, latency, response.utterance.clip))
        if self._options.max_turns and len(self._latencies) >= self._options.max_turns:
            self._ended = True

    def _over(self, response: Response, error: BaseException | None) -> None:
        self._running = None
        if isinstance(error, VoxError):
            self._fail(response, error)
        elif error:
            raise error
        elif response.state == "turn":
            self._answering.prefill_history(self._memory.session)
        self._start()

    def _fail(self, response: Response, error: VoxError) -> None:
        if response.state == "turn":
            self._listener.commit()  # what is said next is another try
            self._show(TurnFailed(error))
            self._leave(response)
        elif response is self._response:  # a draft: the end point tries again
            self._drop()

    def _leave(self, response: Response) -> None:
        if response is self._response:
            self._response = None

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
        if now - self._ctrl_c_at < SECOND_INTERRUPT_SECONDS:
            self._ended = self.interrupted = True
            return
        self._ctrl_c_at = now
        self._stop_turn()
        self._show(Notice("Ctrl-C again ends the conversation"))

    def _mute(self, muted: bool) -> None:
        self._muted = muted
        if muted:
            self._forget_speech()
        else:
            self._listener.mute(False)
        if self._response:  # its state is shown instead
            self._show(Notice("the microphone is " + ("muted" if muted else "on again")))

    def _talk(self, talking: bool) -> None:
        if talking == self._talking:
            return  # a key that is held repeats
        self._talking = talking
        if talking:
            self._stop_turn()
        self._listener.talk(talking)

    def _type(self) -> None:
        self._forget_speech()
        if line := self._read_line().strip():
            self._ask(Response(Utterance(None, line), time.monotonic()))
        self._listener.mute(self._muted)

    def _repeat(self) -> None:
        self._forget_speech()
        self._ask(Response(Utterance(None, "(repeat)"), time.monotonic(), repeats=True))
        self._listener.mute(self._muted)

    def _ask(self, response: Response) -> None:
        self._release(self._begin(response), response.last_voiced_at)
