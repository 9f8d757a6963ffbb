"""Shows the latency of spoken turns over time: stage by stage, per day, as tables, a picture or JSON."""

import io
import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from voxcli.chat.views.words import STAGES, percentiles
from voxcli.core.percentiles import percentile
from voxcli.core.storage.stored import SpokenTurn
from voxcli.printable import printable

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 30  # most turns, or groups of turns, in a sparkline
PICTURE_COLUMNS = 84
PICTURE_FONTS = re.compile(r"@font-face\s*\{[^}]*\}\s*")  # rich's picture fetches its font from a server


def as_json(turns: Sequence[SpokenTurn], session: str | None) -> dict[str, Any]:
    """Return the percentiles of each stage in ms, of all turns and per day; null for a stage that none reached."""
    days = [{"day": day, **_figures(of_day)} for day, of_day in _by_day(turns)]
    return {"session": session, **_figures(turns), "days": days}


def _figures(turns: Sequence[SpokenTurn]) -> dict[str, Any]:
    latencies = [turn.latency for turn in turns]
    return {"turns": len(turns), "latency": {stage: percentiles(latencies, stage) for stage in STAGES}}


def as_tables(turns: Sequence[SpokenTurn], session: str | None) -> str:
    """Return tables for standard output; days are local."""
    console = Console()
    with console.capture() as capture:
        console.print(_tables(turns, session))
    return capture.get()


def as_svg(turns: Sequence[SpokenTurn], session: str | None) -> str:
    """Return a picture of the tables that loads nothing."""
    console = Console(
        record=True, width=PICTURE_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(_tables(turns, session))
    return PICTURE_FONTS.sub("", console.export_svg(title="voxcli stats"))


def _tables(turns: Sequence[SpokenTurn], session: str | None) -> Group:
    figures = _figures(turns)
    reached = [stage for stage in STAGES if figures["latency"][stage]]
    where = f" in {printable(session)}" if session is not None else ""
    count = "1 spoken turn" if len(turns) == 1 else f"{len(turns)} spoken turns"
    parts: list[RenderableType] = [Text(f"{count}{where}; seconds from the end of speech", "bold"), ""]
    return Group(*parts, _stages(turns, reached), "", _days(turns, reached))


def _stages(turns: Sequence[SpokenTurn], reached: Sequence[str]) -> Table:
    table = _table("stage", "p50", "p95")
    table.add_column("oldest to newest", no_wrap=True)
    for stage in reached:
        known = [value for turn in turns if (value := getattr(turn.latency, stage)) is not None]
        table.add_row(STAGES[stage], *_seconds(turns, stage), Text(sparkline(known), "green"))
    return table


def _days(turns: Sequence[SpokenTurn], reached: Sequence[str]) -> Table:
    """Return a row for each day: its turns, and p50 and p95 of each stage."""
    table = _table("day", "turns", *(f"{STAGES[stage]}" for stage in reached))
    for day, of_day in _by_day(turns):
        table.add_row(day, str(len(of_day)), *(" ".join(_seconds(of_day, stage)) for stage in reached))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _seconds(turns: Sequence[SpokenTurn], stage: str) -> tuple[str, str]:
    """Return p50 and p95 of a stage in seconds; a dash if no turn reached it."""
    found = percentiles([turn.latency for turn in turns], stage)
    return (f"{found['p50'] / 1000:.2f}", f"{found['p95'] / 1000:.2f}") if found else ("-", "-")


def _by_day(turns: Sequence[SpokenTurn]) -> list[tuple[str, list[SpokenTurn]]]:
    """Group turns, the oldest first, by their local day."""
    days = groupby(turns, key=lambda turn: turn.created_at.astimezone().date().isoformat())
    return [(day, list(of_day)) for day, of_day in days]


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each value, or for the median of as many values as one column has to show."""
    columns = min(len(values), SPARK_COLUMNS)
    bounds = [len(values) * column // columns for column in range(columns + 1)] if columns else []
    medians = [percentile(values[start:end], 0.5) or 0.0 for start, end in pairwise(bounds)]
    most = max(medians, default=0.0)
    return "".join(SPARKS[min(7, int(8 * max(0.0, value) / most))] if most > 0 else SPARKS[0] for value in medians)
