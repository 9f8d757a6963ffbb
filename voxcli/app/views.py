"""Shows a single turn or a batch run, to people or as JSON. Views of a conversation are in `voxcli.chat.views`.

Replies go to stdout, everything else to stderr, dim on a terminal unless `NO_COLOR` is set.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rich.console import Console
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

from voxcli.batch.stats import Status
from voxcli.core.turn import Event, ReplyDelta, SpeechFailed, TurnEnded
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
    """Shows people the reply as it streams, then why there was no speech or no end, and the latency."""

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
        elif isinstance(event, SpeechFailed):
            self._failures.append(f"no speech: {event.error}")
        elif isinstance(event, TurnEnded):
            self._out.write("\n")
            self._in_line = False
            for note in (*self._failures, *filter(None, [event.report.cut_note])):
                self._notes.write_dim(printable(note))
            self._failures.clear()

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
            self.say(f"{status.done} of {status.items} · {status.pace} · {_left(status)}")

    def say(self, text: str) -> None:
        """Write a line now."""
        self._notes.write(printable(text) + "\n")


class BatchBar:
    """Shows the progress of a batch as a bar on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, pace="", left="")

    def show(self, status: Status) -> None:
        """Update the bar."""
        self._progress.update(
            self._task, completed=status.done, total=status.items, pace=status.pace, left=_left(status)
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(printable(text), markup=False, highlight=False)


@contextmanager
def batch_progress() -> Iterator[BatchLines | BatchBar]:
    """Give a view of the progress of a batch: a bar on a terminal, otherwise lines."""
    if not sys.stderr.isatty():
        yield BatchLines()
        return
    columns = [
        BarColumn(),
        *map(TextColumn, ("{task.completed} of {task.total}", "{task.fields[pace]}", "{task.fields[left]}")),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield BatchBar(progress)


def _left(status: Status) -> str:
    if status.seconds_left is None:
        return ""
    minutes, seconds = divmod(round(status.seconds_left), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"


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
