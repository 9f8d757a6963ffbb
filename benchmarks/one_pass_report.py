"""The record of a run of `benchmarks.one_pass`: all measurements, as values for JSON and as a table."""

import io
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.report import machine

WIDE = 240  # columns without a terminal: enough to fold no cell
NOTHING, FAILED = "-", "failed"

Turn = dict[str, Any]


def record(
    *, command: str, date: str, device: str, model: dict[str, Any], plan: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """Return the record: the "speeds", "floors" and "implementations" of `run`, and what they depend on."""
    about = {**machine(), "device": device}
    return {"date": date, "command": command, "machine": about, "model": model, "plan": plan, **run}


def table(written: dict[str, Any], width: int | None = None) -> str:
    """Return a record as text: the implementations side by side, then the machine and the plan.

    Args:
        width: columns of the terminal; None for no limit.
    """
    implementations = written["implementations"]
    shown = Table(box=box.MARKDOWN, pad_edge=True)
    for title in ("what", "floor", *(implementation["name"] for implementation in implementations)):
        shown.add_column(title, overflow="fold")
    for row in rows(written):
        shown.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=width or WIDE, markup=False, highlight=False, emoji=False)
    console.print(shown)
    for line in _notes(written):
        console.print(line, soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def rows(written: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table: what, its floor, then one per implementation."""
    floors, plan, implementations = written["floors"], written["plan"], written["implementations"]
    reply, words = plan["reply_tokens"], min(plan["first_tokens"], plan["reply_tokens"])
    numbers = sorted({turn["turn"] for implementation in implementations for turn in implementation["turns"]})

    def floor(key: str, form: Callable[[float], str]) -> str:
        common, own = form(floors[key]), [(it["name"], form(it["floors"][key])) for it in implementations]
        return "; ".join([common, *(f"{text} {name}" for name, text in own if text != common)])

    def each(what: str, floor: str, cell: Callable[[Turn], str]) -> list[tuple[str, ...]]:
        return [
            (
                f"{what}, turn {number}",
                floor,
                *(_of_turn(implementation, number, cell) for implementation in implementations),
            )
            for number in numbers
        ]

    def once(what: str, cell: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (what, "", *(cell(implementation) for implementation in implementations))

    found = [
        *each("clip to first token", floor("first_token_ms", _ms), lambda turn: _time(turn["first_token"])),
        *each(
            f"clip to {words} tokens ({plan['first_words']} words)",
            floor("first_words_ms", _ms),
            lambda turn: _time(turn["first_words"]),
        ),
        *each(f"clip to the end, {reply} tokens", floor("whole_turn_ms", _ms), lambda turn: _time(turn["whole_turn"])),
        *each("the same, of two-pass's time", "", lambda turn: _number(turn["of_two_passes"], "{:.2f}")),
        *each("decoding, tokens/s", floor("tokens_per_second", "{:.0f}".format), _rate),
        *each("tokens fed, and cached", "", lambda turn: f"{turn['new_tokens']}, {turn['cached_tokens']}"),
        *each("history prefilled after the turn: tokens", "", _history),
        *each("first call, not counted above", "", lambda turn: f"{turn['first_call_seconds']:.2f} s"),
        once("decode loop less forward call, a token", lambda it: _number(it["own_ms_a_token"], "{:.3f} ms")),
        once("time to ready, one turn included", lambda it: _number(it["ready_seconds"], "{:.2f} s")),
        once("peak memory", lambda it: _number(it["peak_bytes"] and it["peak_bytes"] / 1e9, "{:.2f} GB")),
    ]
    return [row for row in found if any(cell not in {NOTHING, FAILED} for cell in row[2:])]


def _of_turn(implementation: dict[str, Any], number: int, cell: Callable[[Turn], str]) -> str:
    turns: Sequence[Turn] = implementation["turns"]
    return next(
        (cell(turn) for turn in turns if turn["turn"] == number), FAILED if implementation["failure"] else NOTHING
    )


def _time(figure: dict[str, Any]) -> str:
    return f"{_ms(figure['median_ms'])}, {_ms(figure['p95_ms'])} ({figure['times_floor']:.1f}x)"


def _rate(turn: Turn) -> str:
    rate = turn["tokens_per_second"]
    return f"{rate['median']:.1f} ({100 * rate['of_floor']:.0f} %)"


def _history(turn: Turn) -> str:
    history = turn["prefill_history"]
    return f"{turn['prefill_history_tokens']}, {_ms(history['median_ms'])}" if history else NOTHING


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _notes(written: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    model, plan, about, speeds = written["model"], written["plan"], written["machine"], written["speeds"]
    failed = [f"{it['name']} failed: {it['failure']}" for it in written["implementations"] if it["failure"]]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return [
        "",
        "Times: median, 95th percentile, and how many times the floor the median is. Rates: median, and its share of "
        "the floor.",
        *(f"{it['name']}: {it['about']}" for it in written["implementations"] if it["about"]),
        *failed,
        f"{model['name']}, {model['parameters'] / 1e6:.0f} M parameters, {model['dtype']}; "
        f"{plan['samples']} samples of each turn; clip of {plan['clip_seconds']:g} s; memory: {plan['memory']}.",
        f"Measured on {about['device']}: {speeds['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{speeds['flop_per_second'] / 1e12:.2f} TFLOP/s.",
        f"{about['cpu']}, {about['cores']} cores, {about['system']}; {versions}; {written['date']}.",
        f"$ {written['command']}",
    ]
