"""The only module that draws: what a person reads of a turn, and what a program reads.

The reply goes to stdout, everything else to stderr, dim where that is a terminal. It knows events and
records, not how they came about.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from voxcli.errors import VoxError
from voxcli.printable import printable
from voxcli.turn import Event, ReplyDelta, SpeechFailed, TurnEnded


class View(Protocol):
    """Shows the events of a turn."""

    def show(self, event: Event) -> None: ...

    def finish(self, record: dict[str, Any]) -> None: ...


class Output:
    """Standard output that may close or fill up while a turn runs: the turn goes on, the failure is kept."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.failure: OSError | None = None

    def write(self, text: str) -> None:
        """Write text at once, unless writing has failed before."""
        if self.failure:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self.failure = error
            self._give_up()

    def check(self) -> None:
        """Raise VoxError if not all was written, unless it was the reader who had enough."""
        if self.failure and not isinstance(self.failure, BrokenPipeError):
            raise VoxError(f"can't write the reply: {self.failure.strerror}") from self.failure

    def _give_up(self) -> None:
        """Let the rest of the output go nowhere, or the interpreter fails at its last flush."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


class TextView:
    """For people: the reply as it streams, then one dim line of what it took."""

    def __init__(self, out: Output | None = None, notes: Console | None = None) -> None:
        self.out = out or Output()
        self._notes = notes or Console(stderr=True, highlight=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, ReplyDelta):
            self.out.write(printable(event.text, keep="\n"))
        elif isinstance(event, TurnEnded):
            self.out.write("\n")
        elif isinstance(event, SpeechFailed):
            self._note(f"no speech: {event.error}")

    def finish(self, record: dict[str, Any]) -> None:
        """Draw the line of latency."""
        self._note(latency_line(record))
        self.out.check()

    def _note(self, text: str) -> None:
        self._notes.print(printable(text), style="dim", markup=False)


class JsonView:
    """For programs: one object on stdout, when the turn is over."""

    def __init__(self, out: Output | None = None) -> None:
        self.out = out or Output()

    def show(self, event: Event) -> None:
        """Draw nothing: the record says it all."""

    def finish(self, record: dict[str, Any]) -> None:
        """Print the record."""
        self.out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.out.check()


@contextmanager
def download_progress() -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows (bytes done, bytes in all) on stderr, and shows nothing before its first call.

    It draws a bar where stderr is a terminal, else it prints a line for each tenth.
    """
    if not sys.stderr.isatty():
        yield _tenths()
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(*columns, console=Console(stderr=True))))
                bars[0].add_task("")
            bars[0].update(bars[0].task_ids[0], completed=done, total=total)

        yield show


def _tenths() -> Callable[[int, int], None]:
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            print(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB", file=sys.stderr, flush=True)  # noqa: T201

    return show


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
