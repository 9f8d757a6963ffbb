"""The typed conversation: each line is a turn, or a command that begins with a slash.

It has the memory, the responder and the events of a spoken conversation, but no listener: the next line is read once
the reply is over. Ctrl-C interrupts the reply; a second one soon after it ends the conversation.
"""

import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from queue import Empty, SimpleQueue
from types import FrameType

from voxcli.chat.events import (
    BargeIn,
    LiveEvent,
    Notice,
    SentenceSpoken,
    TurnFailed,
    TurnStarted,
)
from voxcli.chat.messages import Inbound, Interrupt
from voxcli.chat.responses.approval import ApprovalRequest, ToolAnnounced
from voxcli.chat.responses.history import History
from voxcli.chat.responses.phrases import typed_verdict
from voxcli.chat.responses.response import Responder, Response, ResponseEvent, ResponseOver, WorkAheadFailed
from voxcli.chat.responses.tool_progress import ANSWER_SECONDS, ToolProgress
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.core.tools import ToolReturned
from voxcli.core.turn import TurnEnded
from voxcli.errors import ConfigError, VoxError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between checks of what was played; also the delay of Ctrl-C on Windows
SECOND_INTERRUPT_SECONDS = 2.0  # a second Ctrl-C within this time ends the conversation
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)  # no path: "/etc/hosts" is text


@dataclass(frozen=True)
class SlashCommand:
    """A command of the typed conversation.

    run: receives the argument, which may be empty; returns what to tell the user, in lines
    """

    usage: str
    does: str
    run: Callable[[str], str]


class TypedConversation:
    """Runs one typed conversation until it ends."""

    def __init__(
        self,
        memory: Memory,
        responder: Responder,
        inbox: SimpleQueue[Inbound],
        show: Callable[[LiveEvent], None],
        read_line: Callable[[], str | None],
        commands: Mapping[str, SlashCommand],
        *,
        read_answer: Callable[[float], str | None] | None = None,
        max_turns: int | None = None,
        underruns: Callable[[], int] = lambda: 0,
    ) -> None:
        """Connect the parts; their owners close them.

        Args:
            responder: runs responses and posts their events to `inbox`.
            show: renders an event; called on the thread that runs the conversation.
            read_line: returns the next line, None at the end; raises VoxError for a line that can't be used, and
                KeyboardInterrupt for Ctrl-C.
            commands: by name, without the slash; `undo`, `help` and `quit` are added.
            read_answer: returns the line that answers a question, None at the end; raises TimeoutError after as many
                seconds as it is given, and KeyboardInterrupt. None: answers are lines like others.
            underruns: returns how often the loudspeaker ran out of samples.
        """
        self._responder = responder
        self._inbox = inbox
        self._view = show
        self._history = History(memory, responder.engine, self._show)
        self._read_line = read_line
        self._commands = {
            **commands,
            "undo": SlashCommand("/undo", "forget the last turn", self._undo),
            "help": SlashCommand("/help", "list the commands", self._help),
            "quit": SlashCommand("/quit", "end the conversation; so does Ctrl-D", self._quit),
        }
        self._tools = ToolProgress(responder, self._show)
        self._read_answer = read_answer or (lambda _seconds: read_line())
        self._next_line: str | None = None  # One that was typed in place of an answer.
        self._max_turns = max_turns
        self._underruns = underruns
        self.interrupted = False  # ended by Ctrl-C
        self.failures = 0  # lines that were not answered
        self._ended = False
        self._interrupted_at = -math.inf  # monotonic seconds of the last Ctrl-C

    def run(self) -> None:
        """Answer lines until there are no more.

        Raises:
            Exception: a defect in a thread of the conversation.
        """
        while not self._ended:
            try:
                line = self._take_line()
            except KeyboardInterrupt:
                self._on_ctrl_c()
                continue
            except VoxError as error:
                self._show(TurnFailed(error))
                continue
            if line is None:
                break
            self._handle_line(line)
        generations = self._responder.additional_generations
        self._show(self._history.summary(overruns=0, underruns=self._underruns(), additional_generations=generations))

    def _take_line(self) -> str | None:
        line, self._next_line = self._next_line, None
        return self._read_line() if line is None else line

    def _handle_line(self, line: str) -> None:
        if command := COMMAND.fullmatch(line.rstrip()):
            self._run_command(command[1].lower(), (command[2] or "").strip())
        elif line.strip():
            self._answer(line.strip())

    def _run_command(self, name: str, argument: str) -> None:
        try:
            for text in self._command(name).run(argument).splitlines():
                self._show(Notice(text))
        except VoxError as error:
            self._show(TurnFailed(error))

    def _command(self, name: str) -> SlashCommand:
        if name not in self._commands:
            near = get_close_matches(name, self._commands, 1, cutoff=0.4)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            raise ConfigError(f"there is no command /{name}", hint=hint)
        return self._commands[name]

    def _help(self, _argument: str) -> str:
        width = max(len(command.usage) for command in self._commands.values())
        lines = [f"{command.usage.ljust(width)}  {command.does}" for command in self._commands.values()]
        return "\n".join([*lines, "A line that begins with a space is text, whatever follows."])

    def _undo(self, _argument: str) -> str:
        self._history.undo()
        return ""

    def _quit(self, _argument: str) -> str:
        self._ended = True
        return ""

    def _answer(self, text: str) -> None:
        """Run the turn of a line; return when its reply is over, or was interrupted."""
        response = Response(Utterance(None, text), time.monotonic())
        response.release()
        self._show(TurnStarted(response.utterance))
        self._responder.submit(response, self._history.session)
        with _ctrl_c_posted(self._inbox):
            try:
                while self._is_running(response):
                    pass
            finally:
                response.stop()
                self._tools.on_returned()
        self._responder.prefill_history(self._history.session)
        if self._max_turns and self._history.turns >= self._max_turns:
            self._ended = True

    def _is_running(self, response: Response) -> bool:
        """Handle the next message; return whether there will be more for the response."""
        try:
            inbound = self._inbox.get(timeout=POLL_SECONDS)
        except Empty:
            self._show_played(response)
            self._tools.tick(response)
            return True
        if isinstance(inbound, ToolAnnounced | ApprovalRequest):
            self._on_tool_message(inbound, response)
            return True
        match inbound:
            case ResponseEvent() | ResponseOver() if inbound.response is not response:
                pass  # It is an announcement.
            case ResponseEvent(_, TurnEnded() as ended):
                self._show_played(response)
                self._remember(response, ended)
            case ResponseEvent(_, event):
                if isinstance(event, ToolReturned):
                    self._tools.on_returned()
                self._show(event)
            case ResponseOver(_, VoxError() as error):
                self._show(TurnFailed(error))
                return False
            case ResponseOver(_, None):
                return False
            case Interrupt():
                response.stop()
                self._on_ctrl_c()
            case WorkAheadFailed(VoxError() as error):
                self._show(Notice(error.message))
            case ResponseOver(_, BaseException() as defect) | WorkAheadFailed(defect):
                raise defect
            case Notice():
                self._show(inbound)
        return True

    def _on_tool_message(self, message: ToolAnnounced | ApprovalRequest, response: Response) -> None:
        if isinstance(message, ToolAnnounced):
            self._tools.on_announced(message, response)
        else:
            self._ask(message, response)

    def _ask(self, request: ApprovalRequest, response: Response) -> None:
        """Let the user type the answer to a question. Another line refuses the call, and is the next one to answer."""
        self._tools.on_request(request)
        try:
            with _on_ctrl_c(signal.default_int_handler):
                line = self._read_answer(ANSWER_SECONDS) if self._tools.is_asking else ""
        except TimeoutError:
            self._tools.answer(False, "timeout")
        except VoxError as error:
            self._show(TurnFailed(error))
            self._tools.answer(False, "text")
        except KeyboardInterrupt:
            response.stop()
            self._on_ctrl_c()
        else:
            allowed = typed_verdict(line or "")
            self._tools.answer(bool(allowed), "nobody" if line is None else "text")
            self._next_line = line if allowed is None and line else None

    def _show_played(self, response: Response) -> None:
        for sentence in self._responder.newly_played(response):
            self._show(SentenceSpoken(sentence))

    def _remember(self, response: Response, ended: TurnEnded) -> None:
        if ended.was_interrupted:
            self._show(BargeIn(ended.turn.reply))
        self._history.remember(response, ended)

    def _show(self, event: LiveEvent) -> None:
        self.failures += isinstance(event, TurnFailed)
        self._view(event)

    def _on_ctrl_c(self) -> None:
        now = time.monotonic()
        if now - self._interrupted_at < SECOND_INTERRUPT_SECONDS:
            self._ended = self.interrupted = True
            return
        self._interrupted_at = now
        self._show(Notice("Ctrl-C again ends the conversation"))


@contextmanager
def _ctrl_c_posted(inbox: SimpleQueue[Inbound]) -> Iterator[None]:
    with _on_ctrl_c(lambda _number, _frame: inbox.put(Interrupt())):
        yield


@contextmanager
def _on_ctrl_c(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = None
    with suppress(ValueError):  # Only the main thread receives signals.
        before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
