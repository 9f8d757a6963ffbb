"""The view of a live conversation on a terminal: finished turns scroll up, the present one stays below them.

`Screen` holds what is shown below; it depends on the events and the clock alone. `TerminalView` paints it, a few
times a second and only when it has changed.
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
from voxcli.chat.views.words import interruption, latency_line, note_lines, user_text
from voxcli.core.turn import ReplyDelta, SpeechFailed
from voxcli.output import Output
from voxcli.printable import printable

PAINTS_PER_SECOND = 10
SPINS_PER_SECOND = 8
SILENT_DBFS = -60.0  # the input level at which the bar is empty
BAR_CELLS = range(4, 25)  # lengths that the bar may have
WIDE = 40  # columns from which on the state is padded, so that the bar keeps its place
LONGEST_WORD = len("listening")
ROWS_BESIDE_REPLY = 4  # an empty row, the state, the keys, and the row of the cursor

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
    """The rows below the finished turns.

    Args:
        clock: returns monotonic seconds.
        ascii_only: use ASCII characters only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, ascii_only: bool = False) -> None:
        self.hints: Mapping[str, str] = {}
        self._clock = clock
        self._ascii_only = ascii_only
        self._state: State = "starting"
        self._since = clock()
        self._preparing = ""  # what is being prepared
        self._share: float | None = None
        self._dbfs = SILENT_DBFS
        self._speech_seconds: float | None = None
        self._reply = ""
        self._spoken_chars = 0  # characters of the reply that were spoken
        self._is_spoken = True  # replies are spoken, not only shown

    def starting(self, what: str, share: float | None) -> None:
        self._preparing, self._share = printable(what), share

    def update(self, event: LiveEvent) -> None:
        """Apply an event; any order of events is fine."""
        match event:
            case StateChanged(state):
                self._set_state(state)
            case InputLevel(dbfs, speech_seconds):
                self._dbfs, self._speech_seconds = dbfs, speech_seconds
            case ReplyDelta(text):
                self._reply += text
            case SentenceSpoken(text):
                self._spoken_chars += len(text)
            case Ready():
                self._is_spoken = event.voice is not None and event.output_device is not None
            case SpeechFailed():
                self._is_spoken = False
            case SpeechResumed() | TurnTaken() | TurnFailed() | SessionEnded():
                self._clear_reply()

    def _set_state(self, state: State) -> None:
        if state == self._state:
            return
        self._state, self._since = state, self._clock()
        if state in ("listening", "thinking"):  # a repeated reply ends without a turn
            self._clear_reply()

    def _clear_reply(self) -> None:
        self._reply, self._spoken_chars = "", 0

    def rows(self, console: Console) -> list[Text]:
        """Return rows that fit the console; of a long reply, the end."""
        room = console.height - ROWS_BESIDE_REPLY
        state = self._state_row(console.width)
        if room < 0 or self._state == "starting" or not self.hints:
            rows = [state]
        else:
            rows = [state, self._hints_row(console.width)]
        reply = self._reply_rows(console)[-room:] if room > 0 else []
        return [*reply, Text(), *rows] if reply else rows

    def _reply_rows(self, console: Console) -> list[Text]:
        """Return the reply so far; the part that is still to be spoken is dim."""
        if not self._reply.strip():
            return []
        chars = self._spoken_chars if self._is_spoken else len(self._reply)
        parts = self._reply[:chars].lstrip(), self._reply[chars:] if chars else self._reply.lstrip()
        spoken_text, rest = (printable(part, keep="\n\t") for part in parts)
        return list(Text.assemble(spoken_text, (rest, "dim")).wrap(console, console.width, tab_size=4))

    def _state_row(self, width: int) -> Text:
        style = STYLES[self._state]
        word = self._preparing if self._state == "starting" else self._state
        padding = " " * (LONGEST_WORD - len(word)) if width >= WIDE else ""
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
        """Return the seconds since speech started, or since the wait for a reply or for a part began."""
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
    """Implements `voxcli.chat.views.LiveView`: paints a `Screen` on a terminal.

    Args:
        stream: a terminal; standard output by default.
        clock: returns monotonic seconds.
        painter: paint on a thread of its own; otherwise only `paint` does.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, *, painter: bool = True
    ) -> None:
        stream = stream or sys.stdout
        self._out = Output(stream)
        self._console = Console(
            file=cast(TextIO, _OutputStream(self._out, stream)), highlight=False, markup=False, emoji=False
        )
        self._screen = Screen(clock, ascii_only=self._console.options.ascii_only)
        self._lock = threading.RLock()  # reentrant: a signal handler may pause the view while it paints
        self._live: Live | None = None
        self._painted: list[Text] = []
        self._waiting: list[Text] = []  # printed when no pause is left
        self._pauses = 0
        self._closed = threading.Event()
        self._defect: Exception | None = None  # ended the painter's thread
        self._painter = threading.Thread(target=self._paint_regularly, name="painter", daemon=True)
        self._start_live()
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
        """Print a finished turn or a note at once; let the painter show the rest.

        Raises:
            Exception: the defect that ended the painter's thread.
        """
        if self._defect:
            raise self._defect
        with self._lock:
            self._screen.update(event)
            if isinstance(event, SessionEnded):
                self._stop_live()
            self._waiting += _lasting_rows(event, self._console.options.ascii_only)
            self._print_waiting()

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:
            painting = self._live is not None
            self._pauses += 1
            self._stop_live()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if painting and not self._closed.is_set():
                    self._start_live()
                self._print_waiting()

    def close(self) -> None:
        self._closed.set()
        if self._painter.is_alive():
            self._painter.join()
        with self._lock:
            self._stop_live()
        self._out.check()

    def paint(self) -> None:
        """Show the screen on the terminal if it has changed."""
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

    def _start_live(self) -> None:
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self.paint()

    def _stop_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
            self._painted = []


class _OutputStream(io.TextIOBase):
    """Lets rich write to an `Output`, which tolerates a stream that closes."""

    def __init__(self, output: Output, stream: TextIO) -> None:
        self._output = output
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override] # a plain attribute there
        return self._stream.encoding

    def write(self, text: str) -> int:
        # Synchronized output (mode 2026): the terminal shows the text in one frame, or ignores the sequence.
        self._output.write(f"\x1b[?2026h{text}\x1b[?2026l" if os.name == "posix" else text)
        return len(text)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _lasting_rows(event: LiveEvent, ascii_only: bool) -> list[Text]:
    """Return the rows of an event that stay on the terminal."""
    overflow: Literal["crop", "ellipsis"] = "crop" if ascii_only else "ellipsis"
    if isinstance(event, TurnTaken):
        turn = event.ended.turn
        reply = [(printable(turn.reply, keep="\n\t"), "")] if turn.reply else []
        mark = [(interruption(turn.reply), "dim")] if turn.interrupted else []
        return [
            Text.assemble(("> ", "bold cyan"), (user_text(event.ended), "cyan")),
            Text(" ").join(Text.assemble(part) for part in [*reply, *mark]),
            Text.assemble((latency_line(event.latency), "dim"), no_wrap=True, overflow=overflow),
            Text(),
        ]
    style = "red" if isinstance(event, SpeechFailed | TurnFailed) else "dim"
    lines = [Text.assemble((line, style)) for line in note_lines(event)]
    return [*lines, Text()] if lines and isinstance(event, Ready) else lines
