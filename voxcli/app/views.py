"""Shows a single turn or a batch run, to people or as JSON. Views of a conversation are in `voxcli.chat.views`.

Replies go to stdout, everything else to stderr, dim on a terminal unless `NO_COLOR` is set.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from voxcli.batch.stats import Status, clock
from voxcli.core.tool_words import call_line, result_line
from voxcli.core.tools import ToolCalled, ToolReturned, ToolsStopped
from voxcli.core.turn import Event, ReplyDelta, SpeechFailed, TurnEnded
from voxcli.core.understanding import NotUnderstood
from voxcli.output import Output
from voxcli.printable import printable


class View(Protocol):
    """Shows the events of a turn."""

    def show(self, event: Event) -> None: ...

    def finish(self, record: dict[str, Any]) -> None: ...

    def abandon(self) -> None:
        """End the view of a failed turn, so that the next output begins on a new line."""
        ...


class TextView:
    """Shows people the reply as it streams, then what was understood, what went wrong, and the latency."""

    def __init__(self, out: Output | None = None, notes: Output | None = None) -> None:
        self._out = out or Output(sys.stdout)
        self._notes = notes or Output(sys.stderr)
        self._failures: list[str] = []
        self._in_line = False  # whether the line of a reply is open

    def show(self, event: Event) -> None:
        """Show an event. A failure is shown after the reply."""
        if isinstance(event, ReplyDelta):
            self._out.write(printable(event.text, keep="\n\t"))
            self._in_line = True
        elif isinstance(event, ToolCalled | ToolReturned | ToolsStopped):
            self._show_tool(event)
        elif isinstance(event, SpeechFailed):
            self._failures.append(f"no speech: {event.error}")
        elif isinstance(event, NotUnderstood):
            self._failures.append(f"what you said is not known: {event.reason}")
        elif isinstance(event, TurnEnded):
            self._out.write("\n")
            self._in_line = False
            understood = f"you said: {event.report.understood}" if event.report.understood else ""
            for note in filter(None, (understood, *self._failures, event.report.cut_note)):
                self._notes.write_dim(printable(note))
            self._failures.clear()

    def _show_tool(self, event: ToolCalled | ToolReturned | ToolsStopped) -> None:
        """Write a line beside the reply, also while it is in the middle of its line."""
        if self._in_line:
            self._notes.write("\n")
            self._in_line = False
        match event:
            case ToolCalled(call):
                self._notes.write_dim(f"tool: {call_line(call)}")
            case ToolReturned(result):
                self._notes.write_dim(result_line(result))
            case ToolsStopped():
                self._notes.write_dim(event.note)

    def finish(self, record: dict[str, Any]) -> None:
        """Show the latency.

        Raises:
            VoxError: the reply could not be written.
        """
        self._notes.write_dim(printable(latency_line(record)))
        self._out.check()

    def abandon(self) -> None:
        """End the line of the reply."""
        if self._in_line:
            self._out.write("\n")


class JsonView:
    """Prints the record of a turn as one JSON object, in ASCII, which is safe for a terminal."""

    def __init__(self, out: Output | None = None) -> None:
        self._out = out or Output(sys.stdout)

    def show(self, event: Event) -> None:
        """Do nothing: the record holds everything."""

    def finish(self, record: dict[str, Any]) -> None:
        """Print the record.

        Raises:
            VoxError: it could not be written.
        """
        self._out.write(json.dumps(record) + "\n")
        self._out.check()

    def abandon(self) -> None:
        """Do nothing: nothing was printed."""


Show = Callable[[int, int], None]  # takes the amount done and the total


@contextmanager
def download_progress() -> Iterator[Show]:
    """Give a function that shows the progress of a download, in bytes, on stderr."""
    with loading_progress() as (fetching, _warming):
        yield fetching


@contextmanager
def loading_progress() -> Iterator[tuple[Show, Show]]:
    """Give two functions that show the progress of an engine on stderr: its download in bytes, its warm-up in parts.

    Neither shows anything before its first call. On a terminal each draws a bar, one at a time; the bar of the warm-up
    disappears. Elsewhere a line is written for each tenth of the download and each quarter of the warm-up.
    """
    if not sys.stderr.isatty():
        yield (
            _lines(10, lambda done, total: f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"),
            _lines(4, lambda done, total: f"warming up: {done} of {total}"),
        )
        return
    with ExitStack() as shown:
        fetched = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        warmed = TextColumn("warming up"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        yield _bar(shown, fetched, goes_away=False), _bar(shown, warmed, goes_away=True)


def _bar(shown: ExitStack, columns: Sequence[ProgressColumn], *, goes_away: bool) -> Show:
    """Return a function that draws a bar. Its first call replaces the bar that is shown."""
    bar = Progress(*columns, console=Console(stderr=True), transient=goes_away)

    def show(done: int, total: int) -> None:
        if not bar.tasks:
            shown.close()
            shown.enter_context(bar)
            bar.add_task("")
        bar.update(bar.task_ids[0], completed=done, total=total)

    return show


def _lines(parts: int, line: Callable[[int, int], str]) -> Show:
    """Return a function that writes a line for each of `parts` equal parts."""
    notes = Output(sys.stderr)
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        part = parts * done // max(total, 1)
        if part > shown:
            shown = part
            notes.write(f"{line(done, total)}\n")

    return show


LINE_SECONDS = 10.0  # between lines of progress outside a terminal


class BatchLines:
    """Shows the progress of a batch outside a terminal: a line every `LINE_SECONDS`."""

    def __init__(self, notes: Output | None = None) -> None:
        self._notes = notes or Output(sys.stderr)
        self._due = LINE_SECONDS

    def show(self, status: Status) -> None:
        """Write a line if one is due."""
        if status.seconds >= self._due:
            self._due = status.seconds + LINE_SECONDS
            self.say(" · ".join(filter(None, [_done(status), _failed(status), _left(status), status.pace])))

    def say(self, text: str) -> None:
        """Write a line now."""
        self._notes.write(printable(text) + "\n")


class BatchBar:
    """Shows the progress of a batch as a bar on a terminal, green until an item fails."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, status: Status) -> None:
        """Update the bar."""
        self._live.update(batch_bar(status, self._live.console.width))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._live.console.print(printable(text), markup=False, highlight=False)


MIN_BAR_COLUMNS, MAX_BAR_COLUMNS = 8, 40


def batch_bar(status: Status, columns: int) -> Table:
    """Return the progress of a batch in one line of at most `columns` columns.

    What has no room is left out, from the least important on: pace, the bar itself, time left, failures.
    """
    color = "yellow" if status.failed else "green"
    texts = [(_done(status), color), (_failed(status), "bold red"), (_left(status), "default")]
    shown: list[RenderableType] = []
    free = columns
    for text, style in texts:
        if text and len(text) < free:
            shown.append(Text(text, style, no_wrap=True))
            free -= len(text) + 2
    wants_pace = free - len(status.pace) - 2 >= MIN_BAR_COLUMNS
    if wants_pace:
        shown.append(Text(status.pace, "dim", no_wrap=True))
        free -= len(status.pace) + 2
    if free >= MIN_BAR_COLUMNS:
        bar = ProgressBar(
            status.items, status.done, min(free, MAX_BAR_COLUMNS), complete_style=color, finished_style=color
        )
        shown.insert(0, bar)
    line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    line.add_row(*shown)
    return line


@contextmanager
def batch_progress() -> Iterator[BatchLines | BatchBar]:
    """Give a view of the progress of a batch: a bar on a terminal, otherwise lines."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield BatchLines()
        return
    with Live(console=Console(stderr=True), transient=True) as live:  # the summary that follows says it all
        yield BatchBar(live)


def _done(status: Status) -> str:
    return f"{status.done} of {status.items}"


def _failed(status: Status) -> str:
    return f"{status.failed} failed" if status.failed else ""


def _left(status: Status) -> str:
    return "" if status.seconds_left is None else f"{clock(status.seconds_left)} left"


def latency_line(record: dict[str, Any]) -> str:
    """Return the latency and the tokens of a turn in one line."""
    timings, tokens = record["timings"], record["tokens"]
    parts = [
        f"{record['audio']['seconds']:.1f} s of audio" if record["audio"] else "",
        f"first token {timings['first_token_seconds']:.2f} s" if timings["first_token_seconds"] is not None else "",
        f"first audio {timings['first_audio_seconds']:.2f} s" if timings["first_audio_seconds"] is not None else "",
        f"total {timings['total_seconds']:.2f} s",
        f"{tokens['prompt']} + {tokens['reply']} tokens",
        "interrupted" if record["interrupted"] else "",
    ]
    return " · ".join(part for part in parts if part)
