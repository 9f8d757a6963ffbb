"""Measures clips answered together, and the same clips one after the other: `python -m benchmarks.batch`.

    generate     transformers, one clip after the other, as its documentation shows it
    one by one   voxcli's decoder, as `once` and `chat` use it
    together     the engine of `voxcli batch`: many threads call it, and their replies are decoded in one batch

All start from the samples of the clips. Prompts are those of `benchmarks.script`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.baselines import Generate, free_memory, front_end
from benchmarks.command import DeviceFlag, ForceFlag, JsonFlag, ModelFlag, command_line, note, publish, require_writable
from benchmarks.floors import synchronize
from benchmarks.instrumentation import Forward, forward_spans
from benchmarks.one_pass import quiet
from benchmarks.random_model import default_model, open_model
from benchmarks.report import Figure
from benchmarks.script import Script
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral import loader
from voxcli.engines.voxtral.batch_engine import BatchEngine
from voxcli.engines.voxtral.device.hardware import Hardware
from voxcli.engines.voxtral.mel import FrontEnd
from voxcli.engines.voxtral.runtime.batch_decoder import BatchDecoder
from voxcli.engines.voxtral.runtime.decoder import Decoder
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel

GPU_BAR, CPU_BAR = 15.0, 3.0  # times `generate`; times one by one
SLOTS = {"cuda": 64, "mps": 32, "cpu": 32}
REPLY_TOKENS = {"cpu": (48, 256)}  # 256 is the default of `reply.max_tokens`
GPU_REPLY_TOKENS = (48,)
SPARE = 8  # tokens of a cache beyond prompt and reply
PARTS = {
    "encoder": Forward(SharedModel, "encode"),
    "prompts": Forward(TextModel, "prefill"),
    "decoding": Forward(TextModel, "step_slots"),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    clips: int = 64
    singles: int = 8  # clips among them that are also answered one after the other
    clip_seconds: float = 5.0
    reply_tokens: Sequence[int] = ()  # lengths of replies; empty for those that suit the device
    slots: int | None = None  # replies at once; None for as many as suit the device


@dataclass
class Result:
    """The time that one way of answering took."""

    seconds: float
    replies: list[list[int]]  # empty where they are not compared
    clips: int
    reply_tokens: int
    parts: dict[str, float] = field(default_factory=dict)  # seconds by part, on a CPU

    @property
    def pace(self) -> float:
        """Clips a second."""
        return self.clips / self.seconds


class Ids:
    """A tokenizer whose text is the ids in digits."""

    version = ""
    controls: dict[str, int] = {}  # noqa: RUF012 - never changed

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_bytes(self, token_id: int) -> bytes:
        return f"{token_id} ".encode()


def measure_all(model: str, device: str, plan: Plan, note: Callable[[str], None]) -> list[Figure]:
    """Return the figures of a run; `note` shows the progress.

    Args:
        model: random:SHAPE or a checkpoint; empty for the device's default.
        device: auto, cuda, mps or cpu.

    Raises:
        VoxError: the model can't be opened, or there is not enough memory.
    """
    with quiet():
        opened = open_model(model or default_model(device), device)
        kind = opened.device.type
        plan = replace(plan, slots=plan.slots or SLOTS[kind])
        found = []
        for tokens in plan.reply_tokens or REPLY_TOKENS.get(kind, GPU_REPLY_TOKENS):
            found += figures(*_measured(opened, plan, tokens, note), plan, opened)
    return found


def _measured(model: Any, plan: Plan, reply_tokens: int, note: Callable[[str], None]) -> tuple[Result, Result, Result]:
    """Measure the three ways of answering with one length of replies."""
    script = Script.of(model.config, reply_tokens=reply_tokens)
    clips = [_clip(number, plan.clip_seconds) for number in range(plan.clips)]
    note(f"replies of {reply_tokens} tokens: generate, one after the other ...")
    generated = _generate(model, script, clips[: plan.singles])
    note("voxcli, one by one ...")
    shared = SharedModel(model)
    single = _one_by_one(model, shared, script, clips[: plan.singles])
    note("voxcli, together ...")
    return generated, single, _together(model, shared, script, clips, plan.slots or 1)


def figures(generated: Result, single: Result, together: Result, plan: Plan, model: Any) -> list[Figure]:
    """Return the figures for one length of replies."""
    on_gpu = model.device.type == "cuda"
    per_single, per_generated = together.pace / single.pace, together.pace / generated.pace
    equal = sum(one == many for one, many in zip(single.replies, together.replies, strict=False))
    exact, length = model.dtype is torch.float32, f"{together.reply_tokens} tokens: "
    return [
        _figure(f"{length}transformers' generate, one after the other", generated, plan),
        _figure(f"{length}voxcli, one by one", single, plan),
        _figure(f"{length}voxcli, together, {plan.slots} slots", together, plan),
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


def _figure(what: str, result: Result, plan: Plan) -> Figure:
    parts = {name: seconds / result.clips for name, seconds in result.parts.items()}
    where = "".join(f"; {name} {1000 * seconds:.0f} ms" for name, seconds in parts.items())
    per_clip = 1000 / result.pace
    return Figure(
        what,
        f"{result.clips} clips in {result.seconds:.1f} s: {per_clip:.0f} ms a clip{where}; "
        f"{result.pace * result.reply_tokens:.0f} tokens/s, {result.pace * plan.clip_seconds:.0f} audio hours an hour",
        values={
            "clips": result.clips,
            "reply_tokens": result.reply_tokens,
            "seconds": result.seconds,
            "part_seconds_a_clip": parts,
        },
    )


def _generate(model: Any, script: Script, clips: Sequence[AudioClip]) -> Result:
    implementation = Generate(model, script)
    implementation.answer(clips[0])
    synchronize(model.device.type)
    started = time.perf_counter()
    for clip in clips:
        implementation.answer(clip)
    result = Result(time.perf_counter() - started, [], len(clips), script.reply_tokens)
    free_memory(model.device.type)
    return result


def _one_by_one(model: Any, shared: SharedModel, script: Script, clips: Sequence[AudioClip]) -> Result:
    spectrograms, ids = _spectrograms(model), script.prompt(1)
    sampling = Sampling(script.reply_tokens, frozenset())
    decoder = Decoder(shared, capacity=len(ids) + script.reply_tokens + SPARE)
    decoder.warm_up(sampling)

    def answer(clip: AudioClip) -> list[int]:
        decoder.prefill(ids, spectrograms.features(clip))
        return list(decoder.stream(sampling, threading.Event()))

    answer(clips[0])
    started = time.perf_counter()
    replies = [answer(clip) for clip in clips]
    seconds = time.perf_counter() - started
    decoder.close()
    return Result(seconds, replies, len(clips), script.reply_tokens)


def _together(model: Any, shared: SharedModel, script: Script, clips: Sequence[AudioClip], slots: int) -> Result:
    spectrograms, ids, device = _spectrograms(model), script.prompt(1), str(model.device)
    decoder = BatchDecoder(
        shared,
        Sampling(script.reply_tokens, frozenset()),
        most=slots,
        longest=len(ids) + script.reply_tokens + SPARE,
        free_bytes=lambda: Hardware.look(torch, device).free_bytes(device),
        is_out_of_memory=loader.out_of_memory,
    )
    engine = BatchEngine(
        "random",
        decoder,
        lambda _session, utterance: (ids, spectrograms.features(utterance.clip) if utterance.clip else None),
        Ids(),
        lambda _tokens: nullcontext(),
        lambda: None,
        writes_ahead=device != "cpu",
    )

    def answer(clip: AudioClip) -> list[int]:
        return Ids().encode("".join(engine.reply(Session(), Utterance(clip), threading.Event())))

    with ExitStack() as stack:
        stack.callback(engine.close)
        answer(clips[0])
        spans = {name: stack.enter_context(forward_spans(part)) for name, part in PARTS.items()}
        with ThreadPoolExecutor(engine.replies_at_once) as callers:
            started = time.perf_counter()
            replies = list(callers.map(answer, clips))
            seconds = time.perf_counter() - started
    parts = {name: sum(end - start for start, end in found) for name, found in spans.items()}
    return Result(seconds, replies, len(clips), script.reply_tokens, parts if device == "cpu" else {})


def _spectrograms(model: Any) -> FrontEnd:
    return front_end(model.config, "cuda" if model.device.type == "cuda" else "cpu")


def _clip(number: int, seconds: float) -> AudioClip:
    """Return a clip of noise, which costs as much as speech; no two are alike."""
    samples = np.random.default_rng((7, number)).normal(0.0, 0.1, max(1, round(seconds * SAMPLE_RATE)))
    return AudioClip(samples.astype(np.float32))


def batch(
    model: ModelFlag = "",
    device: DeviceFlag = "auto",
    clips: Annotated[int, typer.Option("--clips", metavar="N", min=1, help="Clips answered together.")] = 64,
    singles: Annotated[
        int, typer.Option("--singles", metavar="N", min=1, help="Clips among them answered one after the other.")
    ] = 8,
    clip_seconds: Annotated[
        float, typer.Option("--clip-seconds", metavar="S", min=0.1, help="Length of a clip.")
    ] = 5.0,
    reply_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--reply-tokens", metavar="N", min=2, help="Tokens per reply; may be repeated. 48, on a CPU 256 too."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=2, help="Replies at once; 64, on a CPU 32.")
    ] = None,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure the engine of `voxcli batch` beside the same clips one after the other, and transformers' `generate`."""
    require_writable(json, force=force)
    publish(measure_all(model, device, Plan(clips, singles, clip_seconds, reply_tokens or (), batch_size), note), json)


app = command_line(batch)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.batch")
