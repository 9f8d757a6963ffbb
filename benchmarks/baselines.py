"""voxcli's decoder and the baselines that it is compared with, all with the same model and script.

Each implementation times its own turns, from the samples of the clip to the ids of the reply.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import transformers

from benchmarks.floors import synchronize
from benchmarks.instrumentation import Forward
from benchmarks.script import Script
from voxcli.audio.clip import AudioClip
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.mel import FrontEnd
from voxcli.engines.voxtral.runtime.decoder import Decoder
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampling
from voxcli.engines.voxtral.runtime.text_model import TextModel

CAPACITY_SPARE = 64  # tokens of the cache beyond the last turn and its reply


@dataclass(frozen=True)
class TurnMeasurement:
    """The times and tokens of one turn."""

    started: float  # perf_counter at the start of the turn
    token_seconds: tuple[float, ...]  # arrival of each token of the reply, since `started`
    total_seconds: float  # from `started` to the end of the reply
    new_tokens: int  # prompt tokens fed through the text model, in all passes
    cached_tokens: int  # prompt tokens that were in the cache
    history_seconds: float | None = None  # time to prefill the history after the turn
    history_tokens: int = 0


class Implementation(Protocol):
    """Answers the turns of a script in one way."""

    name: ClassVar[str]
    about: ClassVar[str]

    def prepare(self) -> None:
        """Prepare the first turn."""
        ...

    def turn(self, number: int) -> TurnMeasurement:
        """Answer turn `number`, from 1, as if the turns before it had taken place."""
        ...

    def forward(self) -> "Forward | None":
        """Return the method that a decode step calls; None if timing it would change the result."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class Voxcli:
    """Measures `runtime.decoder`: one pass, with a cache that is kept between turns and prefilled for the next one."""

    name: ClassVar[str] = "voxcli"
    about: ClassVar[str] = "one pass; only what is not cached is fed"
    form: ClassVar[Format | None] = None  # quantization of the text model's large matrices

    def __init__(self, model: Any, script: Script, turns: int) -> None:
        """Take over the model; `turns` is the length of the longest conversation."""
        self._model, self._script = model, script
        self._capacity = len(script.prompt(turns)) + 2 * script.reply_tokens + CAPACITY_SPARE
        self._sampling = Sampling(
            script.reply_tokens, frozenset({script.vocabulary})
        )  # no such id exists, so only the length ends a reply
        self._clips = script.clips()
        self._front_end = front_end(model.config)
        self._decoder: Decoder | None = None

    def prepare(self) -> None:
        shared = SharedModel(self._model)
        if self.form:
            shared.quantize(self.form)
        self._decoder = Decoder(shared, capacity=self._capacity)
        self._decoder.warm_up(self._sampling)

    def turn(self, number: int) -> TurnMeasurement:
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
        history = decoder.prefill(afterwards)
        synchronize(device)
        return TurnMeasurement(
            started,
            tuple(tokens),
            ended - started,
            fed.prompt_tokens - fed.cached_tokens,
            fed.cached_tokens,
            time.perf_counter() - ended,
            history.prompt_tokens - history.cached_tokens,
        )

    def forward(self) -> Forward:
        return Forward(TextModel, "step")

    def close(self) -> None:
        if self._decoder:
            self._decoder.close()
            torch.compiler.reset()  # compiled code may keep the model in memory


class VoxcliInt8(Voxcli):
    """Measures int8 weights, in a model of its own, because transformers can't run a quantized one."""

    name: ClassVar[str] = "voxcli-int8"
    about: ClassVar[str] = (
        "voxcli, the text model's large matrices in int8; loaded whole and converted when all is there"
    )
    form: ClassVar[Format | None] = "int8"


class VoxcliFp8(Voxcli):
    """Measures fp8 weights, in a model of its own."""

    name: ClassVar[str] = "voxcli-fp8"
    about: ClassVar[str] = (
        "voxcli, the text model's large matrices in fp8; loaded whole and converted when all is there"
    )
    form: ClassVar[Format | None] = "fp8"


class Generate:
    """transformers' `generate` as its documentation shows it: a new cache for each call, no compiler."""

    name: ClassVar[str] = "generate"
    about: ClassVar[str] = "transformers, dynamic cache, eager; the whole prompt is fed each turn"

    def __init__(self, model: Any, script: Script) -> None:
        self._model, self._script = model, script
        self._options: dict[str, Any] = {}  # for `generate`
        self._clips = script.clips()
        self._front_end = front_end(model.config)

    def prepare(self) -> None:
        """Do nothing: nothing is kept between turns."""

    def turn(self, number: int) -> TurnMeasurement:
        ids, clip = self._script.prompt(number), next(self._clips)
        synchronize(self._model.device.type)
        started = time.perf_counter()
        features = self._features(clip)
        reply = self._generate(ids, features, self._script.reply_tokens)
        return TurnMeasurement(started, since(started, reply), time.perf_counter() - started, len(ids), 0)

    def answer(self, clip: AudioClip) -> None:
        """Answer a clip as the first turn of a conversation."""
        self._generate(self._script.prompt(1), self._features(clip), self._script.reply_tokens)

    def forward(self) -> Forward | None:
        return Forward(self._model, "forward")

    def close(self) -> None:
        """Do nothing: nothing is kept between turns."""

    def _features(self, clip: AudioClip) -> torch.Tensor:
        return self._front_end.features(clip).to(self._model.device, self._model.dtype)

    def _generate(self, ids: Sequence[int], features: torch.Tensor, tokens: int) -> list[float]:
        """Return the arrival of each token by perf_counter."""
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
    """`generate` with a static cache and compiled decoding."""

    name: ClassVar[str] = "static"
    about: ClassVar[str] = "transformers, static cache, compiled decoding; the whole prompt is fed each turn"

    def prepare(self) -> None:
        config: Any = transformers.CompileConfig()
        config._compile_all_devices = True  # Otherwise transformers compiles nothing on a CPU.
        self._options = {"cache_implementation": "static", "compile_config": config}

    def forward(self) -> None:
        return None

    def close(self) -> None:
        self._model.__dict__.pop("_compiled_call", None)
        torch.compiler.reset()


class TwoPasses(Generate):
    """Two passes per turn: one replies, a second one over the same audio transcribes."""

    name: ClassVar[str] = "two-pass"
    about: ClassVar[str] = "transformers as in `generate`, then a second pass over the audio that transcribes"

    def turn(self, number: int) -> TurnMeasurement:
        ids, again, clip = self._script.prompt(number), self._script.transcription(), next(self._clips)
        synchronize(self._model.device.type)
        started = time.perf_counter()
        reply = self._generate(ids, self._features(clip), self._script.reply_tokens)
        self._generate(again, self._features(clip), self._script.transcript_tokens)
        total = time.perf_counter() - started
        return TurnMeasurement(started, since(started, reply), total, len(ids) + len(again), 0)

    def forward(self) -> None:
        """Return nothing: the loop is that of `generate`."""


def all_of(model: Any, script: Script, turns: int) -> dict[str, Callable[[], Implementation]]:
    """Return the factories by name, in an order in which the implementations can share one model."""
    return {
        Generate.name: lambda: Generate(model, script),
        TwoPasses.name: lambda: TwoPasses(model, script),
        StaticGenerate.name: lambda: StaticGenerate(model, script),
        Voxcli.name: lambda: Voxcli(model, script, turns),  # last: its decoder changes modules of the model
    }


QUANTIZED: dict[Format, type[Voxcli]] = {"int8": VoxcliInt8, "fp8": VoxcliFp8}
OTHERS = (Generate.name, StaticGenerate.name, TwoPasses.name)
NAMES = (Voxcli.name, *OTHERS)  # implementations that share one model
SHOWN = (Voxcli.name, *(implementation.name for implementation in QUANTIZED.values()), *OTHERS)  # order of the columns


def front_end(config: Any, device: str = "cpu") -> FrontEnd:
    """Return a front end that makes mel spectrograms on a device, without a file."""
    classes: Any = transformers
    audio = config.audio_config
    return FrontEnd(classes.WhisperFeatureExtractor(feature_size=audio.num_mel_bins), audio, device)


def since(started: float, times: Sequence[float]) -> tuple[float, ...]:
    """Return the times relative to `started`."""
    return tuple(at - started for at in times)


def free_memory(device: str) -> None:
    """Free the memory that an implementation has left behind."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


class _Arrivals:
    """A streamer for `generate` that records when tokens arrive."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, ids: torch.Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if self._prompt_seen:
            self.times += [time.perf_counter()] * ids.numel()
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the last token has arrived."""
