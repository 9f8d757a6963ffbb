"""The live conversation: speech events and keys come in, events for views go out.

One loop handles the messages of one inbox and, while it is empty, checks how far the loudspeaker has played. It
never waits for a device and draws nothing. The listener reports what the user does, the responder reports how a
response proceeds; this module decides whether a response stays speculative, becomes a turn or is dropped, and
remembers turns. Responses run one after another, so each of them sees the turns before it.

    listening --SpeechStarted--> hearing --SpeechPaused--> a speculative reply starts
                                    ^                          | SpeechResumed: it is dropped, the utterance goes on
                                    |                          v
    barge-in: the turn is stopped   |   <-- speaking <-- thinking <--SpeechEnded: it is released and becomes a turn
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from voxcli.chat.control import Command, Control
from voxcli.chat.events import (
    BargeIn,
    EndpointEvent,
    KeysAsked,
    LiveEvent,
    Notice,
    SentenceSpoken,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    State,
    StateChanged,
    TurnFailed,
    TurnStarted,
)
from voxcli.chat.history import History
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.tools import UserTools
from voxcli.chat.messages import (
    Inbound,
    InboxMarker,
    Interrupt,
    ListenerControl,
    SleepChanged,
    SpeechEvent,
    ThreadCrashed,
)
from voxcli.chat.response import FirstAudio, Responder, Response, ResponseEvent, ResponseOver, WorkAheadFailed
from voxcli.chat.response_queue import ResponseQueue
from voxcli.core.memory import Memory
from voxcli.core.turn import Event, TurnEnded, Utterance
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

# How often to check what was played. Also how long Ctrl-C may take on Windows, where no signal ends a wait.
POLL_SECONDS = 0.05
SECOND_INTERRUPT_SECONDS = 2.0  # a second Ctrl-C within this time ends the conversation


@dataclass(frozen=True)
class ConversationOptions:
    """Options of a live conversation."""

    speculative_replies: bool = True
    push_to_talk: Literal["off", "hold", "toggle"] = "off"
    max_turns: int | None = None
    asleep: bool = False  # whether the conversation begins asleep


class Conversation:
    """Runs one live conversation until it ends."""

    def __init__(
        self,
        memory: Memory,
        responder: Responder,
        listener: ListenerControl,
        inbox: SimpleQueue[Inbound],
        show: Callable[[LiveEvent], None],
        options: ConversationOptions,
        tools: UserTools,
    ) -> None:
        """Connect the parts; their owners close them.

        Args:
            responder: runs responses and posts their events to `inbox`.
            listener: posts speech events to `inbox`.
            show: renders an event; called on the thread that runs the conversation.
            tools: let the user type, edit and copy text.
        """
        self._history = History(memory, responder.engine, show)
        self._responder = responder
        self._listener = listener
        self._inbox = inbox
        self._show = show
        self._options = options
        self._actions: dict[str, Callable[[], None]] = {
            "i": self._stop_turn,
            "t": lambda: self._answer_line(tools.read_line),
            "e": lambda: self._answer_line(tools.edit_line),
            "r": lambda: self._answer_line(lambda: "(repeat)", repeats=True),
            "u": self._undo,
            "c": lambda: self._history.copy_reply(tools.copy),
            "?": lambda: show(KeysAsked()),
        }
        self._commands: dict[Command, Callable[[], None]] = {
            "mute": lambda: self._set_muted(True),
            "unmute": lambda: self._set_muted(False),
            "toggle-mute": lambda: self._set_muted(not self._muted),
            "talk": self._talk,
            "send": self._send,
            "interrupt": self._stop_turn,
            "undo": self._undo,
            "quit": self._end,
        }
        self.interrupted = False  # ended by Ctrl-C
        self._responses = ResponseQueue(lambda response: responder.submit(response, memory.session))
        self._shown = StateChanged("starting")
        self._ended = False
        self._muted = False
        self._asleep = options.asleep
        self._key_pressed = False  # push-to-talk
        self._utterance_is_open = False
        self._speech_start = 0  # first sample of the last utterance, as the listener counts
        self._discard_until: InboxMarker | None = None  # speech events that come before it are out of date
        self._interrupted_at = -math.inf  # monotonic seconds of the last Ctrl-C

    def run(self) -> None:
        """Handle messages until the end; remember the last turn as far as it was played.

        Raises:
            Exception: a defect in any of the conversation's threads. All responses are stopped first.
        """
        try:
            self._show_state()
            while not self._ended:
                self._handle(self._next_inbound())
                self._show_state()
            self._finish()
        finally:
            self._responses.stop_all()
        self._show(self._history.summary(overruns=self._listener.overruns, underruns=self._listener.underruns))

    def _next_inbound(self) -> Inbound:
        while True:
            with suppress(Empty):
                return self._inbox.get_nowait()
            if running := self._responses.running:  # the inbox is empty: the text of all that was played was shown
                self._show_played(running)
            with suppress(Empty):
                return self._inbox.get(timeout=POLL_SECONDS)

    def _handle(self, inbound: Inbound) -> None:
        match inbound:
            case SpeechEvent():
                if self._discard_until is None:
                    self._on_endpoint_event(inbound.event, inbound.last_voiced_at)
            case InboxMarker():
                if inbound is self._discard_until:
                    self._discard_until = None
            case ResponseEvent(response, event):
                self._on_response_event(response, event)
            case ResponseOver(response, error):
                self._on_response_over(response, error)
            case FirstAudio():
                inbound.response.is_speaking = True
            case Interrupt() | Key() | Control() | SleepChanged():
                self._on_command(inbound)
            case WorkAheadFailed(VoxError() as error):
                self._show(Notice(error.message))
            case ThreadCrashed(error) | WorkAheadFailed(error):
                raise error
            case _:
                self._show(inbound)

    def _finish(self) -> None:
        """Stop the turn and wait until it is remembered; Ctrl-C ends the wait."""
        self._discard_utterance()
        self._stop_turn()
        while self._responses.running:
            match self._next_inbound():
                case ResponseEvent(response, event):
                    self._on_response_event(response, event)
                case ResponseOver(response, error):
                    self._on_response_over(response, error)
                case Interrupt():
                    self.interrupted = True
                    return
                case ThreadCrashed(error):
                    raise error

    def _show_state(self) -> None:
        state: State = "muted" if self._muted else "asleep" if self._asleep else "listening"
        if self._utterance_is_open:
            state = "hearing"
        elif response := self._responses.turn:
            state = "speaking" if response.is_speaking else "thinking"
        changed = StateChanged(state, muted=self._muted)
        if changed != self._shown:
            self._shown = changed
            self._show(changed)

    # Speech events.

    def _on_endpoint_event(self, event: EndpointEvent, last_voiced_at: float) -> None:
        self._show(event)
        match event:
            case SpeechStarted():  # a new utterance: the last turn is over, or is stopped
                self._stop_turn()
                self._drop_response()
                self._utterance_is_open, self._speech_start = True, event.start
                self._history.begin_utterance()
            case SpeechPaused() if self._options.speculative_replies:
                self._enqueue(Response(Utterance(event.clip), last_voiced_at))
            case SpeechGoesOn():
                self._responder.encode_partial(event.clip)
            case SpeechResumed():
                self._drop_response()
                self._utterance_is_open = True
            case SpeechEnded():
                self._utterance_is_open = False
                self._on_speech_ended(event, last_voiced_at)
            case SpeechTooLong():
                self._show(Notice(f"{event.seconds:.0f} s without a pause; the utterance will be cut soon"))

    def _on_speech_ended(self, event: SpeechEnded, last_voiced_at: float) -> None:
        """Release the utterance's speculative reply, or start its turn now."""
        if event.last_voiced == self._speech_start:  # the push-to-talk key was pressed, but nobody spoke
            self._show(Notice("no speech was detected"))
            return
        if response := self._responses.speculative:
            response.was_speculative = True
        else:
            response = self._enqueue(Response(Utterance(event.clip), last_voiced_at))
        self._release(response, last_voiced_at)

    def _release(self, response: Response, last_voiced_at: float) -> None:
        response.endpoint_at = time.monotonic()
        response.last_voiced_at = last_voiced_at
        self._history.begin_turn(response)
        events = response.release()
        log.debug("reply released: %s", "it was speculative" if response.was_speculative else "its turn begins now")
        self._show_state()  # Its events may hold the whole reply, and come next.
        if not response.repeats:
            self._show(TurnStarted(response.utterance))
        for event in events:
            self._on_response_event(response, event)

    def _enqueue(self, response: Response) -> Response:
        """Put a response in place of the present one."""
        self._stop_turn()
        self._drop_response()
        log.debug("reply begun")
        self._responses.add(response)
        return response

    def _drop_response(self) -> None:
        """Drop the newest response: a speculative reply, or an unplayed turn whose utterance continues."""
        if response := self._responses.newest:
            log.debug("reply dropped")
            response.drop()
            self._history.add_dropped(response)
            self._responses.newest = None

    def _stop_turn(self) -> None:
        """Interrupt the turn, which will be remembered; further speech is a new utterance."""
        if response := self._responses.turn:
            log.debug("turn interrupted")
            response.stop()
            self._responses.newest = None
            self._listener.commit()

    def _discard_utterance(self) -> None:
        """Mute the listener; discard the open utterance, its speculative reply and speech events in the inbox."""
        self._listener.mute(True)
        self._discard_until = InboxMarker()
        self._inbox.put(self._discard_until)
        self._utterance_is_open = self._key_pressed = False
        if self._responses.speculative:
            self._drop_response()
        self._history.begin_utterance()

    # Events of responses.

    def _on_response_event(self, response: Response, event: Event) -> None:
        if response.state == "speculative":
            response.held_events.append(event)
        elif response.state == "dropped":
            return
        elif isinstance(event, TurnEnded):
            self._show_played(response)
            self._end_turn(response, event)
        else:
            self._show(event)

    def _show_played(self, response: Response) -> None:
        """Show the sentences of a turn that were played since the last call."""
        if response.state == "turn":
            for sentence in self._responder.newly_played(response):
                self._show(SentenceSpoken(sentence))

    def _end_turn(self, response: Response, ended: TurnEnded) -> None:
        if ended.turn.interrupted:
            self._show(BargeIn(ended.turn.reply))
        if not response.repeats:
            self._history.remember(response, ended)
        response.state = "over"
        self._responses.clear(response)
        if response.is_undone:
            self._undo_remembered()
        if self._options.max_turns and self._history.turns >= self._options.max_turns:
            self._ended = True

    def _on_response_over(self, response: Response, error: BaseException | None) -> None:
        self._responses.finish_running()
        if isinstance(error, VoxError):
            self._on_response_failed(response, error)
        elif error:
            raise error
        elif response.state == "over":
            self._responder.prefill_history(self._history.session)
        self._responses.start_next()

    def _on_response_failed(self, response: Response, error: VoxError) -> None:
        if response.state == "turn":
            self._listener.commit()  # further speech is a new utterance
            self._show(TurnFailed(error))
            self._responses.clear(response)
        elif response is self._responses.newest:  # speculative: the end of the utterance starts another response
            self._drop_response()

    # Keys and commands.

    def _on_command(self, command: Interrupt | Key | Control | SleepChanged) -> None:
        match command:
            case Interrupt():
                self._on_ctrl_c()
            case Key():
                self._on_key(command)
            case Control():
                self._on_control(command)
            case SleepChanged(asleep):
                self._asleep = asleep

    def _on_key(self, key: Key) -> None:
        match key:
            case Key(" ") if self._options.push_to_talk == "hold":
                self._set_push_to_talk(key.kind != "release")
            case Key(_, "repeat" | "release"):
                pass
            case Key(" ") if self._options.push_to_talk == "toggle":
                self._set_push_to_talk(not self._key_pressed)
            case Key(" "):
                self._set_muted(not self._muted)
            case Key("q"):
                self._ended = True
            case Key("r", shift=True):
                self._ask_again()
            case Key(char) if char in self._actions:
                self._actions[char]()

    def _on_control(self, control: Control) -> None:
        if action := self._commands.get(control.command):
            action()
        self._show_state()
        words = "ending" if self._ended else self._shown.state
        control.answer(f"{words}, muted" if self._muted and words != "muted" else words)

    def _talk(self) -> None:
        if self._muted:
            self._set_muted(False)
        self._set_push_to_talk(True)

    def _send(self) -> None:
        """End the open utterance, whether a key or voice has opened it."""
        self._key_pressed = False
        self._listener.push_to_talk(False)

    def _end(self) -> None:
        self._ended = True

    def _on_ctrl_c(self) -> None:
        now = time.monotonic()
        if now - self._interrupted_at < SECOND_INTERRUPT_SECONDS:
            self._ended = self.interrupted = True
            return
        self._interrupted_at = now
        self._stop_turn()
        self._show(Notice("Ctrl-C again ends the conversation"))

    def _set_muted(self, muted: bool) -> None:
        self._muted = muted
        if muted:
            self._discard_utterance()
        else:
            self._listener.mute(False)

    def _set_push_to_talk(self, pressed: bool) -> None:
        if pressed == self._key_pressed:
            return  # a key that is held down repeats
        self._key_pressed = pressed
        if pressed:
            self._stop_turn()
        self._listener.push_to_talk(pressed)

    def _answer_line(self, read_line: Callable[[], str], *, repeats: bool = False) -> None:
        """Answer a typed line, or repeat the last reply; the microphone is muted meanwhile."""
        self._discard_utterance()
        try:
            if line := read_line().strip():
                self._answer(Response(Utterance(None, line), time.monotonic(), repeats=repeats))
        except VoxError as error:
            self._show(Notice(error.message + (f" ({error.hint})" if error.hint else "")))
        self._listener.mute(self._muted)

    def _ask_again(self) -> None:
        """Ask the last utterance again; its turn, if there is one, is undone."""
        if (last := self._history.last) is None:
            self._show(Notice("there is nothing to ask again"))
            return
        if last.is_remembered or last is self._responses.unfinished_turn():
            self._undo()
        self._discard_utterance()
        self._answer(Response(last.utterance, time.monotonic(), is_asked_again=True))
        self._listener.mute(self._muted)

    def _answer(self, response: Response) -> None:
        self._enqueue(response)
        self._release(response, response.last_voiced_at)

    def _undo(self) -> None:
        """Remove the last turn from memory and from the next prompt; interrupt it if it is still being answered."""
        if unfinished := self._responses.unfinished_turn():
            self._stop_turn()
            unfinished.is_undone = True
        else:
            self._undo_remembered()

    def _undo_remembered(self) -> None:
        if self._responses.speculative:  # Its prompt holds the turn; the end of the utterance starts another.
            self._drop_response()
        if self._history.undo():
            self._responder.prefill_history(self._history.session)
