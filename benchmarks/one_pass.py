"""Measures one Voxtral pass beside transformers and the floors of the device: `python -m benchmarks.one_pass`.

The implementations run one after the other on one model. voxcli runs last, because it changes modules of the model.
voxcli with quantized weights runs on a model of its own, opened after the first one is freed. `figures` computes the
numbers from measurements and floors; `benchmarks.one_pass_report` makes the table.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from shlex import join
from shutil import get_terminal_size
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer

from benchmarks.baselines import (
    NAMES,
    QUANTIZED,
    SHOWN,
    Implementation,
    TurnMeasurement,
    TwoPasses,
    all_of,
    free_memory,
)
from benchmarks.command import (
    DeviceFlag,
    ForceFlag,
    JsonFlag,
    ModelFlag,
    command_line,
    note,
    require_writable,
    write_json,
)
from benchmarks.floors import Floors, floors, measure
from benchmarks.instrumentation import Forward, PeakMemory, forward_spans, own_seconds
from benchmarks.one_pass_report import record, table
from benchmarks.random_model import default_model, open_model
from benchmarks.report import median, spread
from benchmarks.script import CLIP_SECONDS, TOKENS_PER_WORD, Script
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.runtime.quantization import DTYPES
from voxcli.errors import ConfigError

TURNS_OF_INTEREST = (1, 10, 50)
GPU_SAMPLES, CPU_SAMPLES = 20, 5
FIRST_WORDS = 12
FIRST_TOKENS = round(FIRST_WORDS * TOKENS_PER_WORD)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    turns: int = 50  # length of the conversation; the first turn, the last and some between are measured
    samples: int | None = None  # samples of each measured turn; None for what suits the device
    reply_tokens: int = 40
    only: Sequence[str] = NAMES
    quantize: Format | None = None  # format of a second measurement of voxcli

    def measured_turns(self) -> list[int]:
        """Return the numbers of the turns that are measured."""
        return sorted({1, self.turns, *(number for number in TURNS_OF_INTEREST if number <= self.turns)})


@dataclass
class Result:
    """The measurements of one implementation, up to its failure if it failed."""

    name: str
    about: str = ""
    failure: str | None = None
    ready_seconds: float | None = None  # preparation and one warm-up turn
    first_seconds: dict[int, float] = field(default_factory=dict)  # first call at each turn, not counted
    turns: dict[int, list[TurnMeasurement]] = field(default_factory=dict)
    peak_bytes: int | None = None
    own_seconds: float | None = None  # decode loop beside the forward call, per token


def measure_all(
    model: str,
    device: str,
    plan: Plan,
    command: str,
    note: Callable[[str], None],
    opens: Callable[[str, str], Any] = open_model,
) -> dict[str, Any]:
    """Return the record of a run, see `one_pass_report.record`; `note` shows the progress.

    Args:
        model: random:SHAPE or a checkpoint; empty for the device's default.
        device: auto, cuda, mps or cpu.
        opens: returns the model of a name on a device.

    Raises:
        VoxError: the model can't be opened. An implementation that fails is part of the record.
    """
    name = model or default_model(device)
    note(f"{name} ...")
    with quiet():
        return _measure_all(name, device, plan, command, note, opens)


def _measure_all(
    name: str,
    device: str,
    plan: Plan,
    command: str,
    note: Callable[[str], None],
    opens: Callable[[str, str], Any],
) -> dict[str, Any]:
    opened = opens(name, device)
    kind, dtype, config, parameters = opened.device.type, opened.dtype, opened.config, opened.num_parameters()
    plan = replace(plan, samples=plan.samples or (CPU_SAMPLES if kind == "cpu" else GPU_SAMPLES))
    before = measure(kind, dtype)
    results = run(opened, plan, note)
    del opened  # both models together may not fit
    if plan.quantize:
        free_memory(kind)
        results.append(run_quantized(opens(name, device), plan.quantize, plan, note))
    results.sort(key=lambda result: SHOWN.index(result.name))
    speeds = before.best(measure(kind, dtype))  # a busy machine at one of the two measurements does not lower the bar
    turn_tokens = len(Script.of(config, reply_tokens=plan.reply_tokens).prompt(1))
    floors_with = partial(floors, config, speeds, turn_tokens=turn_tokens, bytes_per_weight=dtype.itemsize)
    least = floors_with()
    others = {QUANTIZED[form].name: floors_with(bytes_per_layer_weight=DTYPES[form].itemsize) for form in QUANTIZED}
    return record(
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        device=torch.cuda.get_device_name() if kind == "cuda" else kind,
        model={"name": name, "parameters": parameters, "dtype": str(dtype).removeprefix("torch.")},
        plan={
            **asdict(plan),
            "measured_turns": plan.measured_turns(),
            "turn_tokens": turn_tokens,
            "clip_seconds": CLIP_SECONDS,
            "first_words": FIRST_WORDS,
            "first_tokens": FIRST_TOKENS,
            "memory": PeakMemory(kind).about,
        },
        run={
            "speeds": asdict(speeds),
            "floors": floor_figures(least, plan.reply_tokens),
            "implementations": [
                {**each, "floors": floor_figures(others.get(each["name"], least), plan.reply_tokens)}
                for each in figures(results, least, others)
            ],
        },
    )


def floor_figures(least: Floors, reply_tokens: int) -> dict[str, float]:
    """Return the floors in the units of the figures beside them."""
    return {
        "encoder_ms": 1000 * least.encoder_seconds,
        "prefill_ms": 1000 * least.prefill_seconds,
        "first_token_ms": 1000 * least.first_token_seconds,
        "first_words_ms": 1000 * least.reply_seconds(min(FIRST_TOKENS, reply_tokens)),
        "whole_turn_ms": 1000 * least.reply_seconds(reply_tokens),
        "tokens_per_second": 1 / least.token_seconds,
    }


def run(model: Any, plan: Plan, note: Callable[[str], None]) -> list[Result]:
    """Measure each implementation; one that fails is reported and does not end the run."""
    script = Script.of(model.config, reply_tokens=plan.reply_tokens)
    implementations = all_of(model, script, plan.turns)
    wanted = [name for name in implementations if name in plan.only]
    return [_measured(name, implementations[name], model, plan, note) for name in wanted]


def run_quantized(model: Any, form: Format, plan: Plan, note: Callable[[str], None]) -> Result:
    """Measure voxcli with quantized weights; transformers can't run the model afterwards."""
    script, implementation = Script.of(model.config, reply_tokens=plan.reply_tokens), QUANTIZED[form]
    return _measured(implementation.name, lambda: implementation(model, script, plan.turns), model, plan, note)


def _measured(
    name: str, make: Callable[[], Implementation], model: Any, plan: Plan, note: Callable[[str], None]
) -> Result:
    note(f"{name} ...")
    result = Result(name)
    _measure(make, result, model, plan)
    if result.failure:
        note(f"{name} failed: {result.failure}")
    return result


def _measure(make: Callable[[], Implementation], result: Result, model: Any, plan: Plan) -> None:
    device = model.device.type
    peak = PeakMemory(device)
    free_memory(device)
    peak.reset()
    implementation = None
    try:
        implementation = make()
        result.about = implementation.about
        _measure_turns(implementation, result, model, plan)
        result.peak_bytes = peak.bytes()
    except Exception as error:  # noqa: BLE001 - one failure must not end the run
        result.failure = _reason(error)
    finally:
        if implementation:
            implementation.close()
        del implementation
        free_memory(device)


def _measure_turns(implementation: Implementation, result: Result, model: Any, plan: Plan) -> None:
    numbers = plan.measured_turns()
    started = time.perf_counter()
    implementation.prepare()
    for number in numbers:
        before = time.perf_counter()
        implementation.turn(number)
        result.first_seconds[number] = time.perf_counter() - before
        result.ready_seconds = result.ready_seconds or time.perf_counter() - started
    for _ in range(plan.samples or 1):  # turns alternate, so that a busy moment affects all of them
        for number in numbers:
            result.turns.setdefault(number, []).append(implementation.turn(number))
    if model.device.type == "cpu" and (forward := implementation.forward()):
        own = [_own_seconds(implementation, forward) for _ in range(plan.samples or 1)]
        known = [seconds for seconds in own if seconds is not None]
        result.own_seconds = median(known) if known else None


def _own_seconds(implementation: Implementation, forward: Forward) -> float | None:
    with forward_spans(forward) as spans:
        measured = implementation.turn(1)
    return own_seconds([measured.started + seconds for seconds in measured.token_seconds], spans)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def figures(
    results: Sequence[Result], least: Floors, others: Mapping[str, Floors] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return the numbers of each implementation, ratios to the floors beside them; milliseconds unless named otherwise.

    Args:
        others: floors of implementations with weights of another size, by name.
    """
    two = next((result for result in results if result.name == TwoPasses.name), Result(TwoPasses.name))
    return [
        {
            "name": result.name,
            "about": result.about,
            "failure": result.failure,
            "ready_seconds": result.ready_seconds,
            "peak_bytes": result.peak_bytes,
            "own_ms_a_token": None if result.own_seconds is None else round(1000 * result.own_seconds, 4),
            "turns": [
                {
                    "turn": number,
                    "first_call_seconds": result.first_seconds[number],
                    **turn_figures(measured, others.get(result.name, least)),
                    "of_two_passes": _ratio(measured, two.turns.get(number, [])),
                }
                for number, measured in result.turns.items()
            ],
        }
        for result in results
    ]


def turn_figures(measured: Sequence[TurnMeasurement], least: Floors) -> dict[str, Any]:
    """Return the numbers of one turn, from all its samples.

    `times_floor` is the median time over the floor, `of_floor` the median rate over the floor: both are 1 at the
    speed of the hardware.
    """
    replies = [each.token_seconds for each in measured]
    tokens = min(len(reply) for reply in replies)
    rates = [(len(reply) - 1) / (reply[-1] - reply[0]) for reply in replies if len(reply) > 1]
    first_tokens = min(FIRST_TOKENS, tokens)
    history = [1000 * each.history_seconds for each in measured if each.history_seconds is not None]
    return {
        "new_tokens": measured[-1].new_tokens,
        "cached_tokens": measured[-1].cached_tokens,
        "first_token": _against([reply[0] for reply in replies], least.first_token_seconds),
        "first_words": _against([reply[first_tokens - 1] for reply in replies], least.reply_seconds(first_tokens)),
        "whole_turn": _against([each.total_seconds for each in measured], least.reply_seconds(tokens)),
        "tokens_per_second": {
            "median": median(rates),
            "all": rates,
            "of_floor": median(rates) * least.token_seconds,
        },
        "prefill_history": spread(history) if history else None,
        "prefill_history_tokens": measured[-1].history_tokens,
    }


def _against(seconds: Sequence[float], floor: float) -> dict[str, Any]:
    return {**spread([1000 * each for each in seconds]), "times_floor": median(seconds) / floor}


def _ratio(measured: Sequence[TurnMeasurement], other: Sequence[TurnMeasurement]) -> float | None:
    if not other:
        return None
    return median([each.total_seconds for each in measured]) / median([each.total_seconds for each in other])


def one_pass(
    model: ModelFlag = "",
    device: DeviceFlag = "auto",
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=1, help="Turns of the conversation.")] = 50,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Per measured turn; 20, on a CPU 5.")
    ] = None,
    reply_tokens: Annotated[int, typer.Option("--reply-tokens", metavar="N", min=2, help="Tokens per reply.")] = 40,
    only: Annotated[str | None, typer.Option("--only", metavar="NAME,...", help=f"Some of {', '.join(NAMES)}.")] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", metavar="int8|fp8", help="Measure voxcli with 8-bit weights, too.")
    ] = None,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure one Voxtral pass beside transformers' `generate` and beside the floors of the device."""
    names = only.split(",") if only else list(NAMES)
    if unknown := next((name for name in names if name not in NAMES), None):
        raise ConfigError(
            f"there is no {unknown!r} to measure", hint=f"--only takes {', '.join(NAMES)}, commas between"
        )
    form = next((form for form in QUANTIZED if form == quantize), None)
    if quantize and form is None:
        raise ConfigError(f"there is no format {quantize!r}", hint=f"--quantize takes {' or '.join(QUANTIZED)}")
    require_writable(json, force=force)
    command = join(["python", "-m", "benchmarks.one_pass", *sys.argv[1:]])
    found = measure_all(model, device, Plan(turns, samples, reply_tokens, names, form), command, note)
    write_json(json, found)
    typer.echo(table(found, get_terminal_size().columns if sys.stdout.isatty() else None))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logging and warnings of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


app = command_line(one_pass)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.one_pass")
