"""The view of a typed conversation for people: replies as they stream on stdout, everything else on stderr."""

import os
import sys
import threading
from contextlib import AbstractContextManager, nullcontext

from voxcli.chat.events import BargeIn, LiveEvent, Ready, SessionEnded, TurnStarted, TurnTaken
from voxcli.chat.views.words import interruption, latency_line, note_lines, summary_lines, tool_lines
from voxcli.core.tool_words import call_line
from voxcli.core.tools import ToolCalled, ToolReturned
from voxcli.core.turn import ReplyDelta
from voxcli.output import Output
from voxcli.printable import printable

ERASE = "\r\x1b[K"

HOW_TO = "Enter sends, Ctrl-C interrupts a reply, Ctrl-D ends, /help lists the commands."


class TypedView:
    """Implements `voxcli.chat.views.LiveView`; what the user types is on the terminal already.

    Timers and servers of tools show notices on threads of their own.

    Args:
        is_terminal: tell that a reply is awaited, and take that away again.
        stages: show the latency of each stage.
    """

    def __init__(
        self,
        out: Output | None = None,
        notes: Output | None = None,
        *,
        is_terminal: bool | None = None,
        stages: bool = False,
    ) -> None:
        self._out = out or Output(sys.stdout)
        self._notes = notes or Output(sys.stderr)
        self._is_terminal = _can_erase() if is_terminal is None else is_terminal
        self._stages = stages
        self._is_waiting = False
        self._in_line = False  # whether the line of a reply is open
        self._lock = threading.Lock()  # held while an event is written

    def starting(self, what: str, share: float | None = None) -> None:
        if self._is_terminal:
            percent = f" {share:.0%}" if share is not None else ""
            with self._lock:
                self._notes.write(f"{ERASE}\x1b[2m{printable(what)}{percent}\x1b[22m")
                self._is_waiting = True

    def show(self, event: LiveEvent) -> None:
        with self._lock:
            self._show(event)

    def _show(self, event: LiveEvent) -> None:
        match event:
            case TurnStarted() if self._is_terminal:
                self._wait("thinking")
            case ToolCalled(call) if self._is_terminal:
                self._end_line()
                self._wait(f"{call_line(call)} …")
            case ToolReturned() if self._is_terminal:
                self._write_notes(event)
                self._wait("thinking")
            case ReplyDelta(text):
                self._erase_waiting()
                self._write_reply(text)
            case TurnTaken():
                self._end_line()
                if self._stages and (line := latency_line(event.latency)):
                    self._notes.write_dim(line)
            case BargeIn(spoken_text):
                self._end_line()
                self._notes.write_dim(interruption(spoken_text))
            case _:
                self._write_notes(event)

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        with self._lock:
            self._erase_waiting()
        self._out.check()

    def _write_reply(self, text: str) -> None:
        if not self._in_line:
            text = text.lstrip()
        if text:
            self._out.write(printable(text, keep="\n\t"))
            self._in_line = True

    def _write_notes(self, event: LiveEvent) -> None:
        if isinstance(event, SessionEnded):
            lines = summary_lines(event, stages=self._stages)
        else:
            lines = note_lines(event) or tool_lines(event)
        if lines:
            self._end_line()
        for line in lines:
            self._notes.write_dim(line)
        if isinstance(event, Ready) and self._is_terminal:
            self._notes.write_dim(f"{HOW_TO}\n")

    def _wait(self, what: str) -> None:
        """Tell in a line what is waited for, which the next output takes away again."""
        self._erase_waiting()
        self._notes.write(f"\x1b[2m{what}\x1b[22m")
        self._is_waiting = True

    def _end_line(self) -> None:
        self._erase_waiting()
        if self._in_line:
            self._out.write("\n")
            self._in_line = False

    def _erase_waiting(self) -> None:
        if self._is_waiting:
            self._notes.write(ERASE)
            self._is_waiting = False


def _can_erase() -> bool:
    """Return whether stdout and stderr are a terminal that understands escape sequences."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if not all(stream and stream.isatty() for stream in streams):
        return False
    return os.name == "posix" and os.environ.get("TERM") != "dumb"
