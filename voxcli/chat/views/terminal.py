"""The view of a live conversation on a terminal: finished turns scroll up, the present one stays below them.

Between two writes the cursor stands at the beginning of the rows that are painted again and again. Whatever a
terminal does when its window changes (wrap the rows anew, cut them off, scroll), it keeps the cursor where it is in
the text. So all that follows the cursor is erased and painted anew, and nothing else is touched. While these rows are
painted, the terminal does not wrap: each takes one row even where the terminal is narrower than it was, or measures
a character differently.
"""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.text import Text

from voxcli.chat.events import KeysAsked, LiveEvent, Ready, SessionEnded, TurnFailed, TurnTaken
from voxcli.chat.views.screen import Screen, question_row
from voxcli.chat.views.words import (
    HEADER_INDENT,
    interruption,
    latency_figure,
    latency_line,
    note_lines,
    summary_lines,
    turn_question,
)
from voxcli.core.tool_words import result_line
from voxcli.core.turn import SpeechFailed
from voxcli.core.understanding import Understood
from voxcli.output import Output
from voxcli.printable import printable

PAINTS_PER_SECOND = 10  # the most; nothing is painted while nothing changes
SIZE_SECONDS = 0.5  # between two looks at the terminal's size while nothing changes
USUAL_SIZE = os.terminal_size((80, 24))  # Some terminals do not tell their size.

# The space keeps tmux from moving rows into its scrollback, as it does when the whole screen is erased.
ERASE_BELOW = "\r \x1b[J\r"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Synchronized output: the terminal shows what is between these in one frame, or ignores them.
BEGIN_FRAME, END_FRAME = "\x1b[?2026h", "\x1b[?2026l"


def can_redraw() -> bool:
    """Return whether the terminal understands escape sequences, which an old Windows console does not."""
    return not Console().legacy_windows


class TerminalView:
    """Implements `voxcli.chat.views.LiveView`: paints a `Screen` on a terminal.

    Args:
        stream: a terminal; standard output by default.
        clock: returns monotonic seconds.
        painter: paint on a thread of its own; otherwise only `paint` does.
        stages: show the latency of each stage.
        size: returns the columns and rows of the terminal.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        painter: bool = True,
        stages: bool = False,
        size: Callable[[], os.terminal_size] | None = None,
    ) -> None:
        stream = stream or sys.stdout
        self._out = Output(stream)
        self._size = size or (lambda: _size_of(stream))
        self._console = Console(
            file=io.StringIO(), force_terminal=True, highlight=False
        )  # Gives styles, and writes nothing.
        self._screen = Screen(clock, ascii_only=not (stream.encoding or "utf-8").lower().startswith("utf"))
        self._stages = stages
        self._lock = threading.RLock()  # reentrant: a signal handler may pause the view while it paints
        self._painting = False
        self._painted: tuple[os.terminal_size, list[Text]] | None = None
        self._is_stale = True  # the screen may differ from what is painted
        self._news = threading.Event()  # wakes the painter's thread
        self._waiting: list[Text] = []  # printed when no pause is left
        self._pauses = 0
        self._closed = threading.Event()
        self._defect: Exception | None = None  # ended the painter's thread
        self._painter = threading.Thread(target=self._paint_regularly, name="painter", daemon=True)
        self._start_painting()
        if painter:
            self._painter.start()

    def starting(self, what: str, share: float | None = None) -> None:
        with self._lock:
            self._screen.starting(what, share)
            self._mark_stale()

    def show(self, event: LiveEvent) -> None:
        """Print a finished turn or a note at once; let the painter show the rest.

        Raises:
            Exception: the defect that ended the painter's thread.
        """
        if self._defect:
            raise self._defect
        with self._lock:
            lasting = self._lasting_rows(event)  # first: the update drops a turn that failed
            if self._screen.update(event):
                self._mark_stale()
            if isinstance(event, SessionEnded):
                self._stop_painting()
            self._waiting += lasting
            self._print_waiting()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:
            painting = self._painting
            self._pauses += 1
            self._stop_painting()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if painting and not self._closed.is_set():
                    self._start_painting()
                self._print_waiting()

    def close(self) -> None:
        self._closed.set()
        self._news.set()
        if self._painter.is_alive():
            self._painter.join()
        with self._lock:
            self._stop_painting()
        self._out.check()

    def paint(self) -> None:
        """Show the screen on the terminal if it, or the terminal's size, has changed."""
        with self._lock:
            if self._painting:
                size = self._size()
                if self._painted and self._painted[0] == size and not (self._is_stale or self._screen.is_moving):
                    return
                rows = self._screen.rows(*size)
                self._is_stale = False
                if (size, rows) != self._painted:
                    self._write([], size, rows)

    def _mark_stale(self) -> None:
        self._is_stale = True
        self._news.set()

    def _paint_regularly(self) -> None:
        try:
            while not self._closed.wait(1 / PAINTS_PER_SECOND):
                if not self._screen.is_moving:
                    self._news.wait(SIZE_SECONDS)
                self._news.clear()
                self.paint()
        except Exception as error:  # noqa: BLE001 - raised again by show(), on the thread of the conversation
            self._defect = error

    def _print_waiting(self) -> None:
        if self._waiting and not self._pauses:
            size = self._size()
            lasting = [row for text in self._waiting for row in text.wrap(self._console, size.columns, tab_size=4)]
            self._waiting.clear()
            self._write(lasting, size, self._screen.rows(*size) if self._painting else [])

    def _start_painting(self) -> None:
        self._painting = True
        self._out.write(HIDE_CURSOR)
        self.paint()

    def _stop_painting(self) -> None:
        if self._painting:
            self._painting = False
            self._painted = None
            self._out.write(ERASE_BELOW + SHOW_CURSOR)

    def _write(self, lasting: Sequence[Text], size: os.terminal_size, rows: list[Text]) -> None:
        """Print rows that stay, and paint those below; leave the cursor between them."""
        self._painted = size, rows
        above = "".join(f"{self._styled(row)}\r\n" for row in lasting)
        below = "\r\n".join(map(self._styled, rows))
        up = f"\r\x1b[{len(rows) - 1}A" if len(rows) > 1 else "\r"
        self._out.write(f"{BEGIN_FRAME}{ERASE_BELOW}{above}{NO_WRAP}{below}{up}{WRAP}{END_FRAME}")

    def _styled(self, row: Text) -> str:
        """Return a row with the escape sequences of its styles."""
        with self._console.capture() as captured:
            self._console.print(row, end="", soft_wrap=True)
        return captured.get()

    def _lasting_rows(self, event: LiveEvent) -> list[Text]:
        """Return the rows of an event that stay on the terminal."""
        if isinstance(event, TurnTaken):
            return self._turn_rows(event)
        if isinstance(event, KeysAsked):
            keys = self._screen.situation.all_keys.items()
            return [Text.assemble((f"{key:<8}", "bold"), (does, "dim")) for key, does in keys]
        if isinstance(event, SessionEnded):
            return [Text(line, "dim") for line in summary_lines(event, stages=self._stages)]
        if isinstance(event, Ready):
            return [*(row for line in note_lines(event) for row in self._indented(line)), Text()]
        if isinstance(event, Understood) and event.turn is None:
            return []  # The row of the question shows it.
        question = self._screen.unanswered(event.utterance) if isinstance(event, TurnFailed) and event.utterance else []
        style = "red" if isinstance(event, SpeechFailed | TurnFailed) else "dim"
        return [*question, *(Text(line, style) for line in note_lines(event)), *([Text()] if question else [])]

    def _indented(self, line: str) -> list[Text]:
        """Return a line of the header; what does not fit its row goes on below its text."""
        label, text = line[:HEADER_INDENT], Text(line[HEADER_INDENT:], "dim")
        rows = text.wrap(self._console, max(self._size().columns - HEADER_INDENT, HEADER_INDENT))
        labels = [label, *[""] * (len(rows) - 1)]
        return [Text(name.ljust(HEADER_INDENT), "dim") + row for name, row in zip(labels, rows, strict=True)]

    def _turn_rows(self, taken: TurnTaken) -> list[Text]:
        turn = taken.ended.turn
        parts = [
            (printable(turn.reply, keep="\n\t"), ""),
            (interruption(turn.reply) if taken.ended.was_interrupted else "", "dim"),
            ("" if self._stages else latency_figure(taken), "dim"),
        ]
        reply = Text("  ").join(Text(*part) for part in parts if part[0])
        stages = [Text(latency_line(taken.latency), "dim")] if self._stages else []
        tools = [Text(result_line(each), "dim") for each in turn.tools]
        return [question_row(turn_question(taken)), *tools, *([reply] if reply else []), *stages, Text()]


def _size_of(stream: TextIO) -> os.terminal_size:
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return USUAL_SIZE
    return size if min(size) > 0 else USUAL_SIZE
