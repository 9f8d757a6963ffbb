"""The live conversation: speech events and keys come in, events for views go out.

One loop handles the messages of one inbox and, while it is empty, checks how far the loudspeaker has played. It
never waits for a device and draws nothing. The listener reports what the user does, the responder reports how a
response proceeds; what the user says decides whether a response stays speculative, becomes a turn or is dropped.

    listening --SpeechStarted--> hearing --SpeechPaused--> a speculative reply starts
                                    ^                          | SpeechResumed: it is dropped, the utterance goes on
                                    |                          v
    barge-in: the turn is stopped   |   <-- speaking <-- thinking <--SpeechEnded: it is released and becomes a turn
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from voxcli.chat.commands import Commands
from voxcli.chat.control import Control
from voxcli.chat.events import (
    EndpointEvent,
    LiveEvent,
    Notice,
    PushToTalk,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    State,
    StateChanged,
)
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.tools import UserTools
from voxcli.chat.messages import (
    Announcement,
    Inbound,
    InboxMarker,
    Interrupt,
    ListenerControl,
    SleepChanged,
    SpeechEvent,
    ThreadCrashed,
)
from voxcli.chat.responses.approval import ApprovalRequest, SpokenAnswer, ToolAnnounced
from voxcli.chat.responses.response import FirstAudio, Responder, Response, ResponseEvent, ResponseOver, WorkAheadFailed
from voxcli.chat.responses.turns import Turns
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.errors import VoxError


@dataclass(frozen=True)
class ConversationOptions:
    """Options of a live conversation."""

    speculative_replies: bool = True
    push_to_talk: PushToTalk = "off"
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
        self._responder = responder
        self._listener = listener
        self._inbox = inbox
        self._show = show
        self._options = options
        self._turns = Turns(memory, responder, listener, show, self._show_state)
        self._commands = Commands(self._turns, listener, self._discard_utterance, show, tools, options.push_to_talk)
        self._shown = StateChanged("starting")
        self._asleep = options.asleep
        self._utterance_is_open = False
        self._speech_start = 0  # first sample of the last utterance, as the listener counts
        self._last_voiced_at = 0.0  # monotonic seconds; of the last utterance
        self._announcements: deque[str] = deque()  # They are spoken once nobody speaks.
        self._discard_until: InboxMarker | None = None  # speech events that come before it are out of date

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the conversation."""
        return self._commands.interrupted

    def run(self) -> None:
        """Handle messages until the end; remember the last turn as far as it was played.

        Raises:
            Exception: a defect in any of the conversation's threads. All responses are stopped first.
        """
        try:
            self._show_state()
            while not (self._commands.has_ended or self._has_all_turns()):
                self._handle(self._next_inbound())
                self._announce_next()
                self._show_state()
            self._finish()
        finally:
            self._turns.stop_all()
        self._show(
            self._turns.history.summary(
                overruns=self._listener.overruns,
                underruns=self._listener.underruns,
                additional_generations=self._responder.additional_generations,
            )
        )

    def _has_all_turns(self) -> bool:
        return bool(self._options.max_turns) and self._turns.history.turns >= (self._options.max_turns or 0)

    def _next_inbound(self) -> Inbound:
        while True:
            with suppress(Empty):
                return self._inbox.get_nowait()
            self._turns.show_played()  # The inbox is empty: the text of all that was played was shown.
            with suppress(Empty):
                return self._inbox.get(timeout=self._turns.wait_seconds)

    def _handle(self, inbound: Inbound) -> None:
        match inbound:
            case SpeechEvent():
                if self._discard_until is None:
                    self._on_endpoint_event(inbound.event, inbound.last_voiced_at)
            case InboxMarker():
                if inbound is self._discard_until:
                    self._discard_until = None
            case ResponseEvent(response, event):
                self._turns.on_event(response, event)
            case ResponseOver(response, error):
                self._turns.on_over(response, error)
            case ToolAnnounced() | ApprovalRequest() | SpokenAnswer() | Announcement():
                self._on_tool_message(inbound)
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

    def _on_tool_message(self, message: ToolAnnounced | ApprovalRequest | SpokenAnswer | Announcement) -> None:
        match message:
            case ToolAnnounced():
                self._turns.on_announced(message)
            case ApprovalRequest():
                self._turns.tools.on_request(message)
            case Announcement(text):
                self._show(Notice(text))
                self._announcements.append(text)
            case SpokenAnswer():
                if not self._turns.tools.on_spoken_answer(message):
                    self._turns.answer(Response(Utterance(message.clip), self._last_voiced_at))

    def _announce_next(self) -> None:
        """Speak what is to be announced, unless the user speaks or is being answered."""
        if self._announcements and not (self._utterance_is_open or self._turns.is_running):
            text = self._announcements.popleft()
            if self._responder.speech:
                self._turns.answer(Response(Utterance(None, text), time.monotonic(), repeats=True, says=text))

    def _finish(self) -> None:
        """Stop the turn and wait until it is remembered; Ctrl-C ends the wait."""
        self._discard_utterance()
        self._turns.stop()
        while self._turns.is_running:
            match self._next_inbound():
                case ResponseEvent(response, event):
                    self._turns.on_event(response, event)
                case ResponseOver(response, error):
                    self._turns.on_over(response, error)
                case Interrupt():
                    self._commands.interrupted = True
                    return
                case ThreadCrashed(error):
                    raise error

    def _show_state(self) -> None:
        state: State = "muted" if self._commands.is_muted else "asleep" if self._asleep else "listening"
        if self._utterance_is_open:
            state = "hearing"
        elif response := self._turns.present:
            state = self._state_of(response)
        tool = self._turns.tools.tool if state in ("asking", "using tool") else ""
        changed = StateChanged(state, muted=self._commands.is_muted, tool=tool)
        if changed != self._shown:
            self._shown = changed
            self._show(changed)

    def _state_of(self, response: Response) -> State:
        if self._turns.tools.is_asking:
            return "asking"
        if self._turns.tools.tool:
            return "using tool"
        return "speaking" if response.is_speaking else "thinking"

    def _on_endpoint_event(self, event: EndpointEvent, last_voiced_at: float) -> None:
        self._show(event)
        tools = self._turns.tools
        match event:
            case SpeechStarted():
                self._utterance_is_open, self._speech_start = True, event.start
                self._on_speech_started()
            case SpeechPaused() if self._options.speculative_replies and not tools.is_being_answered:
                self._turns.begin(Response(Utterance(event.clip), last_voiced_at))
            case SpeechGoesOn() if not tools.is_being_answered:
                self._responder.encode_partial(event.clip)
            case SpeechResumed():
                if tools.on_speech_resumed():
                    self._responder.hush()
                else:
                    self._turns.retract()
                self._utterance_is_open = True
            case SpeechEnded():
                self._utterance_is_open = False
                self._on_speech_ended(event, last_voiced_at)
            case SpeechTooLong():
                self._show(Notice(f"{event.seconds:.0f} s without a pause; the utterance will be cut soon"))

    def _on_speech_started(self) -> None:
        """Listen to an answer; else the last turn is over, or is stopped."""
        if self._turns.tools.on_speech_started():
            self._responder.hush()
            return
        self._turns.stop()
        self._turns.drop()
        self._turns.history.begin_utterance()

    def _on_speech_ended(self, event: SpeechEnded, last_voiced_at: float) -> None:
        """Release the utterance's speculative reply, or start its turn now; an answer is transcribed."""
        self._last_voiced_at = last_voiced_at
        if event.last_voiced == self._speech_start:  # the push-to-talk key was pressed, but nobody spoke
            self._show(Notice("no speech was detected"))
            self._turns.tools.forget_speech()
        elif not self._turns.tools.on_speech_ended(event.clip) and not self._turns.release_speculative(last_voiced_at):
            self._turns.answer(Response(Utterance(event.clip), last_voiced_at))

    def _discard_utterance(self) -> None:
        """Mute the listener; discard the open utterance, its speculative reply and speech events in the inbox."""
        self._listener.mute(True)
        self._discard_until = InboxMarker()
        self._inbox.put(self._discard_until)
        self._utterance_is_open = False
        self._turns.drop_speculative()
        self._turns.tools.forget_speech()
        self._turns.history.begin_utterance()

    def _on_command(self, command: Interrupt | Key | Control | SleepChanged) -> None:
        match command:
            case Interrupt():
                self._commands.on_ctrl_c()
            case Key():
                self._commands.on_key(command)
            case Control():
                self._on_control(command)
            case SleepChanged(asleep):
                self._asleep = asleep
                if asleep and self._utterance_is_open:  # The listener has discarded it.
                    self._utterance_is_open = False
                    self._turns.drop_speculative()
                    self._turns.tools.forget_speech()

    def _on_control(self, control: Control) -> None:
        """Run a command of another program; answer with the state after it."""
        if control.is_withdrawn:
            return
        if action := self._commands.actions.get(control.command):
            action()
        self._show_state()
        state = "ending" if self._commands.has_ended else self._shown.state
        control.answer(f"{state}, muted" if self._commands.is_muted and state != "muted" else state)
