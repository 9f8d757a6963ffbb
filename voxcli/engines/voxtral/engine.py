"""The Voxtral engine: one pass of `VoxtralForConditionalGeneration` a turn, audio in, reply out.

Joins the parts beside it: `loading` (a folder to a model that fits), `prompt`
and `template` (ids), `features` (mel spectrograms), `decoder` (the loop). It knows nothing of the
hub: it is given a folder. It is for one reply at a time.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.session import Session
from voxcli.core.turn import Engine, PassReport, Utterance
from voxcli.engines.voxtral.checkpoint.model_card import long_context
from voxcli.engines.voxtral.device.demand import cache_bytes_per_token
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import GB, Hardware
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.tokenizer import TextStream, wrap
from voxcli.errors import AudioInputError, ConfigError, ModelError, VoxError, missing_extra
from voxcli.printable import first_line

try:  # whoever imports this engine without its packages gets the error with the hint
    import torch
    import transformers  # noqa: F401 - loading needs it

    from voxcli.engines.voxtral import loader
    from voxcli.engines.voxtral.batch_engine import BatchEngine
    from voxcli.engines.voxtral.mel import FrontEnd
    from voxcli.engines.voxtral.quiet import quiet
    from voxcli.engines.voxtral.runtime.acceleration import Acceleration, Backends, Level
    from voxcli.engines.voxtral.runtime.decoder import Decoder, Sampling
    from voxcli.engines.voxtral.template import TemplatePrompt, difference
except ImportError as error:
    raise missing_extra(ModelError, "The Voxtral engine", "voxtral") from error

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # parts done, parts in all
NEXT = Utterance(None, "?")  # stands for what will be said next
FAILED_HINT = 'run voxcli again; if it fails again, set voxtral.acceleration to "none", or take --device cpu'
GPU_ROWS, CPU_ROWS = 64, 32  # replies at once: with more, a step is bound by arithmetic and each waits longer


class VoxtralEngine(Engine):
    """Implements `voxcli.core.turn.Engine` with a Voxtral checkpoint."""

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
        """Take what transformers loaded; `load` says what the rest means.

        Args:
            seed: makes sampling repeatable; None for a reply that differs each time.
            backends: what compiles and captures; None for those of the model's device.
        """
        self.model = name
        self.device = str(model.device.type)  # cuda, mps or cpu
        self._where = str(model.device)  # cuda:1, for example
        self._most: int = model.config.text_config.max_position_embeddings - max_reply_tokens  # tokens of any prompt
        self._room: int = min(context_tokens, self._most)  # tokens of a prompt whose turns can leave
        self._cache_bytes = cache_bytes_per_token(model.config.text_config, model.dtype.itemsize)
        where = self._where if self.device == "cuda" else "cpu"
        self._front_end = FrontEnd(processor.feature_extractor, model.config.audio_config, where)
        self._encoded_windows = 0  # windows of the open utterance that are encoded
        self._tokenizer = wrap(processor.tokenizer)
        self._writer = PromptWriter(self._tokenizer)
        self._template = self._check_layout(processor, model.config.audio_config, notice)
        stop_ids = frozenset({self._writer.end})
        self._sampling = Sampling(max_reply_tokens, stop_ids, temperature, top_p, seed)
        with self._pass_errors(self._room):
            self._decoder = Decoder(model, capacity=self._room + max_reply_tokens, backends=backends)
        self._count_anew()

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
            name: what the model is called in records.
            device: auto, cuda, cuda:N, mps or cpu.
            context_tokens: longest prompt, or less where memory is short; the oldest turns leave it. The
                instructions and the current clip never do, even where they alone are longer.
            notice: told what a user should know of this checkpoint, and what takes long.
            progress: told how far the warm-up is, where there is much to do.
            quantize: how the large matrices of the text model are kept; none: as they are, auto: the best that fits.
            acceleration: the highest level of `fast_path` to try; auto for the highest that the device has.
            folder: voxcli's cache folder, where what is compiled is kept; None for torch's own.
            many: it is for `for_many`, so what is of use to one reply at a time is not made ready.
            backends: what compiles and captures; None for those of the device.

        Raises:
            ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
            ConfigError: no such device, or one that does not know the format.
        """
        loaded = loader.load(checkpoint, device, context_tokens, max_reply_tokens, notice, quantize=quantize)
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
        """How a turn is computed now: compiled, graphs or none, as `fast_path` explains."""
        return self._decoder.acceleration

    def warm_up(
        self,
        folder: Path | None = None,
        notice: Notice = lambda _: None,
        progress: Progress = lambda _done, _total: None,
        *,
        acceleration: Acceleration = "auto",
        for_one: bool = True,
    ) -> None:
        """Do what would keep the first turn waiting; `load` says what the arguments mean."""
        with self._pass_errors(self._room):
            if for_one:
                self._decoder.warm_up(
                    self._sampling, acceleration=acceleration, notice=notice, progress=progress, folder=folder
                )
            if self.device == "cuda":
                self._front_end.features(AudioClip(np.zeros(SAMPLE_RATE, np.float32)))

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        """Yield the reply in deltas; return the report. Ends within one token once `interrupt` is set.

        Raises:
            AudioInputError: the clip is longer than the model can take.
            ConfigError: the text beside it is.
            ModelError: the pass failed, for one for lack of memory.
        """
        ids, features = self._prompt(session, utterance)
        windows = 0 if features is None else len(features)
        text, reply_tokens = TextStream(self._tokenizer), 0
        try:
            with self._pass_errors(len(ids)):
                self._decoder.resize(max(self._room, len(ids)) + self._sampling.max_tokens)
                result = self._decoder.prefill(ids, features, interrupt)
                del features  # of no use once the encoder has seen them
                for token_id in self._decoder.stream(self._sampling, interrupt):
                    reply_tokens += 1
                    if delta := text.add(token_id):
                        yield delta
            return PassReport(self._passes(windows), result.prompt_tokens, result.cached_tokens, reply_tokens)
        finally:
            self._count_anew()
            if not interrupt.is_set():  # else it may have been a draft, and the clip goes on
                self._forget_clip()

    def prefill_history(self, session: Session) -> None:
        """Bring the cache up to the session: in place of the last clip its placeholder, then the reply that was heard.

        To be called after a turn, while nobody waits: the next reply begins sooner for it. Not at the
        same time as `reply`.

        Raises:
            ModelError: as `reply`.
        """
        self._forget_clip()
        self._count_anew()
        # What will be said is not known: the prompts of a word and of a spoken window keep the same turns.
        session = self._writer.fit(session, NEXT, 0, self._room, reserve=self._reserve(session))
        ids = self._template.write(session, NEXT)[0] if self._template else self._writer.finished(session)
        with self._pass_errors(len(ids)):
            self._decoder.resize(self._room + self._sampling.max_tokens)
            if len(ids) < self._decoder.capacity:  # else the instructions alone are too long, which `reply` will say
                self._decoder.prefill(ids)

    def encode_partial(self, clip: AudioClip) -> None:
        """Encode what is whole of a clip that goes on, so that less is left to do when it is over.

        To be called as often as one likes while somebody speaks, each time with all of the clip so far;
        most calls cost nothing. Not at the same time as `reply` or `prefill_history`.

        Raises:
            ModelError: as `reply`.
        """
        whole = self._front_end.whole_windows(clip)
        if whole == 0:  # another clip
            self._forget_clip()
            self._count_anew()
        elif whole > self._encoded_windows:
            self._encoded_windows = whole
            with self._pass_errors(0):
                self._decoder.encode_partial(self._front_end.features(clip)[:whole])

    def for_many(self, rows: int = 0, items: int = 0) -> BatchEngine:
        """Return an engine that gives many replies at once with this one's model; this one gives none any more.

        Args:
            rows: replies at once, where the memory has room for them; 0 for what suits the device.
            items: replies that will be asked for: no more rows are made than that; 0 where nobody knows.
        """
        on_gpu = self.device == "cuda"
        most = rows or (GPU_ROWS if on_gpu else CPU_ROWS)
        decoding = self._decoder.rows(
            self._sampling,
            most=min(most, items or most),
            longest=self._room + self._sampling.max_tokens,
            free_bytes=self._free_bytes,
            is_out_of_memory=loader.out_of_memory,
        )
        return BatchEngine(self.model, decoding, self._prompt, self._tokenizer, self._pass_errors, self.close)

    def close(self) -> None:
        """Free the model's memory; the engine can't reply any more."""
        self._decoder.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prompt(self, session: Session, utterance: Utterance) -> tuple[list[int], torch.Tensor | None]:
        audio_tokens = self._front_end.tokens(utterance.clip) if utterance.clip else 0
        session = self._writer.fit(session, utterance, audio_tokens, self._room, reserve=self._reserve(session))
        ids = self._writer.write(session, utterance, audio_tokens)
        if len(ids) > self._most:
            raise self._too_long(len(ids) - audio_tokens, self._most, utterance)
        if self._template:
            return self._template.write(session, utterance)
        return ids, self._front_end.features(utterance.clip) if utterance.clip else None

    def _free_bytes(self) -> int | None:
        if self.device == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for itself does not count as free
        return self._hardware().free_bytes(self._where)

    def _hardware(self) -> Hardware:
        return Hardware.look(torch, self._where)

    def _reserve(self, session: Session) -> int:
        """Return the tokens of a prompt that are no turn's: the instructions, a window of speech, a few words."""
        spoken = len(self._writer.write(session.last(0), NEXT, 0)) + self._front_end.tokens_per_window
        return spoken + self._room // 16

    def _count_anew(self) -> None:
        """Begin to count for another turn; the windows of its clip may be encoded before it is over."""
        self._encoded_before, self._generations_before = self._decoder.windows_encoded, self._decoder.generations

    def _passes(self, windows: int) -> int:
        """Return the greater of encoder runs and generations of this turn.

        Args:
            windows: of the clip. Each of them encoded once is one run, whenever that was.
        """
        encoded = self._decoder.windows_encoded - self._encoded_before
        return max(-(-encoded // max(1, windows)), self._decoder.generations - self._generations_before)

    def _forget_clip(self) -> None:
        self._encoded_windows = 0
        self._decoder.forget_clip()

    def _too_long(self, text_tokens: int, most: int, utterance: Utterance) -> AudioInputError | ConfigError:
        windows = (most - text_tokens) // self._front_end.tokens_per_window
        if utterance.clip is None or windows < 1:
            return ConfigError(
                f"the text beside the audio has {text_tokens} tokens, the model takes {most}",
                hint="shorten --instructions or --prompt",
            )
        longest = windows * self._front_end.window_samples / self._front_end.sample_rate
        return AudioInputError(
            f"the recording has {utterance.clip.seconds:.1f} s, {self.model} takes up to {longest:.0f} s at once",
            hint="cut it into shorter pieces",
        )

    def _check_layout(self, processor: Any, audio_config: Any, notice: Notice) -> TemplatePrompt | None:
        """Return what must write the prompts where the checkpoint's own layout is another one."""
        front_end = FrontEnd(processor.feature_extractor, audio_config)  # on a CPU, as the processor
        template = TemplatePrompt(processor, self._tokenizer, front_end)
        try:
            with quiet():
                found = difference(self._writer, template, front_end)
        except ModelError as error:
            notice(f"the prompt could not be checked: {error.message}")
            return None
        if not found:
            return None
        notice(f"{found} differ from what the checkpoint's processor writes; its own are used, which is slower")
        return template

    @contextmanager
    def _pass_errors(self, prompt_tokens: int) -> Iterator[None]:
        """Turn what the pass raises into an error that says what would fit, or what may help."""
        if self.device == "cuda":
            torch.cuda.set_device(self._where)  # each thread has its own current GPU, which streams and kernels mean
        try:
            yield
        except VoxError:
            raise
        except Exception as error:
            if not loader.out_of_memory(error):
                raise ModelError(f"the model's pass failed: {first_line(error)}", hint=FAILED_HINT) from error
            free = self._hardware().free_bytes(self._where) or 0
            tokens = prompt_tokens + self._sampling.max_tokens
            raise ModelError(
                f"out of memory in the pass: {tokens} tokens of prompt and reply need at least "
                f"{tokens * self._cache_bytes / GB:.3f} GB beside the model, "
                f"{free / GB:.3f} GB are free",
                hint=f"at most {free // self._cache_bytes} tokens of prompt and reply fit: shorten the recording, "
                "lower session.context_tokens, or use --device cpu",
            ) from error
