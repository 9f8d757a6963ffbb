"""The engine for machines without a GPU: Whisper base transcribes, SmolLM2-135M replies.

It needs no torch, is ready in about a second and understands only English. Like the Voxtral engine, it shows the
model placeholders of finished turns, never their transcripts.
"""

import os
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from voxcli.audio.clip import AudioClip
from voxcli.core.session import Session, Turn
from voxcli.core.turn import Engine, PassReport, Transcript, Utterance
from voxcli.engines.embedded.llama import LlamaCpp
from voxcli.engines.embedded.whisper import Whisper

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
SHOWN_BYTES = 2048  # most bytes, and so most tokens, of earlier turns in a prompt, which leave room for a question
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
