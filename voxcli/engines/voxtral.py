"""The Voxtral engine: one pass of `VoxtralForConditionalGeneration` a turn, audio in, reply out.

Joins the parts beside it: `shards` (is the checkpoint whole), `placement` (where it runs), `prompt`
and `template` (ids), `features` (mel spectrograms), `decoder` (the loop). It knows nothing of the
hub: it is given a folder. It is for one reply at a time.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from voxcli.audio import AudioClip
from voxcli.engines import placement, shards
from voxcli.engines.prompt import PromptWriter
from voxcli.engines.tokenizer import TextStream, wrap
from voxcli.errors import AudioInputError, ConfigError, ModelError, missing_extra
from voxcli.session import Session
from voxcli.turn import Engine, PassReport, Utterance

try:  # whoever imports this engine without its packages gets the error with the hint
    import torch
    import transformers

    from voxcli.engines.decoder import Decoder, Sampling
    from voxcli.engines.features import FrontEnd
    from voxcli.engines.template import TemplatePrompt, difference
except ImportError as error:
    raise missing_extra(ModelError, "The Voxtral engine", "voxtral") from error

Notice = Callable[[str], None]
NEXT = Utterance(None, "?")  # stands for what will be said next


class VoxtralEngine(Engine):
    """Implements `voxcli.turn.Engine` with a Voxtral checkpoint."""

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
    ) -> None:
        """Take what transformers loaded; `load` says what the rest means.

        Args:
            seed: makes sampling repeatable; None for a reply that differs each time.
        """
        self.model = name
        self.device = str(model.device.type)  # cuda, mps or cpu
        self._most: int = model.config.text_config.max_position_embeddings - max_reply_tokens  # tokens of any prompt
        self._room: int = min(context_tokens, self._most)  # tokens of a prompt whose turns can leave
        self._cache_bytes = placement.cache_bytes_per_token(model.config.text_config, model.dtype.itemsize)
        where = "cuda" if self.device == "cuda" else "cpu"
        self._front_end = FrontEnd(processor.feature_extractor, model.config.audio_config, where)
        self._heard = 0  # windows of the clip so far
        self._tokenizer = wrap(processor.tokenizer)
        self._writer = PromptWriter(self._tokenizer)
        self._template = self._check_layout(processor, model.config.audio_config, notice)
        stop_ids = frozenset({self._writer.end})
        self._sampling = Sampling(max_reply_tokens, stop_ids, temperature, top_p, seed)
        with self._pass_errors(self._room):
            self._decoder = Decoder(model, capacity=self._room + max_reply_tokens)
        self._calls = _Calls(model, self._decoder)

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
    ) -> Self:
        """Load a checkpoint from a folder; nothing is fetched.

        Args:
            name: what the model is called in records.
            device: auto, cuda, mps or cpu.
            context_tokens: longest prompt; the oldest turns leave it. The instructions and the current
                clip never do, even where they alone are longer.
            notice: told, once, what a user should know of this checkpoint.

        Raises:
            ModelError: not a Voxtral checkpoint, damaged, too big, or a device that torch can't use.
            ConfigError: no such device.
        """
        found = shards.inspect(checkpoint)
        hardware = placement.Hardware.look(torch)
        where = placement.place(device, hardware, found.parameters)
        try:
            with _quiet():
                processor = transformers.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
                model = _load_model(checkpoint, where)
        except Exception as error:
            if _out_of_memory(error):
                hardware = placement.Hardware.look(torch)
                free = _free_bytes(where.device, hardware)
                needed = found.parameters * placement.BYTES[where.dtype]
                hint = placement.what_fits(hardware, found.parameters, free, on_cpu=where.device == "cpu")
                raise placement.too_big(f"the {where.device} device", needed, free, hint) from error
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"can't load the checkpoint in {checkpoint}: {_first_line(error)}", hint=shards.PULL
            ) from error
        return cls(
            model,
            processor,
            name=name,
            max_reply_tokens=max_reply_tokens,
            temperature=temperature,
            top_p=top_p,
            context_tokens=context_tokens,
            notice=notice,
        )

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
                fed = self._decoder.prefill(ids, features, interrupt)
                del features  # of no use once the encoder has seen them
                for token_id in self._decoder.stream(self._sampling, interrupt):
                    reply_tokens += 1
                    if delta := text.add(token_id):
                        yield delta
            return PassReport(self._calls.passes(windows), fed.prompt_tokens, fed.cached_tokens, reply_tokens)
        finally:
            self._calls.reset()
            if not interrupt.is_set():  # else it may have been a draft, and the clip goes on
                self._forget_clip()

    def settle(self, session: Session) -> None:
        """Bring the cache up to the session: in place of the last clip its placeholder, then the reply that was heard.

        To be called after a turn, while nobody waits: the next reply begins sooner for it. Not at the
        same time as `reply`.

        Raises:
            ModelError: as `reply`.
        """
        self._forget_clip()
        self._calls.reset()
        # What will be said is not known: the prompts of a word and of a spoken window keep the same turns.
        session = self._writer.fit(session, NEXT, 0, self._room, reserve=self._reserve(session))
        ids = self._template.write(session, NEXT)[0] if self._template else self._writer.finished(session)
        with self._pass_errors(len(ids)):
            self._decoder.resize(self._room + self._sampling.max_tokens)
            if len(ids) < self._decoder.capacity:  # else the instructions alone are too long, which `reply` will say
                self._decoder.prefill(ids)

    def listen(self, clip: AudioClip) -> None:
        """Encode what is whole of a clip that goes on, so that less is left to do when it is over.

        To be called as often as one likes while somebody speaks, each time with all of the clip so far;
        most calls cost nothing. Not at the same time as `reply` or `settle`.

        Raises:
            ModelError: as `reply`.
        """
        whole = self._front_end.whole_windows(clip)
        if whole == 0:  # another clip
            self._forget_clip()
            self._calls.reset()
        elif whole > self._heard:
            self._heard = whole
            with self._pass_errors(0):
                self._decoder.listen(self._front_end.features(clip)[:whole])

    def close(self) -> None:
        """Free the model's memory; the engine can't reply any more."""
        self._calls.close()
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

    def _reserve(self, session: Session) -> int:
        """Return the tokens of a prompt that are no turn's: the instructions, a window of speech, a few words."""
        spoken = len(self._writer.write(session.last(0), NEXT, 0)) + self._front_end.tokens_per_window
        return spoken + self._room // 16

    def _forget_clip(self) -> None:
        self._heard = 0
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
            with _quiet():
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
        """Turn what torch raises in the pass into an error that says what would fit."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise ModelError(f"the model's pass failed: {_first_line(error)}") from error
            hardware = placement.Hardware.look(torch)
            free = _free_bytes(self.device, hardware)
            tokens = prompt_tokens + self._sampling.max_tokens
            raise ModelError(
                f"out of memory in the pass: {tokens} tokens of prompt and reply need at least "
                f"{tokens * self._cache_bytes / placement.GB:.3f} GB beside the model, "
                f"{free / placement.GB:.3f} GB are free",
                hint=f"at most {free // self._cache_bytes} tokens of prompt and reply fit: shorten the recording, "
                "lower session.context_tokens, or use --device cpu",
            ) from error


class _Calls:
    """Counts the calls that cost a pass, where they are made: whoever makes them is counted."""

    def __init__(self, model: Any, decoder: Decoder) -> None:
        self._decoder = decoder
        self._windows = self._generations = 0
        parts = dict(model.named_modules())
        encoder = next(part for name, part in parts.items() if name.endswith("audio_tower"))
        text_model = next(part for name, part in parts.items() if name.endswith("language_model"))
        self._hooks = [
            encoder.register_forward_pre_hook(self._encoded),
            text_model.register_forward_pre_hook(self._generated, with_kwargs=True),
        ]
        self.reset()

    def passes(self, windows: int) -> int:
        """Return the greater of encoder calls and generations begun since `reset`.

        Args:
            windows: of the clip. Each of them encoded once is one call, whenever that was.
        """
        return max(-(-self._windows // max(1, windows)), self._generations + self._decoder.generations - self._before)

    def reset(self) -> None:
        self._windows = self._generations = 0
        self._before = self._decoder.generations

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encoded(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._windows += inputs[0].shape[0]

    def _generated(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        """Count a generation with transformers' own forward, which the decoder never calls."""
        cache = inputs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self._generations += 1


def _load_model(checkpoint: Path, where: placement.Placement) -> Any:
    voxtral: Any = transformers.VoxtralForConditionalGeneration  # its types do not know output_loading_info
    # With accelerate the weights go to the GPU one by one; without it all of them pass through RAM.
    straight = {"device_map": {"": where.device}} if find_spec("accelerate") else {}
    model, report = voxtral.from_pretrained(
        checkpoint,
        **straight,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, where.dtype),
        output_loading_info=True,
    )
    unset = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unset:  # transformers would fill them with random numbers
        raise ModelError(
            f"the checkpoint in {checkpoint} lacks {len(unset)} weights, such as {unset[0]}", hint=shards.PULL
        )
    return model.to(where.device).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars, warnings and advice for programmers from the user's terminal."""
    transformers_logging: Any = transformers.utils.logging
    loud, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    other = logging.getLogger("mistral_common")
    level = other.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    other.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        other.setLevel(level)
        transformers_logging.set_verbosity(loud)
        if bars:
            transformers_logging.enable_progress_bar()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)  # mps and the CPU allocator have no class of their own
        and any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))
    )


def _free_bytes(device: str, hardware: placement.Hardware) -> int:
    free = {"cuda": hardware.cuda.free_bytes, "mps": hardware.mps.free_bytes, "cpu": hardware.ram_free_bytes}
    return free[device] or 0


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
