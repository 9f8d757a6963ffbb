"""Reads a results file for people: one row per item, as CSV, Markdown or HTML.

Ids, replies and errors are untrusted: in none of the formats can they change the structure of the document, drive the
terminal, or run as a formula of a spreadsheet.
"""

import csv
import html
import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from voxcli.batch.results import LINE_BYTES, parsed_record
from voxcli.batch.stats import Failures, Stats, number
from voxcli.errors import ConfigError
from voxcli.printable import printable

FLAW_NAMES = {
    "damaged_seconds": "damaged recordings (damaged_seconds)",
    "cancelled_seconds": "recordings whose channels cancel each other (cancelled_seconds)",
    "gain_db": "recordings beyond full scale (gain_db)",
}
FORMULA = "=+-@\t\r"  # characters that make spreadsheets take a cell for a formula, by OWASP's list
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>voxcli results</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse } th, td { padding: .3em .8em; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #ccc } td.number { text-align: right } td.error { color: #b00 }
</style>
"""


class ItemRow(NamedTuple):
    """An item of a results file. Seconds and tokens are None where the item failed or has none."""

    id: str
    audio_seconds: float | None
    first_token_seconds: float | None
    total_seconds: float | None
    reply_tokens: int | None
    reply: str
    error: str


def records(file: Iterable[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a results file; a torn line at its end is left out.

    Args:
        file: the lines.
        name: what an error calls the file.

    Raises:
        ConfigError: a line is no record of a batch.
    """
    for index, line in enumerate(file, start=1):
        record = parsed_record(line) if len(line) <= LINE_BYTES else None
        if record is not None:
            yield record
        elif line.endswith(b"\n"):
            raise ConfigError(
                f"{printable(name)}, line {index}: not a record of voxcli batch",
                hint="name a file that `voxcli batch --out FILE` has written",
            )


def row(record: dict[str, Any]) -> ItemRow:
    """Return the row of a record."""
    if error := record.get("error"):
        return ItemRow(record["id"], None, None, None, None, "", f"{error['code']}: {error['message']}")
    tokens = number(record, "tokens", "reply")
    return ItemRow(
        record["id"],
        number(record, "audio", "seconds"),
        number(record, "timings", "first_token_seconds"),
        number(record, "timings", "total_seconds"),
        None if tokens is None else int(tokens),
        record["reply"],
        "",
    )


def as_csv(rows: Iterable[ItemRow]) -> Iterator[str]:
    """Yield a CSV file line by line, with a header. A cell that could be a formula begins with an apostrophe."""
    yield _csv_line(ItemRow._fields)
    for each in rows:
        yield _csv_line([f"'{cell}" if _is_formula(cell) else cell for cell in each])


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and cell.startswith(tuple(FORMULA))


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([printable(cell, keep="\n\t") if isinstance(cell, str) else cell for cell in cells])
    return line.getvalue()


def as_markdown(rows: Iterable[ItemRow], stats: Stats) -> Iterator[str]:
    """Yield a Markdown table piece by piece; `stats`, filled while the rows are read, is written at the end."""
    yield f"| {' | '.join(ItemRow._fields)} |\n|{' --- |' * len(ItemRow._fields)}\n"
    for each in rows:
        yield f"| {' | '.join(map(_markdown_cell, each))} |\n"
    yield f"\n{summary(stats)}\n"


def _markdown_cell(cell: object) -> str:
    """Return a cell in which no text is markup: every ASCII punctuation character is escaped."""
    if not isinstance(cell, str):
        return "" if cell is None else f"{cell:g}"
    text = printable(" ".join(cell.split()))
    return "".join(f"\\{char}" if char.isascii() and not (char.isalnum() or char == " ") else char for char in text)


def as_html(rows: Iterable[ItemRow], stats: Stats) -> Iterator[str]:
    """Yield an HTML page piece by piece; it loads nothing. `stats`, filled while the rows are read, ends it."""
    yield f"{PAGE}<h1>Results</h1>\n<table><tr>{''.join(f'<th>{field}' for field in ItemRow._fields)}\n"
    for each in rows:
        yield f"<tr>{''.join(map(_html_cell, ItemRow._fields, each))}\n"
    yield f"</table>\n<p>{html.escape(summary(stats))}\n"


def _html_cell(field: str, cell: object) -> str:
    if not isinstance(cell, str):
        return f'<td class="number">{"" if cell is None else format(cell, "g")}'
    return f'<td class="{field}">{html.escape(printable(cell, keep=chr(10)))}'


def summary(stats: Stats) -> str:
    """Return the counts, the latency and the flaws in one line."""
    parts = [
        f"{stats.answered} answered",
        f"{stats.failed} failed" if stats.failed else "",
        f"{stats.audio_seconds / 60:.1f} min of audio",
        f"{stats.reply_tokens} tokens of replies",
        latency(stats),
        *(printable(line) for line in flaws_in_words(stats)),
    ]
    return " · ".join(part for part in parts if part)


def latency(stats: Stats) -> str:
    """Return the time to first token in words; empty without replies."""
    median, p95 = stats.first_token_seconds(0.5), stats.first_token_seconds(0.95)
    return "" if median is None or p95 is None else f"first token median {median:.2f} s, p95 {p95:.2f} s"


def failures_by_count(stats: Stats) -> list[tuple[str, Failures]]:
    """Return the failures by code, the most frequent code first."""
    return sorted(stats.failures.items(), key=lambda each: (-each[1].count, each[0]))


def flaws_in_words(stats: Stats) -> list[str]:
    """Return a line for each flaw of recordings: what it is, how many have it, and the id of the first."""
    return [f"{FLAW_NAMES[key]}: {each.count}, the first {each.first}" for key, each in sorted(stats.flaws.items())]
