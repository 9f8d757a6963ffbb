"""Draws a turn: what a person reads of it, and what a program reads (a conversation: `voxcli.chat.views`).

The reply goes to stdout, everything else to stderr, dim where that is a terminal (and `NO_COLOR` is not
set). It knows events and records, not how they came about.
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
        """Leave a turn that failed: what is printed next begins a line of its own."""
        ...


class TextView:
    """For people: the reply as it streams, then dim lines: why there was no speech, and what the turn took."""

    def __init__(self, out: Output | None = None, notes: Output | None = None) -> None:
        self._out = out or Output(sys.stdout)
        self._notes = notes or Output(sys.stderr)
        self._failures: list[str] = []
        self._in_line = False  # of a reply that has begun

    def show(self, event: Event) -> None:
        """Draw one event; a failure waits for the end of the reply's line."""
        if isinstance(event, ReplyDelta):
            self._out.write(printable(event.text, keep="\n\t"))
            self._in_line = True
        elif isinstance(event, SpeechFailed):
            self._failures.append(f"no speech: {event.error}")
        elif isinstance(event, TurnEnded):
            self._out.write("\n")
            self._in_line = False
            for failure in self._failures:
                self._notes.write_dim(printable(failure))
            self._failures.clear()

    def finish(self, record: dict[str, Any]) -> None:
        """Draw the line of latency.

        Raises:
            VoxError: the reply could not be written.
        """
        self._notes.write_dim(printable(latency_line(record)))
        self._out.check()

    def abandon(self) -> None:
        """End the line that a reply stands in."""
        if self._in_line:
            self._out.write("\n")


class JsonView:
    """For programs: one object on stdout, when the turn is over, in ASCII, which no terminal acts on."""

    def __init__(self, out: Output | None = None) -> None:
        self._out = out or Output(sys.stdout)

    def show(self, event: Event) -> None:
        """Draw nothing: the record says it all."""

    def finish(self, record: dict[str, Any]) -> None:
        """Print the record.

        Raises:
            VoxError: it could not be written.
        """
        self._out.write(json.dumps(record) + "\n")
        self._out.check()

    def abandon(self) -> None:
        """Leave nothing: nothing was printed."""


Show = Callable[[int, int], None]  # is told what is done, and what there is in all


@contextmanager
def download_progress() -> Iterator[Show]:
    """Give a function that shows (bytes done, bytes in all) on stderr, as the first one of `loading_progress`."""
    with loading_progress() as (fetching, _warming):
        yield fetching


@contextmanager
def loading_progress() -> Iterator[tuple[Show, Show]]:
    """Give two functions that show on stderr how far an engine is: the bytes of its download, the parts of its warm-up.

    Neither shows anything before its first call. Where stderr is a terminal, each draws a bar, one at a
    time; that of the warm-up goes away. Else there is a line for each tenth, and for each quarter.
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
    """Return what draws a bar, with the first call and in place of what is shown."""
    bar = Progress(*columns, console=Console(stderr=True), transient=goes_away)

    def show(done: int, total: int) -> None:
        if not bar.tasks:
            shown.close()
            shown.enter_context(bar)
            bar.add_task("")
        bar.update(bar.task_ids[0], completed=done, total=total)

    return show


def _lines(parts: int, line: Callable[[int, int], str]) -> Show:
    """Return what writes a line for each of so many equal parts."""
    notes = Output(sys.stderr)
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        part = parts * done // max(total, 1)
        if part > shown:
            shown = part
            notes.write(f"{line(done, total)}\n")

    return show


LINE_SECONDS = 10.0  # between lines of a run that nobody watches


class BatchLines:
    """Shows how far a batch is where stderr is no terminal: a line from time to time."""

    def __init__(self, notes: Output | None = None) -> None:
        self._notes = notes or Output(sys.stderr)
        self._due = LINE_SECONDS

    def show(self, status: Status) -> None:
        """Write a line if the last one was long enough ago."""
        if status.seconds >= self._due:
            self._due = status.seconds + LINE_SECONDS
            self.say(f"{status.done} of {status.items} · {status.pace} · {_left(status)}")

    def say(self, text: str) -> None:
        """Write a line now."""
        self._notes.write(printable(text) + "\n")


class BatchBar:
    """Shows how far a batch is on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, pace="", left="")

    def show(self, status: Status) -> None:
        """Move the bar."""
        self._progress.update(
            self._task, completed=status.done, total=status.items, pace=status.pace, left=_left(status)
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(printable(text), markup=False, highlight=False)


@contextmanager
def batch_progress() -> Iterator[BatchLines | BatchBar]:
    """Give what shows how far a batch is: a bar on a terminal, else lines."""
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
    """Return what a turn took, in one line."""
    timings, tokens = record["timings"], record["tokens"]
    parts = [
        f"{record['audio']['seconds']:.1f} s heard" if record["audio"] else "",
        f"first token {timings['first_token_seconds']:.2f} s" if timings["first_token_seconds"] is not None else "",
        f"first audio {timings['first_audio_seconds']:.2f} s" if timings["first_audio_seconds"] is not None else "",
        f"total {timings['total_seconds']:.2f} s",
        f"{tokens['prompt']} + {tokens['reply']} tokens",
        "interrupted" if record["interrupted"] else "",
    ]
    return " · ".join(part for part in parts if part)
