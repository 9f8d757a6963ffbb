"""The responses of a live conversation: each stays speculative, becomes a turn, is dropped or is stopped.

Responses run one after another, so each of them sees the turns before it. Nothing here knows about keys or devices.
"""

import logging
import time
from collections.abc import Callable

from voxcli.chat.events import BargeIn, LiveEvent, Notice, SentenceSpoken, TurnFailed, TurnStarted
from voxcli.chat.messages import ListenerControl
from voxcli.chat.responses.approval import ToolAnnounced
from voxcli.chat.responses.history import History
from voxcli.chat.responses.response import Responder, Response
from voxcli.chat.responses.response_queue import ResponseQueue
from voxcli.chat.responses.tool_progress import ToolProgress
from voxcli.core.memory import Memory
from voxcli.core.tools import ToolReturned
from voxcli.core.turn import Event, TurnEnded
from voxcli.core.understanding import NotUnderstood, Understood
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # the longest wait for a message, because on Windows no signal ends a wait
POLL_SECONDS, LEAST_SECONDS = 0.05, 0.01  # the longest and shortest wait while a response runs


class Turns:
    """Begins, releases, drops and stops responses, and remembers turns."""

    def __init__(
        self,
        memory: Memory,
        responder: Responder,
        listener: ListenerControl,
        show: Callable[[LiveEvent], None],
        show_state: Callable[[], None],
    ) -> None:
        """Connect the parts; their owners close them.

        Args:
            responder: runs responses; what it posts is passed to `on_event`, `on_over` and `on_first_audio`.
            show: renders an event.
            show_state: shows that the conversation is in another state, if it is.
        """
        self.history = History(memory, responder.engine, show)
        self._responder = responder
        self._listener = listener
        self._show = show
        self._show_state = show_state
        self.tools = ToolProgress(responder, show, listener.commit)
        self._responses = ResponseQueue(self._submit)
        self._memory = memory

    @property
    def present(self) -> Response | None:
        """The newest response, if it is a turn."""
        return self._responses.turn

    @property
    def is_running(self) -> bool:
        """Whether a response is still running, which may have been stopped or dropped."""
        return self._responses.running is not None

    def begin(self, response: Response) -> Response:
        """Put a speculative reply in place of the present response."""
        self.stop()
        self.drop()
        response.expect_understanding(self.history.understood_mode)
        log.debug("reply begun")
        self._responses.add(response)
        return response

    def _submit(self, response: Response) -> None:
        self._responder.submit(response, self._memory.session)

    def release(self, response: Response, last_voiced_at: float) -> None:
        """Make a response a turn."""
        response.endpoint_at = time.monotonic()
        response.last_voiced_at = last_voiced_at
        self.history.begin_turn(response)
        events = response.release()
        log.debug("reply released: %s", "it was speculative" if response.was_speculative else "its turn begins now")
        self._show_state()  # Its events may hold the whole reply, and come next.
        if not response.repeats:
            self._show(TurnStarted(response.utterance))
        for event in events:
            self.on_event(response, event)

    def release_speculative(self, last_voiced_at: float) -> bool:
        """Make the speculative reply a turn; return False if there is none."""
        response = self._responses.speculative
        if response is None:
            return False
        response.was_speculative = True
        self.release(response, last_voiced_at)
        return True

    def answer(self, response: Response) -> None:
        """Begin a turn at once."""
        self.begin(response)
        self.release(response, response.last_voiced_at)

    def answer_again(self) -> None:
        """Answer the last utterance again; its turn, if there is one, is undone."""
        if (last := self.history.last) is None:
            return
        if last.is_remembered or last is self._responses.unfinished_turn():
            self.undo()
        self.answer(Response(last.utterance, time.monotonic(), is_asked_again=True))

    def retract(self) -> None:
        """Drop the newest response, because its utterance continues; if it is a turn already, take it back."""
        turn = self._responses.turn
        if turn and turn.has_announced_tools:  # What it has done can't be taken back: the speech is a barge-in.
            self.stop()
            self.history.begin_utterance()
            return
        self.drop()
        if turn:
            self.history.retract(turn, self._responder.spoken_text(turn))

    def drop(self) -> None:
        """Drop the newest response: a speculative reply, or a turn whose utterance continues."""
        if response := self._responses.newest:
            log.debug("reply dropped")
            response.drop()
            self.history.add_dropped(response)
            self._responses.newest = None

    def drop_speculative(self) -> None:
        """Drop the newest response if it is a speculative reply."""
        if self._responses.speculative:
            self.drop()

    def stop(self) -> None:
        """Interrupt the turn, which will be remembered; further speech is a new utterance.

        Of a turn that is over, what was understood is not asked any further.
        """
        self._cancel_understanding()
        if response := self._responses.turn:
            log.debug("turn interrupted")
            response.stop()
            self._responses.newest = None
            self._listener.commit()

    def stop_all(self) -> None:
        """Interrupt every response."""
        self._responses.stop_all()

    def ask_understood(self) -> None:
        """Show what was understood in the last turn; ask the engine if that is not known."""
        last = self.history.last
        unfinished = self._responses.unfinished_turn()
        if last is None or not (last.is_remembered or last is unfinished):
            self._show(Notice("there is no turn whose words could be shown"))
        elif last.utterance.clip is None:
            self._show(Notice("the last turn was typed"))
        elif last.understood:
            self._show(Understood(last.understood, last.number))
        elif last is unfinished and not last.interrupt.is_set():
            last.understanding.ask()
        elif not (last is self._responses.running and last.understanding.is_asked):
            self._responder.understand(last)

    def undo(self) -> None:
        """Remove the last turn from memory and from the next prompt; interrupt it if it is still being answered."""
        if unfinished := self._responses.unfinished_turn():
            self.stop()
            unfinished.is_undone = True
        else:
            self._undo_remembered()

    def _cancel_understanding(self) -> None:
        if (last := self.history.last) and last.state == "over":
            last.understanding.cancel()

    def _undo_remembered(self) -> None:
        self._cancel_understanding()
        self.drop_speculative()  # Its prompt holds the turn; the end of the utterance starts another.
        if self.history.undo():
            self._responder.prefill_history(self.history.session)

    # What the responder posts.

    def on_event(self, response: Response, event: Event) -> None:
        """Handle an event of a response."""
        if response.state == "speculative":
            response.held_events.append(event)
        elif response.state == "dropped":
            return
        elif isinstance(event, TurnEnded):
            self._end_turn(response, event)
        elif isinstance(event, NotUnderstood):
            self._show(Notice(f"what you said is not known: {event.reason}"))
        elif isinstance(event, Understood) and response.state == "over":
            self.history.fill_in(response, event)
            if not self.is_running:  # Later prompts may show it.
                self._responder.prefill_history(self.history.session)
        else:
            if isinstance(event, ToolReturned):
                self.tools.on_returned()
            self._show(event)

    def on_announced(self, announced: ToolAnnounced) -> None:
        """Let a call of the running response run, unless the response was stopped or dropped."""
        self.tools.on_announced(announced, self._responses.running)

    def on_over(self, response: Response, error: BaseException | None) -> None:
        """Start the next response, because nothing of this one runs any more.

        Raises:
            BaseException: the defect that ended the response.
        """
        self._responses.finish_running()
        self.tools.on_returned()
        if isinstance(error, VoxError):
            self._on_failed(response, error)
        elif error:
            raise error
        elif response.state == "over":
            self._responder.prefill_history(self.history.session)
        self._responses.start_next()

    @property
    def wait_seconds(self) -> float:
        """How long nothing can happen here without a message: until the next sentence was played, for one."""
        if (running := self._responses.running) is None:
            return IDLE_SECONDS
        return min(max(self._responder.seconds_to_next_played(running), LEAST_SECONDS), POLL_SECONDS)

    def show_played(self) -> None:
        """Show the sentences of the running turn that were played since the last call; do what its tools need."""
        self.tools.tick(self._responses.running)
        if response := self._responses.running:
            self._show_played_of(response)

    def _show_played_of(self, response: Response) -> None:
        if response.state == "turn":
            for sentence in self._responder.newly_played(response):
                self._show(SentenceSpoken(sentence))

    def _end_turn(self, response: Response, ended: TurnEnded) -> None:
        self._show_played_of(response)
        if ended.was_interrupted:
            self._show(BargeIn(ended.turn.reply))
        if not response.repeats:
            self.history.remember(response, ended)
        if ended.error:
            self._listener.commit()  # further speech is a new utterance
        response.state = "over"
        self._responses.clear(response)
        if response.is_undone:
            self._undo_remembered()

    def _on_failed(self, response: Response, error: VoxError) -> None:
        if response.state == "turn":
            self._listener.commit()  # further speech is a new utterance
            self._show(TurnFailed(error, None if response.repeats else response.utterance))
            self._responses.clear(response)
        elif response is self._responses.newest:  # speculative: the end of the utterance starts another response
            self.drop()
