"""The Voxtral engine: one pass of `VoxtralForConditionalGeneration` per turn, audio in, reply out.

It is loaded from a folder and gives one reply at a time; `for_many` turns it into a `batch_engine.BatchEngine`.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Engine, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.aside import Aside, gone
from voxcli.engines.voxtral.checkpoint.model_card import long_context
from voxcli.engines.voxtral.device.demand import ASIDE_TOKENS, cache_bytes_per_token
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import GB, Hardware
from voxcli.engines.voxtral.limits import PromptLimits
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.tokenizer import wrap
from voxcli.engines.voxtral.tool_reply import ToolReply
from voxcli.errors import ModelError, VoxError, missing_extra, no_tools
from voxcli.printable import first_line

try:
    import torch
    import transformers  # noqa: F401 - loading needs it

    from voxcli.engines.voxtral import loader
    from voxcli.engines.voxtral.batch_engine import BatchEngine
    from voxcli.engines.voxtral.mel import FrontEnd
    from voxcli.engines.voxtral.runtime.acceleration import Acceleration, Backends, Level
    from voxcli.engines.voxtral.runtime.batch_decoder import BatchDecoder
    from voxcli.engines.voxtral.runtime.decoder import Decoder, PrefillResult
    from voxcli.engines.voxtral.runtime.model import SharedModel
    from voxcli.engines.voxtral.runtime.sampler import Sampling
    from voxcli.engines.voxtral.template import own_layout
except ImportError as error:
    raise missing_extra(ModelError, "The Voxtral engine", "voxtral") from error

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # parts done, parts in all
NEXT = Utterance(None, "?")  # stands for the next utterance
FAILED_HINT = 'run voxcli again; if it fails again, set voxtral.acceleration to "none", or take --device cpu'
GPU_SLOTS, CPU_SLOTS = 64, 32  # replies at once: with more, a step is bound by arithmetic and each reply is slower


class VoxtralEngine(Engine):
    """Implements `voxcli.core.protocols.Engine` with a Voxtral checkpoint."""

    name = "voxtral"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        max_reply_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        context_tokens: int,
        notice: Notice,
        backends: Backends | None = None,
    ) -> None:
        """Take over a model and a processor that transformers loaded; `load` describes the other arguments.

        Args:
            seed: makes sampling repeatable; None for a reply that differs each time.
            backends: compiler and graph recorder; None for those of the model's device.
        """
        self.model = name
        self._is_closed = False
        self.device = str(model.device.type)  # cuda, mps or cpu
        self._where = str(model.device)  # cuda:1, for example
        most: int = model.config.text_config.max_position_embeddings - max_reply_tokens
        self._room: int = min(context_tokens, most)  # tokens of a prompt from which old turns were dropped
        self._cache_bytes = cache_bytes_per_token(model.config.text_config, model.dtype.itemsize)
        where = self._where if self.device == "cuda" else "cpu"
        self._front_end = FrontEnd(processor.feature_extractor, model.config.audio_config, where)
        window_seconds = self._front_end.window_samples / self._front_end.sample_rate
        self._limits = PromptLimits(name, self._room, most, self._front_end.tokens_per_window, window_seconds)
        self._encoded_windows = 0  # windows of the open utterance that are encoded
        self._tokenizer = wrap(processor.tokenizer)
        self._writer = PromptWriter(self._tokenizer)
        self._template = own_layout(processor, self._tokenizer, model.config.audio_config, self._writer, notice)
        self.supports_tools = not (self._writer.tools_problem or self._template)
        self._aside = Aside(self._writer, self._tokenizer, Sampling)
        self._replied_to: Utterance | None = None  # the utterance whose clip and reply the cache ends with
        stop_ids = frozenset({self._writer.end})
        self.sampling = Sampling(max_reply_tokens, stop_ids, temperature, top_p, seed)
        with self._pass_errors(self._room):
            self._shared = SharedModel(model)
            self.decoder = Decoder(self._shared, capacity=self._capacity(), backends=backends)
        self._reset_counts()

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        name: str,
        device: str,
        max_reply_tokens: int,
        temperature: float,
        top_p: float,
        context_tokens: int,
        notice: Notice,
        progress: Progress = lambda _done, _total: None,
        quantize: Asked = "none",
        acceleration: Acceleration = "auto",
        folder: Path | None = None,
        many: bool = False,
        backends: Backends | None = None,
    ) -> Self:
        """Load a checkpoint from a folder; nothing is fetched.

        Args:
            name: the model's name in records.
            device: auto, cuda, cuda:N, mps or cpu.
            context_tokens: longest prompt, shortened where memory is short. The oldest turns are dropped from
                longer ones; the instructions and the current clip stay, even where they alone are longer.
            notice: receives lines about this checkpoint for the user, and about steps that take long.
            progress: called with the done and total steps of a long warm-up.
            quantize: format of the text model's large matrices; none: as stored, auto: the best that fits.
            acceleration: the highest level of `runtime.acceleration` to try; auto for the device's highest.
            folder: voxcli's cache folder, in which compiled kernels are kept; None for torch's own.
            many: `for_many` will be called, so the decoder for one reply needs no warm-up.
            backends: compiler and graph recorder; None for those of the device.

        Raises:
            ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
            ConfigError: no such device, or one that does not support the format.
        """
        after_prompt = max_reply_tokens + ASIDE_TOKENS
        loaded = loader.load(checkpoint, device, context_tokens, after_prompt, notice, quantize=quantize)
        if said := long_context(loaded.where.context_tokens):
            notice(said)
        engine = cls(
            loaded.model,
            loaded.processor,
            name=name,
            max_reply_tokens=max_reply_tokens,
            temperature=temperature,
            top_p=top_p,
            context_tokens=loaded.where.context_tokens,
            notice=notice,
            backends=backends,
        )
        engine.warm_up(folder, notice, progress, acceleration=acceleration, for_one=not many)
        return engine

    @property
    def acceleration(self) -> Level:
        """The level of `runtime.acceleration` in use: compiled, graphs or none."""
        return self.decoder.acceleration

    def warm_up(
        self,
        folder: Path | None = None,
        notice: Notice = lambda _: None,
        progress: Progress = lambda _done, _total: None,
        *,
        acceleration: Acceleration = "auto",
        for_one: bool = True,
    ) -> None:
        """Do the work that would delay the first turn; `load` describes the arguments."""
        with self._pass_errors(self._room):
            if for_one:
                self.decoder.warm_up(
                    self.sampling, acceleration=acceleration, notice=notice, progress=progress, folder=folder
                )
            if self.device == "cuda":
                self._front_end.features(AudioClip(np.zeros(SAMPLE_RATE, np.float32)))

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        """Yield the reply in deltas; return the report. Ends within one token once `interrupt` is set.

        Yields the calls of the session's tools. While they run, the cache stays as it is, so that the next generation
        feeds only the calls and their results. The report gives the tokens of the first prompt.

        Raises:
            AudioInputError: the clip is longer than the model takes.
            ConfigError: the text beside the clip is longer than the model takes, or the session has tools and the
                checkpoint can't call any.
            ModelError: the pass failed, for example for lack of memory.
        """
        ids, features = self.write_prompt(session, utterance)
        room, windows = self._limits.tool_room(session, len(ids)), 0 if features is None else len(features)
        reply = ToolReply(self._tokenizer, self._writer.tools_of(session))
        result, passes, self._replied_to = PrefillResult(0, 0), 0, None

        def generate(added: Sequence[int]) -> Iterator[Sequence[int]]:
            nonlocal features, result, passes
            if added:
                self.decoder.extend([*ids, *added], interrupt)
            else:
                result = self.decoder.prefill(ids, features, interrupt)
                features = None  # frees memory for the reply
            for token_id in self.decoder.stream(self.sampling, interrupt):
                yield (token_id,)
            passes = passes if added else self._passes(windows)

        try:
            with self._pass_errors(len(ids)):
                self.decoder.resize(self._capacity(len(ids) + room))
                is_full = yield from reply.run(generate, lambda: room, interrupt.is_set)
            self._replied_to = utterance if reply.tokens else None
            return reply.report(passes, result.prompt_tokens, result.cached_tokens, is_full=is_full)
        finally:
            self._reset_counts()
            if not interrupt.is_set():  # an interrupted reply may be a speculative one, whose clip goes on
                self._forget_clip()

    def prefill_history(self, session: Session) -> None:
        """Prefill the session: the last clip's placeholder in place of its audio, then the reply as it was spoken.

        Call this after a turn, while nobody waits, so that the next reply begins sooner. Not at the same
        time as `reply`.

        Raises:
            ModelError: as `reply`.
        """
        self._replied_to = None
        self._forget_clip()
        self._reset_counts()
        # With `reserve`, prompts of one word and of a window of speech keep the same turns.
        session = self._fitted(session, NEXT, 0)
        ids = self._template.write(session, NEXT)[0] if self._template else self._writer.finished(session)
        with self._pass_errors(len(ids)):
            self.decoder.resize(self._capacity())
            if len(ids) < self.decoder.capacity:  # `reply` raises the error for instructions that are too long
                self.decoder.prefill(ids)

    def understand(self, utterance: Utterance) -> Generator[str, None, None]:
        """Yield what the model understood; see `voxcli.core.protocols.Engine`.

        Raises:
            ModelError: the audio is not in the cache any more, or the pass failed.
        """
        if utterance is not self._replied_to:
            raise gone()
        return self._aside.ask(self.decoder, self._pass_errors)

    def encode_partial(self, clip: AudioClip) -> None:
        """Encode the complete windows of a clip that goes on, so that less is left to do at its end.

        Call this as often as you like while somebody speaks, each time with the whole clip so far; most
        calls cost nothing. Not at the same time as `reply` or `prefill_history`.

        Raises:
            ModelError: as `reply`.
        """
        whole = self._front_end.whole_windows(clip)
        if whole == 0:  # another clip
            self._forget_clip()
            self._reset_counts()
        elif whole > self._encoded_windows:
            self._encoded_windows = whole
            with self._pass_errors(0):
                self.decoder.encode_partial(self._front_end.features(clip)[:whole])

    def for_many(self, slots: int = 0, items: int = 0, *, understood: bool = False) -> BatchEngine:
        """Return an engine that generates many replies at once with this one's model; this one can't reply any more.

        Args:
            slots: replies at once, where the memory has room for them; 0 for what suits the device.
            items: number of replies to come, beyond which no slots are made; 0 if unknown.
            understood: the engine will be asked what it understood.
        """
        self.decoder.release()
        most = slots or (GPU_SLOTS if self.device == "cuda" else CPU_SLOTS)
        decoder = BatchDecoder(
            self._shared,
            self.sampling,
            most=min(most, items or most),
            longest=self._capacity(),
            free_bytes=self._free_bytes,
            is_out_of_memory=loader.out_of_memory,
        )
        return BatchEngine(
            self.model,
            decoder,
            self.write_prompt,
            self._tokenizer,
            self._pass_errors,
            self.close,
            writes_ahead=self.device != "cpu",
            tools_of=self._writer.tools_of,
            tool_room=self._limits.tool_room,
            supports_tools=self.supports_tools,
            aside=self._aside if understood else None,
        )

    def close(self) -> None:
        """Free the model's memory. The engine can't reply any more; closing twice does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.decoder.close()
        del self._shared
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write_prompt(self, session: Session, utterance: Utterance) -> tuple[list[int], torch.Tensor | None]:
        """Return the ids of a prompt, and the mel spectrograms, (windows, mels, frames), of its clip.

        The oldest turns are left out where the prompt would be too long.

        Raises:
            AudioInputError, ConfigError, ModelError: as `reply`.
        """
        audio_tokens = self._front_end.tokens(utterance.clip) if utterance.clip else 0
        if session.tools and self._template:
            raise no_tools(self.name, "the checkpoint has a layout of prompts of its own, without tools")
        session = self._fitted(session, utterance, audio_tokens)
        ids = self._writer.write(session, utterance, audio_tokens)
        self._limits.check(session, utterance, len(ids), audio_tokens)
        if self._template:
            return self._template.write(session, utterance)
        return ids, self._front_end.features(utterance.clip) if utterance.clip else None

    def _fitted(self, session: Session, utterance: Utterance, audio_tokens: int) -> Session:
        """Return the session without the turns that leave the prompt."""
        room = self._room - self._limits.tool_tokens(session)
        return self._writer.fit(session, utterance, audio_tokens, room, reserve=self._reserve(session))

    def _free_bytes(self) -> int | None:
        if self.device == "cuda":
            torch.cuda.empty_cache()  # memory that torch keeps for itself does not count as free
        return self._hardware().free_bytes(self._where)

    def _hardware(self) -> Hardware:
        return Hardware.look(torch, self._where)

    def _capacity(self, prompt_tokens: int = 0) -> int:
        """Return the tokens of the cache: room for the longest prompt, a reply, and an aside after it."""
        return max(self._room, prompt_tokens) + self.sampling.max_tokens + self._aside.room

    def _reserve(self, session: Session) -> int:
        """Return the tokens that a prompt needs beside its turns: the instructions, a window of speech, some text."""
        spoken = len(self._writer.write(session.last(0), NEXT, 0)) + self._front_end.tokens_per_window
        return spoken + self._room // 16

    def _reset_counts(self) -> None:
        """Start to count the passes of the next turn, whose clip may be encoded before it ends."""
        self._encoded_before, self._generations_before = self.decoder.windows_encoded, self.decoder.generations

    def _passes(self, windows: int) -> int:
        """Return the greater of encoder runs and generations of this turn.

        Args:
            windows: number of windows of the clip; all of them encoded once are one run of the encoder.
        """
        encoded = self.decoder.windows_encoded - self._encoded_before
        return max(-(-encoded // max(1, windows)), self.decoder.generations - self._generations_before)

    def _forget_clip(self) -> None:
        self._encoded_windows = 0
        self.decoder.forget_clip()

    @contextmanager
    def _pass_errors(self, prompt_tokens: int) -> Iterator[None]:
        """Turn errors of the pass into a ModelError that names a way out."""
        if self.device == "cuda":
            torch.cuda.set_device(self._where)  # the current GPU is a setting of each thread
        try:
            yield
        except VoxError:
            raise
        except Exception as error:
            if not loader.out_of_memory(error):
                raise ModelError(f"the model's pass failed: {first_line(error)}", hint=FAILED_HINT) from error
            free = self._hardware().free_bytes(self._where) or 0
            tokens = prompt_tokens + self.sampling.max_tokens
            raise ModelError(
                f"out of memory in the pass: {tokens} tokens of prompt and reply need at least "
                f"{tokens * self._cache_bytes / GB:.3f} GB beside the model, "
                f"{free / GB:.3f} GB are free",
                hint=f"at most {free // self._cache_bytes} tokens of prompt and reply fit: shorten the recording, "
                "lower session.context_tokens, or use --device cpu",
            ) from error
