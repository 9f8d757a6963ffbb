"""The engine for machines without a GPU: Whisper base transcribes, SmolLM2-135M replies.

It needs no torch, is ready in about a second and understands only English. Like the Voxtral engine, it shows the
model placeholders of finished turns, never their transcripts.
"""

import os
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from voxcli.audio.clip import AudioClip
from voxcli.core.session import Session, Turn
from voxcli.core.turn import Engine, PassReport, Transcript, Utterance
from voxcli.errors import ModelError, missing_extra

LIBRARIES = ("faster_whisper", "xllamacpp")
# More history makes a model of this size worse: of 32 questions in one conversation it answered 24
# without history, 23 with the last two turns, 14 with all of them.
TURNS_SHOWN = 2
# Two examples keep a model of this size short and to the point: of 197 simple questions it answered 124 with
# them and 116 without, in two thirds of the words. Other pairs gave 109 to 124, three or four did no better.
EXAMPLES = (
    ("user", "How many wheels does a car have?"),
    ("assistant", "A car has four wheels."),
    ("user", "What is the capital of Finland?"),
    ("assistant", "The capital of Finland is Helsinki."),
)
# Words at the beginning and at the end of a long transcript that the model sees; the question is most likely there.
# 600 words are about 800 tokens, a fifth of the context.
TRANSCRIPT_WORDS_FIRST, TRANSCRIPT_WORDS_LAST = 150, 450
CONTEXT_TOKENS = 4096
SHOWN_BYTES = 2048  # most bytes, and so most tokens, of earlier turns in a prompt, which leave room for a question
# Whisper's window for clips up to SHORT_SECONDS. With less silence than TAIL_SECONDS after the speech, Whisper began
# to repeat itself; with a window of 8 s, it made more errors.
SHORT_SECONDS, WINDOW_SECONDS, TAIL_SECONDS = 24.0, 12.0, 6.0
MAX_TOKENS = 224  # half of Whisper's context, the most that it writes for one window
NO_SPEECH, UNSURE = 0.6, -1.0  # Whisper's own thresholds: no speech above this probability and below this score
NO_WORDS = "Sorry, I did not catch any words."


class Recognizer(Protocol):
    """Speech to text."""

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> str: ...


class ChatModel(Protocol):
    """Text to text."""

    def answer(self, prompt: str, interrupt: threading.Event) -> Generator[str, None, PassReport]: ...

    def read_ahead(self, beginning: str) -> None: ...


class EmbeddedEngine(Engine):
    """Implements `voxcli.core.turn.Engine` with a recognizer and a text model."""

    name = "embedded"
    model = "faster-whisper-base + SmolLM2-135M-Instruct"
    # Several threads may request replies. Both libraries queue work, so one clip is transcribed while a reply to
    # another is generated. On two cores an item took 0.31 s alone, 0.24 s with two at once, 0.21 s with three
    # and no less with four (medians of 2 to 6 runs), with the same replies.
    replies_at_once = 3

    def __init__(self, recognizer: Recognizer, text_model: ChatModel) -> None:
        self._recognizer = recognizer
        self._text_model = text_model

    @classmethod
    def load(
        cls, folder: Path, *, instructions: str, max_reply_tokens: int, temperature: float, top_p: float
    ) -> "EmbeddedEngine":
        """Load both models at once from the folder that `weights.prepare` returned.

        Args:
            instructions: prefilled for the next session; sessions with others work too.

        Raises:
            ModelError: the extra is missing, or the weights can't be loaded.
        """
        # OpenMP reads this variable when a library loads it. By default, its threads wait busily for work and take
        # the cores from others: on two cores with a load of 7, the first token came after 2 to 18 s, with "passive"
        # after 0.4 to 0.8 s, and the models were loaded in 2.7 s instead of 4.5 s.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        sampling = {"max_tokens": max_reply_tokens, "temperature": temperature, "top_p": top_p}
        pool = ThreadPoolExecutor(2)
        try:
            recognizer = pool.submit(Whisper, folder / "whisper", os.cpu_count() or 1)
            text_model = pool.submit(LlamaCpp, folder / "smollm2.gguf", sampling, chat_beginning(instructions))
            return cls(recognizer.result(), text_model.result())
        finally:
            pool.shutdown(wait=False)  # Waiting would delay Ctrl-C.

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str | Transcript, None, PassReport]:
        """Yield the transcript, then the reply in deltas; see `voxcli.core.turn.Engine`."""
        transcript = self._recognizer.transcribe(utterance.clip, interrupt) if utterance.clip else None
        if transcript:
            yield Transcript(transcript)
        words = _shortened(transcript) if transcript and has_words(transcript) else ""
        text = "\n".join(part for part in (words, utterance.prompt) if part)
        if interrupt.is_set():
            return PassReport(model_passes=1, prompt_tokens=0, cached_tokens=0, reply_tokens=0, transcript=transcript)
        if not text:
            yield NO_WORDS
            return PassReport(model_passes=1, prompt_tokens=0, cached_tokens=0, reply_tokens=0, transcript=transcript)
        shown = session.within(SHOWN_BYTES, _bytes)
        report = yield from self._text_model.answer(chat_prompt(shown, text), interrupt)
        return replace(report, transcript=transcript)

    def prefill_history(self, session: Session) -> None:
        """Prefill the turns that the next prompt shows."""
        self._text_model.read_ahead(history_prompt(session.within(SHOWN_BYTES, _bytes)))

    def close(self) -> None:
        """Free both models."""
        del self._recognizer, self._text_model


def chat_prompt(session: Session, text: str) -> str:
    """Return a prompt in SmolLM2's chat layout (ChatML): instructions, earlier turns and the user's text."""
    return f"{history_prompt(session)}{_written([('user', text)])}<|im_start|>assistant\n"


def history_prompt(session: Session) -> str:
    """Return the beginning of the next prompt of a session, before the user's text."""
    messages = []
    for turn in session.last(TURNS_SHOWN).turns:
        messages += [("user", turn.user_text), ("assistant", turn.reply)]
    return f"{chat_beginning(session.instructions)}{_written(messages)}"


def chat_beginning(instructions: str) -> str:
    """Return the beginning of every prompt with these instructions."""
    return _written([("system", instructions), *EXAMPLES] if instructions else EXAMPLES)


def _written(messages: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<|im_start|>{role}\n{_plain(text)}<|im_end|>\n" for role, text in messages)


def _bytes(turn: Turn) -> int:
    return len(f"{turn.user_text}{turn.reply}".encode())


def _plain(text: str) -> str:
    """Return text without control tokens: all of SmolLM2's begin with `<` and no space."""
    return text.replace("<", "< ")


def has_words(transcript: str) -> bool:
    """Tell whether a transcript has a letter or digit of any script; Whisper writes `...` or notes for music."""
    return any(char.isalnum() for char in transcript)


def _shortened(transcript: str) -> str:
    words = transcript.split()
    if len(words) <= TRANSCRIPT_WORDS_FIRST + TRANSCRIPT_WORDS_LAST:
        return transcript
    return f"{' '.join(words[:TRANSCRIPT_WORDS_FIRST])} ... {' '.join(words[-TRANSCRIPT_WORDS_LAST:])}"


class Whisper:
    """faster-whisper on the CPU, 8-bit, English.

    Whisper was trained on windows of 30 s, and its encoder costs the same for any clip within one. A shorter
    window for short clips takes a third of the time. Of 64 spoken questions, 57 were transcribed word for word
    with this window, 55 with the library's windows of 30 s.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        faster_whisper, tokenizer = _imported("faster_whisper"), _imported("faster_whisper.tokenizer")
        try:
            self._model = faster_whisper.WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads
            )
        except Exception as error:  # tokenizers raises plain Exceptions
            raise _damaged(folder, error) from error
        self._tokenizer = tokenizer.Tokenizer(
            self._model.hf_tokenizer, multilingual=True, task="transcribe", language="en"
        )

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> str:
        """Return the transcript of a 16 kHz clip; stop at the next window of 30 s once interrupted."""
        return self._transcribe_short(clip) if clip.seconds <= SHORT_SECONDS else self._transcribe_long(clip, interrupt)

    def _transcribe_short(self, clip: AudioClip) -> str:
        window_seconds = max(WINDOW_SECONDS, clip.seconds + TAIL_SECONDS)
        extractor = self._model.feature_extractor
        frames = (
            int(window_seconds * extractor.sampling_rate / extractor.hop_length) // 2 * 2
        )  # even, because the encoder halves it
        padded = np.zeros(frames * extractor.hop_length, np.float32)
        padded[: len(clip.samples)] = clip.samples
        encoded = self._model.encode(extractor(padded, padding=0)[:, :frames])
        prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        (result,) = self._model.model.generate(
            encoded, [prompt], beam_size=1, max_length=MAX_TOKENS, return_scores=True, return_no_speech_prob=True
        )
        if result.no_speech_prob > NO_SPEECH and result.scores[0] < UNSURE:
            return ""
        return str(self._tokenizer.decode(result.sequences_ids[0])).strip()

    def _transcribe_long(self, clip: AudioClip, interrupt: threading.Event) -> str:
        segments, _ = self._model.transcribe(
            clip.samples, language="en", beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        transcript = []
        for segment in segments:
            if interrupt.is_set():
                break
            transcript.append(segment.text.strip())
        return " ".join(transcript)


class LlamaCpp:
    """SmolLM2 in llama.cpp, which keeps the common prefix of prompts in its cache."""

    def __init__(self, path: Path, sampling: dict[str, Any], beginning: str) -> None:
        """Load a GGUF file.

        Args:
            sampling: max_tokens, temperature and top_p, by llama.cpp's names.
            beginning: beginning of the next prompts, prefilled now.
        """
        xllamacpp = _imported("xllamacpp")
        self._sampling = sampling
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = CONTEXT_TOKENS
        params.n_parallel = 1
        # The threads of llama.cpp wait for each other hundreds of times per step. On two cores, the first token of a
        # prompt of 105 tokens took 0.07 s with two threads and 0.13 s with one on an idle machine, but 6.1 s and
        # 1.2 s beside two busy processes.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.fit_params = False  # no search for free GPU memory
        params.verbosity = -1  # its log goes to stderr
        # The server opens a loopback port, which is not used here; a random key closes it to others.
        params.api_keys = [secrets.token_urlsafe(32)]
        params.endpoint_slots = params.ui = False
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise _damaged(path, error) from error
        self.read_ahead(beginning)

    def answer(self, prompt: str, interrupt: threading.Event) -> Generator[str, None, PassReport]:
        """Yield the completion of a prompt in deltas.

        Raises:
            ModelError: llama.cpp refuses the prompt, for example one longer than its context.
        """
        timings: dict[str, int] = {}
        for chunk in self._stream(prompt, interrupt):
            if error := chunk.get("error"):
                raise ModelError(
                    f"the embedded model refused the prompt: {error['message']}",
                    hint="shorten the text that --prompt or --instructions gives",
                )
            timings = chunk["timings"]
            if text := chunk["choices"][0]["text"]:
                yield text
        cached = timings.get("cache_n", 0)
        return PassReport(
            model_passes=1,
            prompt_tokens=cached + timings.get("prompt_n", 0),
            cached_tokens=cached,
            reply_tokens=timings.get("predicted_n", 0),
        )

    def read_ahead(self, beginning: str) -> None:
        """Prefill the beginning of the next prompt."""
        self._server.handle_completions({"prompt": beginning, "max_tokens": 0})

    def _stream(self, prompt: str, interrupt: threading.Event) -> Iterator[dict[str, Any]]:
        """Turn the server's callbacks into an iterator. Closing it, or an interrupt, stops the server too."""
        request = {"prompt": prompt, **self._sampling, "stream": True, "timings_per_token": True}
        chunks: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        left = threading.Event()

        def take(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return interrupt.is_set() or left.is_set()

        def complete() -> None:
            try:
                self._server.handle_completions(request, take)
            except Exception as error:  # noqa: BLE001 - raised again by `answer`
                chunks.put({"error": {"message": str(error)}})
            finally:
                chunks.put(None)

        worker = threading.Thread(target=complete, name="llama", daemon=True)
        worker.start()
        try:
            for chunk in iter(chunks.get, None):
                if interrupt.is_set():  # the queue may hold more: the server does not wait for the reader
                    break
                yield chunk
        finally:
            left.set()
            worker.join()


def check_libraries() -> None:
    """Raise ModelError if one of the libraries of this engine is missing or can't be loaded."""
    for name in LIBRARIES:
        _imported(name)


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise missing_extra(ModelError, "The embedded engine", "embedded") from error
    except ImportError as error:  # a library of the system is missing
        raise ModelError(f"{name} can't be loaded: {error}", hint="on Debian: sudo apt-get install libgomp1") from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"can't load {path}: {error}", hint=f"delete {path.parent} and run again: it is made anew")
