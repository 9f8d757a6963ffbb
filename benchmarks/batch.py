"""`voxcli bench many`: clips answered together, and the same clips one after the other, in one run.

    generate     transformers, one clip after the other, as its documentation shows it
    one by one   voxcli's decoder, as `once` and `chat` use it
    together     the engine of `voxcli batch`: threads that ask, rows that are decoded together

All take the samples of clips, and give replies of one length, or of several, one after the other. Prompts are
those of `benchmarks.script`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from voxcli.audio import SAMPLE_RATE, AudioClip
from benchmarks.baselines import Generate, free_memory, front_end
from benchmarks.floors import synchronize
from benchmarks.one_pass import quiet
from benchmarks.random_model import default_model, open_model
from benchmarks.report import Figure
from benchmarks.script import Script
from benchmarks.instrumentation import Forward, forward_spans
from voxcli.engines import loading, placement
from voxcli.engines.decoder import Decoder, Sampling
from voxcli.engines.features import FrontEnd
from voxcli.engines.many import ManyReplies
from voxcli.engines.rows import Rows
from voxcli.session import Session
from voxcli.turn import Utterance

GPU_BAR, CPU_BAR = 15.0, 3.0  # times `generate`; times one by one
ROWS = {"cuda": 64, "mps": 32, "cpu": 32}
REPLY_TOKENS = {"cpu": (48, 256)}  # the bar says nothing of the length; 256 is `reply.max_tokens`
GPU_REPLY_TOKENS = (48,)
SPARE = 8  # tokens of a cache beside prompt and reply
PARTS = {"_encode": "encoder", "_prefill": "prompts", "_step": "decoding"}  # of `Rows`


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    clips: int = 64
    singles: int = 8  # of these clips, how many are answered one after the other
    clip_seconds: float = 5.0
    reply_tokens: Sequence[int] = ()  # lengths of replies; empty: what suits the device
    rows: int | None = None  # None: likewise


@dataclass
class Taken:
    """What a way took."""

    seconds: float
    replies: list[list[int]]  # empty where nobody compares them
    clips: int
    reply_tokens: int
    parts: dict[str, float] = field(default_factory=dict)  # seconds in each, where calls return when they are done

    @property
    def pace(self) -> float:
        """Clips a second."""
        return self.clips / self.seconds


class Ids:
    """A tokenizer whose text is ids in digits."""

    controls: dict[str, int] = {}  # noqa: RUF012 - there are none

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_bytes(self, token_id: int) -> bytes:
        return f"{token_id} ".encode()


def bench(model: str, device: str, plan: Plan, note: Callable[[str], None]) -> list[Figure]:
    """Return the figures of a run; `note` takes what is going on.

    Args:
        model: as `random_model.open_model` takes it; empty for what suits the device.
        device: auto, cuda, mps or cpu.

    Raises:
        VoxError: the model can't be had, or there is not enough memory.
    """
    with quiet():
        opened = open_model(model or default_model(device), device)
        kind = opened.device.type
        plan = replace(plan, rows=plan.rows or ROWS[kind])
        found = []
        for tokens in plan.reply_tokens or REPLY_TOKENS.get(kind, GPU_REPLY_TOKENS):
            found += figures(*_measured(opened, plan, tokens, note), plan, opened)
    return found


def _measured(model: Any, plan: Plan, reply_tokens: int, note: Callable[[str], None]) -> tuple[Taken, Taken, Taken]:
    """Measure the three ways."""
    script = Script.of(model.config, reply_tokens=reply_tokens)
    clips = [_clip(number, plan.clip_seconds) for number in range(plan.clips)]
    note(f"replies of {reply_tokens} tokens: generate, one after the other ...")
    generated = _generate(model, script, clips[: plan.singles])
    note("voxcli, one by one ...")
    decoder = Decoder(model, capacity=len(script.prompt(1)) + reply_tokens + SPARE)
    single = _one_by_one(model, decoder, script, clips[: plan.singles])
    note("voxcli, together ...")
    return generated, single, _together(model, decoder, script, clips, plan.rows or 1)


def figures(generated: Taken, single: Taken, together: Taken, plan: Plan, model: Any) -> list[Figure]:
    """Return what the measurements with one length of replies come to."""
    on_gpu = model.device.type == "cuda"
    per_single, per_generated = together.pace / single.pace, together.pace / generated.pace
    equal = sum(one == many for one, many in zip(single.replies, together.replies, strict=False))
    exact, length = model.dtype is torch.float32, f"{together.reply_tokens} tokens: "
    return [
        _figure(f"{length}transformers' generate, one after the other", generated, plan),
        _figure(f"{length}voxcli, one by one", single, plan),
        _figure(f"{length}voxcli, together, {plan.rows} rows", together, plan),
        Figure(
            f"{length}together against generate",
            f"{per_generated:.1f} times",
            f"at least {GPU_BAR:.0f} times" if on_gpu else "",
            per_generated >= GPU_BAR if on_gpu else None,
            {"ratio": per_generated},
        ),
        Figure(
            f"{length}together against one by one",
            f"{per_single:.1f} times",
            "" if on_gpu else f"at least {CPU_BAR:.0f} times",
            None if on_gpu else per_single >= CPU_BAR,
            {"ratio": per_single},
        ),
        Figure(
            f"{length}replies that are the same together and one by one, token for token",
            f"{equal} of {len(single.replies)}",
            "all, in float32" if exact else "",
            equal == len(single.replies) if exact else None,
            {"equal": equal, "compared": len(single.replies)},
        ),
    ]


def _figure(what: str, taken: Taken, plan: Plan) -> Figure:
    parts = {name: seconds / taken.clips for name, seconds in taken.parts.items()}
    where = "".join(f"; {name} {1000 * seconds:.0f} ms" for name, seconds in parts.items())
    per_clip = 1000 / taken.pace
    return Figure(
        what,
        f"{taken.clips} clips in {taken.seconds:.1f} s: {per_clip:.0f} ms a clip{where}; "
        f"{taken.pace * taken.reply_tokens:.0f} tokens/s, {taken.pace * plan.clip_seconds:.0f} audio hours an hour",
        values={
            "clips": taken.clips,
            "reply_tokens": taken.reply_tokens,
            "seconds": taken.seconds,
            "part_seconds_a_clip": parts,
        },
    )


def _generate(model: Any, script: Script, clips: Sequence[AudioClip]) -> Taken:
    contender = Generate(model, script)
    contender.answer(clips[0])
    synchronize(model.device.type)
    started = time.perf_counter()
    for clip in clips:
        contender.answer(clip)
    taken = Taken(time.perf_counter() - started, [], len(clips), script.reply_tokens)
    free_memory(model.device.type)
    return taken


def _one_by_one(model: Any, decoder: Decoder, script: Script, clips: Sequence[AudioClip]) -> Taken:
    spectrograms, ids = _spectrograms(model), script.prompt(1)
    sampling = Sampling(script.reply_tokens, frozenset())
    decoder.warm_up(sampling)

    def answer(clip: AudioClip) -> list[int]:
        decoder.prefill(ids, spectrograms.features(clip))
        return list(decoder.stream(sampling, threading.Event()))

    answer(clips[0])
    started = time.perf_counter()
    replies = [answer(clip) for clip in clips]
    return Taken(time.perf_counter() - started, replies, len(clips), script.reply_tokens)


def _together(model: Any, decoder: Decoder, script: Script, clips: Sequence[AudioClip], rows: int) -> Taken:
    spectrograms, ids, device = _spectrograms(model), script.prompt(1), str(model.device.type)
    decoding = decoder.rows(
        Sampling(script.reply_tokens, frozenset()),
        most=rows,
        longest=len(ids) + script.reply_tokens + SPARE,
        free_bytes=lambda: loading.known_free_bytes(device, placement.Hardware.look(torch)),
        is_out_of_memory=loading.out_of_memory,
    )
    engine = ManyReplies(
        "random",
        decoding,
        lambda _session, utterance: (ids, spectrograms.features(utterance.clip) if utterance.clip else None),
        Ids(),
        lambda _tokens: nullcontext(),
        decoder.close,
    )

    def answer(clip: AudioClip) -> list[int]:
        return Ids().encode("".join(engine.reply(Session(), Utterance(clip), threading.Event())))

    with ExitStack() as stack:
        stack.callback(engine.close)
        answer(clips[0])
        spans = {name: stack.enter_context(forward_spans(Forward(Rows, name))) for name in PARTS}
        with ThreadPoolExecutor(engine.replies_at_once) as askers:
            started = time.perf_counter()
            replies = list(askers.map(answer, clips))
            seconds = time.perf_counter() - started
    parts = {PARTS[name]: sum(end - start for start, end in found) for name, found in spans.items()}
    return Taken(seconds, replies, len(clips), script.reply_tokens, parts if device == "cpu" else {})


def _spectrograms(model: Any) -> FrontEnd:
    return front_end(model.config, "cuda" if model.device.type == "cuda" else "cpu")


def _clip(number: int, seconds: float) -> AudioClip:
    """Return noise, which costs what speech costs; no two are alike."""
    samples = np.random.default_rng((7, number)).normal(0.0, 0.1, max(1, round(seconds * SAMPLE_RATE)))
    return AudioClip(samples.astype(np.float32))
