"""Who takes part: voxcli's decoder, and what people would run instead, all with the same model and script.

Each times its own turns, from the samples of the clip to the ids of the reply. What the figures come to is
the business of `benchmarks.one_pass`.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import transformers

from voxcli.audio import AudioClip
from benchmarks.floors import synchronize
from benchmarks.script import Script
from benchmarks.instrumentation import Forward
from voxcli.engines.decoder import Decoder, Sampling
from voxcli.engines.features import FrontEnd
from voxcli.engines.llama import Llama
from voxcli.engines.quantization import Format

CAPACITY_SPARE = 64  # tokens: of a cache that holds the last turn and its reply


@dataclass(frozen=True)
class Measured:
    """One turn."""

    started: float  # perf_counter, when the clip was handed over
    token_seconds: tuple[float, ...]  # of each token of the reply, since then
    total_seconds: float  # since then, until nothing of the turn was left to do but to settle
    new_tokens: int  # fed through the text model before replying, in all passes
    cached_tokens: int  # of the prompts, what needed no feeding
    settle_seconds: float | None = None  # after the turn, while nobody waits
    settle_tokens: int = 0


class Contender(Protocol):
    """One way to answer the turns of a script."""

    name: ClassVar[str]
    about: ClassVar[str]

    def prepare(self) -> None:
        """Do what is done once, before it is ready."""
        ...

    def turn(self, number: int) -> Measured:
        """Answer turn `number` of the conversation, the first being 1, as if those before it had been held."""
        ...

    def forward(self) -> "Forward | None":
        """Return what a step of decoding calls; None where a stopwatch in it would change what is measured."""
        ...

    def close(self) -> None:
        """Give back the memory."""
        ...


class Voxcli:
    """`voxcli.engines.decoder`: one pass; the cache is kept, and settled after a turn."""

    name: ClassVar[str] = "voxcli"
    about: ClassVar[str] = "one pass; only what is not cached is fed"
    form: ClassVar[Format | None] = None  # of the text model's large matrices, where they are quantized

    def __init__(self, model: Any, script: Script, turns: int) -> None:
        """Take the model and how many turns the longest conversation has."""
        self._model, self._script = model, script
        self._capacity = len(script.prompt(turns)) + 2 * script.reply_tokens + CAPACITY_SPARE
        self._sampling = Sampling(script.reply_tokens, frozenset({script.vocabulary}))  # looks for an end, finds none
        self._clips = script.clips()
        self._front_end = front_end(model.config)
        self._decoder: Decoder | None = None

    def prepare(self) -> None:
        self._decoder = Decoder(self._model, capacity=self._capacity)
        if self.form:
            self._decoder.quantize(self.form)
        self._decoder.warm_up(self._sampling)

    def turn(self, number: int) -> Measured:
        decoder, device = self._decoder, self._model.device.type
        assert decoder, "prepare comes first"  # noqa: S101 - for the type checker
        ids, clip, afterwards = self._script.prompt(number), next(self._clips), self._script.finished(number)
        decoder.prefill(self._script.finished(number - 1))
        synchronize(device)
        started = time.perf_counter()
        features = self._front_end.features(clip)
        fed = decoder.prefill(ids, features)
        tokens = [time.perf_counter() - started for _ in decoder.stream(self._sampling, threading.Event())]
        ended = time.perf_counter()
        settled = decoder.prefill(afterwards)
        synchronize(device)
        return Measured(
            started,
            tuple(tokens),
            ended - started,
            fed.prompt_tokens - fed.cached_tokens,
            fed.cached_tokens,
            time.perf_counter() - ended,
            settled.prompt_tokens - settled.cached_tokens,
        )

    def forward(self) -> Forward:
        return Forward(Llama, "step")

    def close(self) -> None:
        if self._decoder:
            self._decoder.close()
            torch.compiler.reset()  # what was compiled may keep the model's memory


class VoxcliInt8(Voxcli):
    """The same with int8 weights. transformers can't run its model any more, so it has one of its own."""

    name: ClassVar[str] = "voxcli-int8"
    about: ClassVar[str] = (
        "voxcli, the text model's large matrices in int8; loaded whole and converted when all is there"
    )
    form: ClassVar[Format | None] = "int8"


class VoxcliFp8(Voxcli):
    """The same with fp8 weights."""

    name: ClassVar[str] = "voxcli-fp8"
    about: ClassVar[str] = (
        "voxcli, the text model's large matrices in fp8; loaded whole and converted when all is there"
    )
    form: ClassVar[Format | None] = "fp8"


class Generate:
    """transformers' `generate` as its documentation shows it: a cache of its own for each call, and no compiler."""

    name: ClassVar[str] = "generate"
    about: ClassVar[str] = "transformers, dynamic cache, eager; the whole prompt is fed each turn"

    def __init__(self, model: Any, script: Script) -> None:
        self._model, self._script = model, script
        self._options: dict[str, Any] = {}  # for `generate`
        self._clips = script.clips()
        self._front_end = front_end(model.config)

    def prepare(self) -> None:
        """Do nothing: there is nothing that is kept."""

    def turn(self, number: int) -> Measured:
        ids, clip = self._script.prompt(number), next(self._clips)
        synchronize(self._model.device.type)
        started = time.perf_counter()
        features = self._features(clip)
        reply = self._generate(ids, features, self._script.reply_tokens)
        return Measured(started, since(started, reply), time.perf_counter() - started, len(ids), 0)

    def answer(self, clip: AudioClip) -> None:
        """Answer a clip as the first turn of a conversation."""
        self._generate(self._script.prompt(1), self._features(clip), self._script.reply_tokens)

    def forward(self) -> Forward | None:
        return Forward(self._model, "forward")

    def close(self) -> None:
        """Do nothing: there is nothing that was kept."""

    def _features(self, clip: AudioClip) -> torch.Tensor:
        return self._front_end.features(clip).to(self._model.device, self._model.dtype)

    def _generate(self, ids: Sequence[int], features: torch.Tensor, tokens: int) -> list[float]:
        """Return when each token came, by perf_counter."""
        arrivals = _Arrivals()
        prompt = torch.tensor([list(ids)], device=self._model.device)
        self._model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            input_features=features,
            max_new_tokens=tokens,
            do_sample=False,
            streamer=arrivals,
            **self._options,
        )
        return arrivals.times


class StaticGenerate(Generate):
    """`generate` with a static cache, its decoding compiled."""

    name: ClassVar[str] = "static"
    about: ClassVar[str] = "transformers, static cache, compiled decoding; the whole prompt is fed each turn"

    def prepare(self) -> None:
        config: Any = transformers.CompileConfig()
        config._compile_all_devices = True  # on a CPU transformers would not compile, and say nothing
        self._options = {"cache_implementation": "static", "compile_config": config}

    def forward(self) -> None:
        return None

    def close(self) -> None:
        self._model.__dict__.pop("_compiled_call", None)
        torch.compiler.reset()


class TwoPasses(Generate):
    """The design that voxcli comes from: one pass replies, a second one over the same audio transcribes."""

    name: ClassVar[str] = "two-pass"
    about: ClassVar[str] = "transformers as in `generate`, then a second pass over the audio that transcribes"

    def turn(self, number: int) -> Measured:
        ids, again, clip = self._script.prompt(number), self._script.transcription(), next(self._clips)
        synchronize(self._model.device.type)
        started = time.perf_counter()
        reply = self._generate(ids, self._features(clip), self._script.reply_tokens)
        self._generate(again, self._features(clip), self._script.transcript_tokens)
        total = time.perf_counter() - started
        return Measured(started, since(started, reply), total, len(ids) + len(again), 0)

    def forward(self) -> None:
        """Return nothing: its loop is that of `generate`."""


def all_of(model: Any, script: Script, turns: int) -> dict[str, Callable[[], Contender]]:
    """Return how to make each contender, by name, in the order in which they can run on one model."""
    return {
        Generate.name: lambda: Generate(model, script),
        TwoPasses.name: lambda: TwoPasses(model, script),
        StaticGenerate.name: lambda: StaticGenerate(model, script),
        Voxcli.name: lambda: Voxcli(model, script, turns),  # last: its decoder changes modules of the model
    }


QUANTIZED: dict[Format, type[Voxcli]] = {"int8": VoxcliInt8, "fp8": VoxcliFp8}
OTHERS = (Generate.name, StaticGenerate.name, TwoPasses.name)
NAMES = (Voxcli.name, *OTHERS)  # of what runs on one model
SHOWN = (Voxcli.name, *(contender.name for contender in QUANTIZED.values()), *OTHERS)  # in this order


def front_end(config: Any, device: str = "cpu") -> FrontEnd:
    """Return what makes mel spectrograms on a device, without a file."""
    classes: Any = transformers
    audio = config.audio_config
    return FrontEnd(classes.WhisperFeatureExtractor(feature_size=audio.num_mel_bins), audio, device)


def since(started: float, times: Sequence[float]) -> tuple[float, ...]:
    """Return how long after `started` each of the times was."""
    return tuple(at - started for at in times)


def free_memory(device: str) -> None:
    """Give back what a contender has left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


class _Arrivals:
    """A streamer for `generate` that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, ids: torch.Tensor) -> None:
        """Take the prompt, and then a token at a time."""
        if self._prompt_seen:
            self.times += [time.perf_counter()] * ids.numel()
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the last token has come."""
