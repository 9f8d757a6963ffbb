"""`voxcli bench pass`: contenders run one after the other on one model, and their turns become figures.

voxcli comes last, for its decoder changes modules of the model; with quantized weights it has a model
of its own, opened when the other is gone. `run` and `run_quantized` measure, `figures` is pure:
measurements and floors in, numbers out; `bench` joins them, and the floors, into a record. How it is
shown is the business of `benchmarks.one_pass_report`.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.baselines import NAMES, QUANTIZED, SHOWN, Contender, Measured, TwoPasses, all_of, free_memory
from benchmarks.floors import Floors, floors, measure
from benchmarks.one_pass_report import record
from benchmarks.random_model import default_model, open_model
from benchmarks.report import median, spread
from benchmarks.script import CLIP_SECONDS, TOKENS_PER_WORD, Script
from benchmarks.instrumentation import Forward, PeakMemory, forward_spans, own_seconds
from voxcli.engines.quantization import DTYPES, Format

TURNS_OF_INTEREST = (1, 10, 50)
GPU_SAMPLES, CPU_SAMPLES = 20, 5
FIRST_WORDS = 12
FIRST_TOKENS = round(FIRST_WORDS * TOKENS_PER_WORD)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    turns: int = 50  # of the conversation; measured are the first, the last, and some between
    samples: int | None = None  # of each measured turn; None for as many as suit the device
    reply_tokens: int = 40
    only: Sequence[str] = NAMES
    quantize: Format | None = None  # voxcli's weights, in one contender more

    def measured_turns(self) -> list[int]:
        """Return the numbers of the turns that are measured."""
        return sorted({1, self.turns, *(number for number in TURNS_OF_INTEREST if number <= self.turns)})


@dataclass
class Standing:
    """What was measured of one contender, as far as it came."""

    name: str
    about: str = ""
    failure: str | None = None
    ready_seconds: float | None = None  # to prepare, and for one turn that is not counted
    first_seconds: dict[int, float] = field(default_factory=dict)  # of the first call at each turn, not counted
    turns: dict[int, list[Measured]] = field(default_factory=dict)
    peak_bytes: int | None = None
    own_seconds: float | None = None  # of the decode loop, for a token


def bench(
    model: str,
    device: str,
    plan: Plan,
    command: str,
    note: Callable[[str], None],
    opens: Callable[[str, str], Any] = open_model,
) -> dict[str, Any]:
    """Return the record of a run, see `pass_report.record`; `note` takes what is going on.

    Args:
        model: as `random_model.open_model` takes it; empty for what suits the device.
        device: auto, cuda, mps or cpu.
        opens: returns a model, by these two.

    Raises:
        VoxError: the model can't be had. A contender that fails is part of the record.
    """
    name = model or default_model(device)
    note(f"{name} ...")
    with quiet():
        return _bench(name, device, plan, command, note, opens)


def _bench(
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
    standings = run(opened, plan, note)
    del opened  # both models together may not fit
    if plan.quantize:
        free_memory(kind)
        standings.append(run_quantized(opens(name, device), plan.quantize, plan, note))
    standings.sort(key=lambda standing: SHOWN.index(standing.name))
    speeds = before.best(measure(kind, dtype))  # neither a busy beginning nor a busy end lowers the bar
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
            "contenders": [
                {**each, "floors": floor_figures(others.get(each["name"], least), plan.reply_tokens)}
                for each in figures(standings, least, others)
            ],
        },
    )


def floor_figures(least: Floors, reply_tokens: int) -> dict[str, float]:
    """Return the floors as the figures beside them are given."""
    return {
        "encoder_ms": 1000 * least.encoder_seconds,
        "prefill_ms": 1000 * least.prefill_seconds,
        "first_token_ms": 1000 * least.first_token_seconds,
        "first_words_ms": 1000 * least.reply_seconds(min(FIRST_TOKENS, reply_tokens)),
        "whole_turn_ms": 1000 * least.reply_seconds(reply_tokens),
        "tokens_per_second": 1 / least.token_seconds,
    }


def run(model: Any, plan: Plan, note: Callable[[str], None]) -> list[Standing]:
    """Measure each contender; one that fails is reported and does not end the run."""
    script = Script.of(model.config, reply_tokens=plan.reply_tokens)
    contenders = all_of(model, script, plan.turns)
    wanted = [name for name in contenders if name in plan.only]
    return [_measured(name, contenders[name], model, plan, note) for name in wanted]


def run_quantized(model: Any, form: Format, plan: Plan, note: Callable[[str], None]) -> Standing:
    """Measure voxcli with quantized weights; transformers can't run the model afterwards."""
    script, contender = Script.of(model.config, reply_tokens=plan.reply_tokens), QUANTIZED[form]
    return _measured(contender.name, lambda: contender(model, script, plan.turns), model, plan, note)


def _measured(
    name: str, make: Callable[[], Contender], model: Any, plan: Plan, note: Callable[[str], None]
) -> Standing:
    note(f"{name} ...")
    standing = Standing(name)
    _measure(make, standing, model, plan)
    if standing.failure:
        note(f"{name} failed: {standing.failure}")
    return standing


def _measure(make: Callable[[], Contender], standing: Standing, model: Any, plan: Plan) -> None:
    device = model.device.type
    peak = PeakMemory(device)
    free_memory(device)
    peak.reset()
    contender = None
    try:
        contender = make()
        standing.about = contender.about
        _measure_turns(contender, standing, model, plan)
        standing.peak_bytes = peak.bytes()
    except Exception as error:  # noqa: BLE001 - whatever stops one contender, the others are worth measuring
        standing.failure = _reason(error)
    finally:
        if contender:
            contender.close()
        del contender
        free_memory(device)


def _measure_turns(contender: Contender, standing: Standing, model: Any, plan: Plan) -> None:
    numbers = plan.measured_turns()
    started = time.perf_counter()
    contender.prepare()
    for number in numbers:
        before = time.perf_counter()
        contender.turn(number)
        standing.first_seconds[number] = time.perf_counter() - before
        standing.ready_seconds = standing.ready_seconds or time.perf_counter() - started
    for _ in range(plan.samples or 1):  # the turns in turn, so that a busy moment does not hit one of them alone
        for number in numbers:
            standing.turns.setdefault(number, []).append(contender.turn(number))
    if model.device.type == "cpu" and (forward := contender.forward()):
        own = [_own_seconds(contender, forward) for _ in range(plan.samples or 1)]
        known = [seconds for seconds in own if seconds is not None]
        standing.own_seconds = median(known) if known else None


def _own_seconds(contender: Contender, forward: Forward) -> float | None:
    with forward_spans(forward) as spans:
        measured = contender.turn(1)
    return own_seconds([measured.started + seconds for seconds in measured.token_seconds], spans)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def figures(
    standings: Sequence[Standing], least: Floors, others: Mapping[str, Floors] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return the numbers of each contender, ratios to the floors beside them; milliseconds unless named otherwise.

    Args:
        others: floors of contenders that have their own.
    """
    two = next((standing for standing in standings if standing.name == TwoPasses.name), Standing(TwoPasses.name))
    return [
        {
            "name": standing.name,
            "about": standing.about,
            "failure": standing.failure,
            "ready_seconds": standing.ready_seconds,
            "peak_bytes": standing.peak_bytes,
            "own_ms_a_token": None if standing.own_seconds is None else round(1000 * standing.own_seconds, 4),
            "turns": [
                {
                    "turn": number,
                    "first_call_seconds": standing.first_seconds[number],
                    **turn_figures(measured, others.get(standing.name, least)),
                    "of_two_passes": _ratio(measured, two.turns.get(number, [])),
                }
                for number, measured in standing.turns.items()
            ],
        }
        for standing in standings
    ]


def turn_figures(measured: Sequence[Measured], least: Floors) -> dict[str, Any]:
    """Return the numbers of one turn, from all its samples.

    `times_floor` and `of_floor` say how the median stands to the floor: 1 is the hardware's own speed, and
    worse is more of the one and less of the other.
    """
    replies = [each.token_seconds for each in measured]
    tokens = min(len(reply) for reply in replies)
    rates = [(len(reply) - 1) / (reply[-1] - reply[0]) for reply in replies if len(reply) > 1]
    first_tokens = min(FIRST_TOKENS, tokens)
    settled = [1000 * each.settle_seconds for each in measured if each.settle_seconds is not None]
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
        "settle": spread(settled) if settled else None,
        "settle_tokens": measured[-1].settle_tokens,
    }


def _against(seconds: Sequence[float], floor: float) -> dict[str, Any]:
    return {**spread([1000 * each for each in seconds]), "times_floor": median(seconds) / floor}


def _ratio(measured: Sequence[Measured], other: Sequence[Measured]) -> float | None:
    if not other:
        return None
    return median([each.total_seconds for each in measured]) / median([each.total_seconds for each in other])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep advice for programmers from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
