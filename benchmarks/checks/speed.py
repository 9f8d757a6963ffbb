"""Step c: the times of turns 1, 10 and 50, beside the floors of the device and two passes."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.baselines import TwoPasses, free_memory
from benchmarks.checks.findings import Notebook, describe
from benchmarks.checks.lab import Answer, Lab, ask, clip, text_of
from benchmarks.floors import Floors, floors, measure
from benchmarks.random_model import open_model
from benchmarks.report import median
from benchmarks.script import Script
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.engine import VoxtralEngine

TURNS = (1, 10, 50)
OF_FLOOR, FIRST_TOKEN_MS, OF_TWO_PASSES = 0.8, 20.0, 0.55  # the bars on an H200
PROFILED_KERNELS = 12


@dataclass(frozen=True)
class Turn:
    """The medians of one turn's samples."""

    number: int
    first_token_ms: float
    tokens_per_second: float
    seconds: float  # from the clip to the last token


def check(lab: Lab, note: Notebook) -> None:
    """Measure the engine, then two passes of transformers with the same weights."""
    least = _floors(lab)
    with lab.engine(note.message) as engine:
        turns = [_turn(lab, engine, number) for number in TURNS]
        for turn in turns:
            _take_down(lab, note, turn, least)
        try:
            note.measured("where the time of a turn goes", _profile(engine, lab))
        except RuntimeError as error:  # the profiler needs rights that a container may lack
            note.measured("where the time of a turn goes", f"not known: {describe(error)}")
    two = _two_passes(lab)
    note.bar(
        "one pass of two passes' time, turn 1",
        None if lab.emulated else turns[0].seconds <= OF_TWO_PASSES * two,
        f"{turns[0].seconds / two:.2f}",
        f"at most {OF_TWO_PASSES:.2f}",
        one_seconds=turns[0].seconds,
        two_seconds=two,
    )


def _take_down(lab: Lab, note: Notebook, turn: Turn, least: Floors) -> None:
    of_floor = turn.tokens_per_second * least.token_seconds
    floor_ms = 1000 * least.first_token_seconds
    on_gpu = not lab.emulated
    note.bar(
        f"clip to first token, turn {turn.number}",
        turn.first_token_ms <= FIRST_TOKEN_MS if on_gpu else None,
        f"{turn.first_token_ms:.1f} ms, floor {floor_ms:.1f} ms",
        f"at most {FIRST_TOKEN_MS:.0f} ms",
        ms=turn.first_token_ms,
        floor_ms=floor_ms,
    )
    note.bar(
        f"decoding, turn {turn.number}",
        of_floor >= OF_FLOOR if on_gpu else None,
        f"{turn.tokens_per_second:.0f} tokens/s, {100 * of_floor:.0f} % of the floor",
        f"at least {100 * OF_FLOOR:.0f} %",
        tokens_per_second=turn.tokens_per_second,
        of_floor=of_floor,
    )


def _turn(lab: Lab, engine: VoxtralEngine, number: int) -> Turn:
    """Measure a turn after `number` - 1 others, after a warm-up sample."""
    session = _history(lab, number - 1)
    answers = []
    for sample in range(1 + lab.sizes.samples):
        engine.prefill_history(session)
        answers.append(ask(engine, session, clip(1000 * number + sample)))
    return _medians(number, answers[1:])


def _medians(number: int, answers: list[Answer]) -> Turn:
    return Turn(
        number,
        median([1000 * answer.first_token_seconds for answer in answers]),
        median([answer.tokens_per_second for answer in answers]),
        median([answer.token_seconds[-1] for answer in answers]),
    )


def _history(lab: Lab, turns: int) -> Session:
    """Return a session with a number of turns, whose replies are as long as the measured ones."""
    session = Session()
    for number in range(turns):
        reply = text_of(range(1300 + number, 1300 + number + lab.sizes.reply_tokens))
        session = session.add(Utterance(clip(number)).answered(reply))
    return session


def _two_passes(lab: Lab) -> float:
    """Return the seconds that a reply and a transcription take, one after the other."""
    model = open_model(str(lab.checkpoint), lab.device)
    contender = TwoPasses(model, Script.of(model.config, reply_tokens=lab.sizes.reply_tokens))
    contender.turn(1)
    seconds = median([contender.turn(1).total_seconds for _ in range(lab.sizes.samples)])
    del contender, model
    free_memory(lab.device)
    return seconds


def _floors(lab: Lab) -> Floors:
    config: Any = transformers.VoxtralConfig.from_pretrained(lab.checkpoint, local_files_only=True)
    dtype: torch.dtype = getattr(torch, lab.need(lab.checkpoint, "none", lab.sizes.context)[0])
    prompt = Script.of(config, reply_tokens=1).prompt(1)
    speeds = measure(lab.device, dtype)
    free_memory(lab.device)
    return floors(config, speeds, turn_tokens=len(prompt), bytes_per_weight=dtype.itemsize)


def _profile(engine: VoxtralEngine, lab: Lab) -> str:
    """Return the slowest parts of a turn: kernels on a GPU, operations on a CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if lab.device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        ask(engine, Session(), clip(77))
    parts = sorted(profiler.key_averages(), key=lambda part: -_own_microseconds(part))
    listed = (
        f"{_own_microseconds(part) / 1000:.2f} ms {part.count} x {part.key[:80]}" for part in parts[:PROFILED_KERNELS]
    )
    return "; ".join(listed)


def _own_microseconds(part: Any) -> float:
    return float(part.self_device_time_total or part.self_cpu_time_total)
