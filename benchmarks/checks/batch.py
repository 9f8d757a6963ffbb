"""Step d: a batch of replies decoded together, beside the same clips one by one and transformers' `generate`."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from benchmarks.baselines import Generate, free_memory
from benchmarks.checks.findings import Notebook
from benchmarks.checks.lab import Answer, Lab, ask, clip
from benchmarks.floors import synchronize
from benchmarks.random_model import open_model
from benchmarks.script import Script
from voxcli.audio.clip import AudioClip
from voxcli.core.session import Session

TIMES_GENERATE = 15.0  # the bar on a GPU
CLIP_SECONDS = 5.0

Result = TypeVar("Result")


def check(lab: Lab, note: Notebook) -> None:
    """Answer the clips one by one and together with one engine, then with `generate`."""
    clips = [clip(number, CLIP_SECONDS) for number in range(lab.sizes.clips)]
    singles = clips[: lab.sizes.singles]
    with lab.engine(note.message, context_tokens=lab.sizes.small_context) as engine:
        ask(engine, Session(), clips[-1])
        alone, alone_pace = _timed(singles, lambda spoken: ask(engine, Session(), spoken))
        note.measured("one by one", f"{alone_pace:.2f} clips/s", clips_per_second=alone_pace)
        many = engine.for_many()
        ask(many, Session(), clips[-1])
        with closing(many), ThreadPoolExecutor(many.replies_at_once, "callers") as threads:
            started = time.perf_counter()
            together = list(threads.map(lambda spoken: ask(many, Session(), spoken), clips))
            pace = len(clips) / (time.perf_counter() - started)
    tokens = sum(len(answer.ids) for answer in together)
    note.measured(
        f"{len(clips)} clips together",
        f"{pace:.2f} clips/s, {pace * tokens / len(clips):.0f} tokens/s",
        clips_per_second=pace,
    )
    _compare(lab, note, alone, together)
    _compare_with_generate(lab, note, singles, pace)


def _compare(lab: Lab, note: Notebook, alone: Sequence[Answer], together: Sequence[Answer]) -> None:
    passes = {answer.report.model_passes for answer in together}
    note.require("model passes a reply", passes == {1}, sorted(passes), 1)
    lengths = {len(answer.ids) for answer in together}
    note.require("tokens of a reply", lengths == {lab.sizes.reply_tokens}, sorted(lengths), lab.sizes.reply_tokens)
    equal = sum(one.ids == other.ids for one, other in zip(alone, together, strict=False))
    what, measured = "replies that are the same together and one by one", f"{equal} of {len(alone)}"
    if lab.emulated:
        note.require(what, equal == len(alone), measured, "all, in float32")
    else:
        note.measured(what, measured, equal=equal, compared=len(alone))


def _compare_with_generate(lab: Lab, note: Notebook, clips: Sequence[AudioClip], pace: float) -> None:
    model = open_model(str(lab.checkpoint), lab.device)
    contender = Generate(model, Script.of(model.config, reply_tokens=lab.sizes.reply_tokens))
    contender.answer(clips[0])
    synchronize(lab.device)
    _, generate_pace = _timed(clips, contender.answer)
    del contender, model
    free_memory(lab.device)
    times = pace / generate_pace
    note.bar(
        "together against transformers' generate",
        None if lab.emulated else times >= TIMES_GENERATE,
        f"{times:.1f} times as fast",
        f"at least {TIMES_GENERATE:.0f} times",
        ratio=times,
        generate_clips_per_second=generate_pace,
    )


def _timed(clips: Sequence[AudioClip], answer: Callable[[AudioClip], Result]) -> tuple[list[Result], float]:
    """Return the answers, and their number per second."""
    started = time.perf_counter()
    answers = [answer(spoken) for spoken in clips]
    return answers, len(clips) / (time.perf_counter() - started)
