"""Shows a results file to people: items, failures by kind, and latency."""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from voxcli.batch import report
from voxcli.batch.stats import Stats
from voxcli.core.percentiles import percentile
from voxcli.errors import ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.batch.report import ItemRow
    from voxcli.batch.stats import Failures

WIDE = 90  # columns of a terminal that has room for all figures
BINS = 8  # rows of the histogram
BAR_COLUMNS = 30  # the longest bar of the histogram

Cells = dict[str, str | Text]  # a row by its columns' names: numbers are str, texts are Text


@dataclass(frozen=True)
class Selection:
    """What is shown of a results file."""

    failed_only: bool = False
    most: int = 0  # rows; 0: all


@dataclass
class ResultsReader:
    """Reads a results file once: gives the selected rows and counts all records."""

    records: Iterator[dict[str, Any]]
    selection: Selection
    stats: Stats = field(default_factory=Stats)
    left_out: int = 0  # rows beyond `selection.most`

    def rows(self) -> "Iterator[ItemRow]":
        """Yield the selected rows. `stats` and `left_out` are complete after the last one."""
        given = 0
        for record in self.records:
            self.stats.add(record)
            if self.selection.failed_only and "error" not in record:
                continue
            if self.selection.most and given >= self.selection.most:
                self.left_out += 1
                continue
            given += 1
            yield report.row(record)


@contextmanager
def open_results(name: str, selection: Selection) -> Iterator[ResultsReader]:
    """Open a results file, or standard input for "-".

    Raises:
        ConfigError: it can't be read, or has another content.
    """
    with ExitStack() as stack:
        try:
            file = _standard_input() if name == "-" else stack.enter_context(_opened(name))
            lines = iter(file.readline, b"")
            yield ResultsReader(report.records(lines, "standard input" if name == "-" else name), selection)
        except OSError as error:
            raise ConfigError(
                f"can't read {printable(name)}: {error.strerror}", hint="name the file that `voxcli batch --out` wrote"
            ) from error


def _standard_input() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no results come from standard input", hint="voxcli results FILE.jsonl")
    return sys.stdin.buffer


def _opened(name: str) -> BinaryIO:
    try:
        return Path(name).expanduser().open("rb")
    except (ValueError, RuntimeError) as error:  # A null byte, or ~USER of an unknown user.
        raise OSError(None, str(error)) from error


def exported(reader: ResultsReader, format_: str) -> Iterator[str]:
    """Yield the selected rows in a format, piece by piece: csv, md or html."""
    if format_ == "csv":
        return report.as_csv(reader.rows())
    if format_ == "md":
        return report.as_markdown(reader.rows(), reader.stats)
    return report.as_html(reader.rows(), reader.stats)


def as_json(reader: ResultsReader) -> dict[str, Any]:
    """Return the counts, the latency, the failures by code, and the flaws of recordings by key."""
    for _ in reader.rows():
        pass
    stats = reader.stats
    return {
        "answered": stats.answered,
        "failed": stats.failed,
        "audio_seconds": round(stats.audio_seconds, 4),
        "reply_tokens": stats.reply_tokens,
        "first_token_seconds": {"p50": stats.first_token_seconds(0.5), "p95": stats.first_token_seconds(0.95)},
        "failures": {code: {"count": each.count, "first": each.first} for code, each in stats.failures.items()},
        "flaws": {key: {"count": each.count, "first": each.first} for key, each in stats.flaws.items()},
    }


def as_tables(reader: ResultsReader) -> str:
    """Return tables of the items, of the failures by kind, and of the latency, for standard output."""
    console = Console()
    with console.capture() as capture:
        console.print(_tables(reader, console.width, "█" if console.encoding.startswith("utf") else "#"))
    return capture.get()


def _tables(reader: ResultsReader, columns: int, bar: str) -> Group:
    items = [_item(row, with_all_figures=columns >= WIDE) for row in reader.rows()]
    stats = reader.stats
    failures = [_failures(code, each) for code, each in report.failures_by_count(stats)]
    nothing = "no item has failed" if stats.done else "no results yet"
    parts: list[RenderableType] = [_table(items, columns)] if items else [Text(nothing)]
    if reader.left_out:
        parts.append(Text(f"… and {reader.left_out} more; -n 0 shows all", "dim"))
    if failures:
        parts += ["", _table(failures, columns)]
    if stats.latencies:
        parts += ["", _table(_histogram(stats.latencies, bar), columns)]
    return Group(*parts, "", Text(report.summary(stats), "bold"))


def _item(row: "ItemRow", *, with_all_figures: bool) -> Cells:
    reply = Text(printable(row.error), "red") if row.error else Text(printable(" ".join(row.reply.split())))
    figures = {
        "audio": _seconds(row.audio_seconds),
        "first token": _seconds(row.first_token_seconds),
        "total": _seconds(row.total_seconds),
        "tokens": "" if row.reply_tokens is None else str(row.reply_tokens),
    }
    shown = figures if with_all_figures else {"first token": figures["first token"]}
    return {"item": Text(printable(row.id)), **shown, "reply": reply}


def _failures(code: str, failures: "Failures") -> Cells:
    return {
        "failures": Text(printable(code), "red"),
        "items": str(failures.count),
        "the first": Text(printable(failures.first)),
    }


def _histogram(latencies: "array[float]", bar: str) -> list[Cells]:
    """Return how many replies began within which time; one row holds all beyond the 95th percentile."""
    start, end = min(latencies), percentile(latencies, 0.95) or 0.0
    width = (end - start) / BINS or 1.0
    counts = Counter(max(0, min(BINS, math.ceil((seconds - start) / width - 1))) for seconds in latencies)
    return [
        {
            "first token": f"up to {min(start + (index + 1) * width, end):.2f} s"
            if index < BINS
            else f"over {end:.2f} s",
            "replies": str(count),
            "": Text(bar * max(1, BAR_COLUMNS * count // max(counts.values())), "green"),
        }
        for index, count in sorted(counts.items())
    ]


def _table(rows: list[Cells], columns: int) -> Table:
    """Return rows as a table, one line each: the first column takes at most a third, the last one what is left."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    left = columns
    for name in rows[0]:
        longest = max(cell_len(name), *(cell_len(str(row[name])) for row in rows))
        is_number = isinstance(rows[0][name], str)
        is_last = name == list(rows[0])[-1]
        width = left if is_last else longest if is_number else min(longest, columns // 3)
        left -= width + 2
        table.add_column(name, width=max(1, width), justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            *(_cut(cell, column.width or 1) for cell, column in zip(row.values(), table.columns, strict=True))
        )
    return table


def _cut(cell: str | Text, columns: int) -> Text:
    cell = Text(cell) if isinstance(cell, str) else cell
    cell.truncate(columns, overflow="ellipsis")
    return cell


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"
