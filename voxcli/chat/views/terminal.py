"""The view of a live conversation on a terminal: what is finished scrolls up, what goes on stays below.

`Screen` is what is to be seen, a pure value of the events so far; `TerminalView` paints it, a few times
a second and only when it has changed.
"""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from voxcli.chat.events import (
    InputLevel,
    LiveEvent,
    Ready,
    SentenceSpoken,
    SessionEnded,
    SpeechResumed,
    State,
    StateChanged,
    TurnFailed,
    TurnTaken,
)
from voxcli.chat.views.words import interruption, latency_line, notes_of, said
from voxcli.core.turn import ReplyDelta, SpeechFailed
from voxcli.output import Output
from voxcli.printable import printable

PAINTS_PER_SECOND = 10
SPINS_PER_SECOND = 8
SILENT_DBFS = -60.0  # the input level at which the bar is empty
BAR_CELLS = range(4, 25)  # how long the bar may be
WIDE = 40  # columns from which on there is room for beauty
LONGEST_WORD = len("listening")
ROWS_BESIDE_REPLY = 4  # an empty row, the state, the keys, and the row that the cursor needs

STYLES: dict[State, str] = {
    "starting": "yellow",
    "listening": "green",
    "hearing": "bold cyan",
    "thinking": "yellow",
    "speaking": "magenta",
    "muted": "bold red",
}
GLYPHS: dict[State, str] = {"listening": "○", "hearing": "●", "speaking": "▶", "muted": "✕"}
SPINNER, SPINNER_ASCII = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"


class Screen:
    """What is to be seen below the finished turns.

    Args:
        clock: seconds, monotonic.
        ascii_only: the terminal shows nothing else.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, ascii_only: bool = False) -> None:
        self.hints: Mapping[str, str] = {}
        self._clock = clock
        self._ascii_only = ascii_only
        self._state: State = "starting"
        self._since = clock()
        self._what = ""  # is being made ready
        self._share: float | None = None
        self._dbfs = SILENT_DBFS
        self._speech_seconds: float | None = None
        self._reply = ""
        self._spoken = 0  # characters of the reply
        self._aloud = True

    def starting(self, what: str, share: float | None) -> None:
        self._what, self._share = printable(what), share

    def take(self, event: LiveEvent) -> None:
        """Take an event, whatever came before it."""
        match event:
            case StateChanged(state):
                self._enter(state)
            case InputLevel(dbfs, speech_seconds):
                self._dbfs, self._speech_seconds = dbfs, speech_seconds
            case ReplyDelta(text):
                self._reply += text
            case SentenceSpoken(text):
                self._spoken += len(text)
            case Ready():
                self._aloud = event.voice is not None and event.output_device is not None
            case SpeechFailed():
                self._aloud = False
            case SpeechResumed() | TurnTaken() | TurnFailed() | SessionEnded():
                self._forget_reply()

    def _enter(self, state: State) -> None:
        if state == self._state:
            return
        self._state, self._since = state, self._clock()
        if state in ("listening", "thinking"):  # a repeated reply ends without a turn
            self._forget_reply()

    def _forget_reply(self) -> None:
        self._reply, self._spoken = "", 0

    def rows(self, console: Console) -> list[Text]:
        """Return the screen's rows, fewer than the console has and none wider: of a long reply, the end."""
        room = console.height - ROWS_BESIDE_REPLY
        state = self._state_row(console.width)
        if room < 0 or self._state == "starting" or not self.hints:
            rows = [state]
        else:
            rows = [state, self._hints_row(console.width)]
        reply = self._reply_rows(console)[-room:] if room > 0 else []
        return [*reply, Text(), *rows] if reply else rows

    def _reply_rows(self, console: Console) -> list[Text]:
        """The reply so far, what has been heard of it set apart from what is still to be spoken."""
        if not self._reply.strip():
            return []
        spoken = self._spoken if self._aloud else len(self._reply)
        parts = self._reply[:spoken].lstrip(), self._reply[spoken:] if spoken else self._reply.lstrip()
        transcript, rest = (printable(part, keep="\n\t") for part in parts)
        return list(Text.assemble(transcript, (rest, "dim")).wrap(console, console.width, tab_size=4))

    def _state_row(self, width: int) -> Text:
        style = STYLES[self._state]
        word = self._what if self._state == "starting" else self._state
        padding = " " * (LONGEST_WORD - len(word)) if width >= WIDE else ""  # the bar stands still
        row = Text.assemble((f"{self._glyph()} {word}{padding}", style))
        seconds = self._seconds()
        after = f" {seconds:.1f} s" if seconds is not None else ""
        cells = min(width - row.cell_len - len(after) - 1, BAR_CELLS[-1])
        share = self._share if self._state == "starting" else self._level()
        if share is not None and cells in BAR_CELLS:
            row.append(" ").append(self._bar(share, cells, style))
        row.append(after, "dim")
        row.truncate(width, overflow="crop" if self._ascii_only else "ellipsis")
        return row

    def _hints_row(self, width: int) -> Text:
        row = Text()
        for key, does in self.hints.items():
            row.append("  " if row else "").append(key, "bold").append(f" {does}", "dim")
        row.truncate(width, overflow="crop" if self._ascii_only else "ellipsis")
        return row

    def _glyph(self) -> str:
        if self._state in GLYPHS:
            return "*" if self._ascii_only else GLYPHS[self._state]
        spinner = SPINNER_ASCII if self._ascii_only else SPINNER
        return spinner[int((self._clock() - self._since) * SPINS_PER_SECOND) % len(spinner)]

    def _seconds(self) -> float | None:
        """Seconds since speech began, or of waiting."""
        if self._state in ("thinking", "starting"):
            return self._clock() - self._since
        return None if self._state == "muted" else self._speech_seconds

    def _level(self) -> float | None:
        return None if self._state == "muted" else 1 - self._dbfs / SILENT_DBFS

    def _bar(self, share: float, cells: int, style: str) -> Text:
        full, empty = ("#", "-") if self._ascii_only else ("━", "─")
        filled = round(min(max(0.0, share), 1.0) * cells)
        return Text.assemble((full * filled, style), (empty * (cells - filled), "dim"))


class TerminalView:
    """Paints a `Screen` on the terminal of standard output; see `voxcli.chat.views.LiveView`.

    Args:
        stream: a terminal.
        clock: seconds, monotonic.
        painter: paint in a thread of its own; else only `paint` does.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, *, painter: bool = True
    ) -> None:
        stream = stream or sys.stdout
        self._out = Output(stream)
        self._console = Console(
            file=cast(TextIO, _Through(self._out, stream)), highlight=False, markup=False, emoji=False
        )
        self._screen = Screen(clock, ascii_only=self._console.options.ascii_only)
        self._lock = threading.RLock()  # a signal may pause the view while it paints
        self._live: Live | None = None
        self._painted: list[Text] = []
        self._waiting: list[Text] = []  # for the end of a pause
        self._pauses = 0
        self._closed = threading.Event()
        self._defect: Exception | None = None  # that ended the painter
        self._painter = threading.Thread(target=self._paint_regularly, name="painter", daemon=True)
        self._begin()
        if painter:
            self._painter.start()

    @property
    def hints(self) -> Mapping[str, str]:
        return self._screen.hints

    @hints.setter
    def hints(self, hints: Mapping[str, str]) -> None:
        self._screen.hints = hints

    def starting(self, what: str, share: float | None = None) -> None:
        with self._lock:
            self._screen.starting(what, share)

    def show(self, event: LiveEvent) -> None:
        """Take an event; what is finished is printed at once, the rest is painted soon.

        Raises what ended the painter, which is a defect.
        """
        if self._defect:
            raise self._defect
        with self._lock:
            self._screen.take(event)
            if isinstance(event, SessionEnded):
                self._end()
            self._waiting += _finished(event, self._console.options.ascii_only)
            self._print_waiting()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:
            painting = self._live is not None
            self._pauses += 1
            self._end()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if painting and not self._closed.is_set():
                    self._begin()
                self._print_waiting()

    def close(self) -> None:
        self._closed.set()
        if self._painter.is_alive():
            self._painter.join()
        with self._lock:
            self._end()
        self._out.check()

    def paint(self) -> None:
        """Bring the terminal up to the screen, if it differs."""
        with self._lock:
            if not self._live:
                return
            rows = self._screen.rows(self._console)
            if rows != self._painted:
                self._painted = rows
                self._live.update(Group(*rows), refresh=True)

    def _paint_regularly(self) -> None:
        try:
            while not self._closed.wait(1 / PAINTS_PER_SECOND):
                self.paint()
        except Exception as error:  # noqa: BLE001 - raised again by show(), on the thread of the conversation
            self._defect = error

    def _print_waiting(self) -> None:
        if self._waiting and not self._pauses:
            with self._console:  # in one write, so that nothing flickers
                self.paint()
                self._console.print(Group(*self._waiting))
            self._waiting.clear()

    def _begin(self) -> None:
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self.paint()

    def _end(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
            self._painted = []


class _Through(io.TextIOBase):
    """Lets rich write through an `Output`, which outlives its stream."""

    def __init__(self, output: Output, stream: TextIO) -> None:
        self._output = output
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override] # a plain attribute there
        return self._stream.encoding

    def write(self, text: str) -> int:
        together = f"\x1b[?2026h{text}\x1b[?2026l" if os.name == "posix" else text  # in one frame, where that is known
        self._output.write(together)
        return len(text)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _finished(event: LiveEvent, ascii_only: bool) -> list[Text]:
    """Return what of an event stays on the terminal."""
    overflow: Literal["crop", "ellipsis"] = "crop" if ascii_only else "ellipsis"
    if isinstance(event, TurnTaken):
        turn = event.ended.turn
        reply = [(printable(turn.reply, keep="\n\t"), "")] if turn.reply else []
        mark = [(interruption(turn.reply), "dim")] if turn.interrupted else []
        return [
            Text.assemble(("> ", "bold cyan"), (said(event.ended), "cyan")),
            Text(" ").join(Text.assemble(part) for part in [*reply, *mark]),
            Text.assemble((latency_line(event.latency), "dim"), no_wrap=True, overflow=overflow),
            Text(),
        ]
    style = "red" if isinstance(event, SpeechFailed | TurnFailed) else "dim"
    lines = [Text.assemble((line, style)) for line in notes_of(event)]
    return [*lines, Text()] if lines and isinstance(event, Ready) else lines
