"""Shared by all checks: the checkpoint, engines on the checked device, clips, and one turn."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import replica
from benchmarks.baselines import free_memory
from benchmarks.emulation import CountingCompiler, EmulatedGraphs
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.checkpoint import files
from voxcli.engines.voxtral.device import placement
from voxcli.engines.voxtral.device.demand import demand
from voxcli.engines.voxtral.device.formats import Format
from voxcli.engines.voxtral.device.hardware import DType, Hardware
from voxcli.engines.voxtral.engine import VoxtralEngine
from voxcli.engines.voxtral.runtime.acceleration import Backends, Level
from voxcli.engines.voxtral.runtime.cuda_graphs import GraphRecorder, Work

LEVELS: tuple[Level, ...] = ("none", "graphs", "compiled")  # The slowest comes first.
FORMATS: tuple[Format, ...] = ("none", "int8", "int4")
SEED = 7
REPLAYS_PER_TOKEN = 2  # the step and the sampler


@dataclass(frozen=True)
class Sizes:
    """How much is checked."""

    shape: str  # shape of the checkpoint, one of `replica.SHAPES`
    weighed_shape: str  # shape of the checkpoint whose memory is measured
    reply_tokens: int
    default_context: int  # tokens of the context in the default settings
    context: int  # tokens of the context of most engines
    small_context: int  # tokens of the context where its length does not matter
    turns: int  # length of the conversation with interruptions
    samples: int  # samples of each measured turn
    clips: int  # clips in the batch
    singles: int  # clips of the batch that are also answered one by one


GPU = Sizes("mini", "mini", 48, 8192, 8192, 1024, 50, 5, 256, 8)
EMULATED = Sizes("tiny", "100m", 12, 8192, 2048, 1024, 50, 1, 12, 3)


@dataclass(frozen=True)
class Answer:
    """One turn of an engine."""

    ids: list[int]  # ids of the reply, read from its text
    report: PassReport
    token_seconds: tuple[float, ...]  # arrival of each token, from the clip on

    @property
    def first_token_seconds(self) -> float:
        return self.token_seconds[0]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first token."""
        return (len(self.token_seconds) - 1) / (self.token_seconds[-1] - self.token_seconds[0])


@dataclass
class Lab:
    """One device and a random checkpoint for it."""

    folder: Path  # holds checkpoints and compiled kernels
    device: str  # cuda or cpu
    sizes: Sizes
    emulated: bool
    replies: dict[str, list[list[int]]] = field(default_factory=dict)  # ids by level, which one step passes to another
    replays: int = 0  # number of replays so far

    @cached_property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint, which is written at the first access."""
        return self.checkpoint_of(self.sizes.shape)

    def checkpoint_of(self, shape: str) -> Path:
        """Return the folder of a checkpoint, writing it if it is missing."""
        folder = self.folder / shape
        return folder if folder.is_dir() else replica.write(folder, replica.SHAPES[shape], "digits")

    def need(self, checkpoint: Path, form: Format, context_tokens: int) -> tuple[DType, int]:
        """Return the number format of unquantized weights, and the bytes that voxcli announces before loading."""
        config: Any = transformers.VoxtralConfig.from_pretrained(checkpoint, local_files_only=True)
        needs, hardware = demand(config, files.inspect(checkpoint).parameters), Hardware.look(torch, self.device)
        wanted = placement.Wanted(self.device, form, context_tokens, self.sizes.reply_tokens)
        where = placement.plan(wanted, hardware, needs, strictly=False)
        return where.dtype, placement.needed_bytes(where, needs, hardware, self.sizes.reply_tokens)

    @contextmanager
    def engine(self, notice: Callable[[str], None], **options: Any) -> Iterator[VoxtralEngine]:
        """Load an engine for the time of the context, and free its memory afterwards.

        Args:
            notice: receives the engine's notices to the user.
            options: arguments of `VoxtralEngine.load` in place of the defaults.
        """
        given = {
            "name": "random",
            "device": self.device,
            "max_reply_tokens": self.sizes.reply_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
            "context_tokens": self.sizes.context,
            "folder": self.folder,
            "notice": notice,
            "backends": self.backends(),
        }
        engine = VoxtralEngine.load(options.pop("checkpoint", self.checkpoint), **{**given, **options})
        try:
            yield engine
        finally:
            engine.close()
            del engine
            torch.compiler.reset()  # compiled code may keep the weights in memory
            free_memory(self.device)

    def backends(self) -> Backends:
        """Return the backends of the device, counting replays."""
        made = Backends.of(self.device)
        if self.emulated:
            made = Backends(CountingCompiler(), EmulatedGraphs, looks_ahead=True)
        graphs = made.graphs
        return replace(made, graphs=lambda: self._counting(graphs())) if graphs else made

    def _counting(self, record: GraphRecorder) -> GraphRecorder:
        def counted(work: Work, source: torch.Generator | None = None) -> Work:
            replay = record(work, source)

            def replay_and_count() -> None:
                self.replays += 1
                replay()

            return replay_and_count

        return counted


def clip(number: int, seconds: float = 2.0) -> AudioClip:
    """Return noise, which costs as much as speech; each number gives another one."""
    samples = np.random.default_rng((SEED, number)).normal(0.0, 0.1, round(seconds * SAMPLE_RATE))
    return AudioClip(samples.astype(np.float32), SAMPLE_RATE)


def ask(engine: Engine, session: Session, spoken: AudioClip, stop_after: int | None = None) -> Answer:
    """Return an engine's answer to a clip, complete or interrupted after some tokens."""
    interrupt = threading.Event()
    deltas: list[str] = []
    times: list[float] = []
    started = time.perf_counter()
    reply = engine.reply(session, Utterance(spoken), interrupt)
    while True:
        try:
            deltas.append(str(next(reply)))
        except StopIteration as end:
            return Answer(ids_in("".join(deltas)), end.value, tuple(times))
        times.append(time.perf_counter() - started)
        if len(deltas) == stop_after:
            interrupt.set()


def ids_in(text: str) -> list[int]:
    """Return the ids in a text of the tokenizer `digits`."""
    return [int(word) for word in text.split()]


def text_of(ids: Sequence[int]) -> str:
    """Return the text of ids, as the tokenizer `digits` writes it."""
    return "".join(f" {token_id}" for token_id in ids)
