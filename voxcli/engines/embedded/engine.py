"""The engine for machines without a GPU: Whisper transcribes, a small text model replies.

It needs no torch. With the models that come with it, Whisper base and SmolLM2-135M, it is ready in about a second and
answers only English. Like the Voxtral engine, it shows SmolLM2 placeholders of finished turns, never their transcripts.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Engine, PassReport, Transcript, Utterance
from voxcli.core.session import Session, Turn
from voxcli.engines.embedded.answering import SHIPPED, AnswerModel, open_answering
from voxcli.engines.embedded.languages import english_only
from voxcli.engines.embedded.libraries import chosen_files
from voxcli.engines.embedded.prompts import ChatModel, Prompts, SmolLM2Prompts
from voxcli.engines.embedded.whisper import ENGLISH, Recognized, Whisper
from voxcli.errors import no_tools

# Words at the beginning and at the end of a long transcript that the model sees; the question is most likely there.
# 600 words are about 800 tokens, a fifth of the context.
TRANSCRIPT_WORDS_FIRST, TRANSCRIPT_WORDS_LAST = 150, 450
TRANSCRIPTS_KEPT = 1000
NO_WORDS = "Sorry, I did not catch any words."
WHISPER = "faster-whisper-base"  # the recognizer that comes with the engine


_TurnKey = tuple[str | None, int, Turn | None, str]


class Recognizer(Protocol):
    """Speech to text."""

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> Recognized: ...


class EmbeddedEngine(Engine):
    """Implements `voxcli.core.protocols.Engine` with a recognizer and a text model."""

    name = "embedded"
    model = f"{WHISPER} + {SHIPPED}"
    # Several threads may request replies. Both libraries queue work, so one clip is transcribed while a reply to
    # another is generated. On two cores an item took 0.31 s alone, 0.24 s with two at once, 0.21 s with three
    # and no less with four (medians of 2 to 6 runs), with the same replies.
    replies_at_once = 3

    def __init__(
        self, recognizer: Recognizer, text_model: ChatModel, prompts: Prompts | None = None, *, is_large: bool = False
    ) -> None:
        """Combine two models.

        Args:
            prompts: writes the text model's prompts; None for SmolLM2's.
            is_large: the text model answers in any language, and is shown the transcripts of earlier turns.
        """
        self._recognizer = recognizer
        self._text_model = text_model
        self._prompts = prompts or SmolLM2Prompts()
        self._is_large = is_large
        self._transcripts: OrderedDict[_TurnKey, str] = OrderedDict()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        instructions: str,
        max_reply_tokens: int,
        temperature: float,
        top_p: float,
        language: str = "auto",
        context_tokens: int = 8192,
        whisper: Path | None = None,
        answer_model: Path | None = None,
    ) -> "EmbeddedEngine":
        """Load both models at once.

        Args:
            folder: what `weights.prepare` returned.
            instructions: prefilled for the next session; sessions with others work too.
            language: code of the language of all clips, such as "fr"; "auto" to detect it in each.
            context_tokens: longest prompt of an answering model that does not come with the engine.
            whisper: folder of a faster-whisper model; None for the one in `folder`.
            answer_model: GGUF file with a chat template; None for the one in `folder`.

        Raises:
            ModelError: the extra is missing, or the weights can't be loaded or used.
        """
        # OpenMP reads this variable when a library loads it. By default, its threads wait busily for work and take
        # the cores from others: on two cores with a load of 7, the first token came after 2 to 18 s, with "passive"
        # after 0.4 to 0.8 s, and the models were loaded in 2.7 s instead of 4.5 s.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        sampling = {"max_tokens": max_reply_tokens, "temperature": temperature, "top_p": top_p}
        chosen = AnswerModel(answer_model or folder / "smollm2.gguf", is_shipped=answer_model is None)
        pool = ThreadPoolExecutor(2)
        try:
            recognizer = pool.submit(Whisper, whisper or folder / "whisper", os.cpu_count() or 1, language)
            opened = pool.submit(open_answering, chosen, sampling, context_tokens).result()
            with chosen_files(is_chosen=whisper is not None):
                engine = cls(recognizer.result(), opened.model, opened.prompts, is_large=opened.is_large)
        finally:
            pool.shutdown(wait=False)  # Waiting would delay Ctrl-C.
        engine.model = model_name(whisper, answer_model)
        engine.prefill_history(Session(instructions=instructions))
        return engine

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str | Transcript, None, PassReport]:
        """Yield the transcript, then the reply in deltas; see `voxcli.core.protocols.Engine`.

        Raises:
            ConfigError: the session has tools.
        """
        if session.tools:
            raise no_tools(self.name)
        recognized = self._recognizer.transcribe(utterance.clip, interrupt) if utterance.clip else None
        transcript = recognized.text if recognized else None
        if transcript:
            self._keep_transcript(session, utterance, transcript)
            yield Transcript(transcript)
        words = _shortened(transcript) if transcript and has_words(transcript) else ""
        text = "\n".join(part for part in (words, utterance.prompt) if part)
        report = PassReport(model_passes=1, prompt_tokens=0, cached_tokens=0, reply_tokens=0, transcript=transcript)
        if interrupt.is_set():
            return report
        if not text:
            yield NO_WORDS
            return report
        if words and recognized and recognized.language != ENGLISH and not self._is_large:
            yield english_only(recognized.language)
            return report
        answered = yield from self._text_model.answer(self._prompts.prompt(self._shown(session), text), interrupt)
        return replace(answered, transcript=transcript)

    def prefill_history(self, session: Session) -> None:
        """Prefill the turns that the next prompt shows."""
        self._text_model.read_ahead(self._prompts.history(self._shown(session)))

    def close(self) -> None:
        """Free both models."""
        del self._recognizer, self._text_model, self._prompts

    def _keep_transcript(self, session: Session, utterance: Utterance, transcript: str) -> None:
        for key in _keys(session, len(session.turns), utterance.placeholder):
            self._transcripts[key] = transcript
        while len(self._transcripts) > TRANSCRIPTS_KEPT:
            self._transcripts.popitem(last=False)

    def _shown(self, session: Session) -> Session:
        """Return the session as a large model sees it: with the transcripts of this engine for the placeholders."""
        if not self._is_large:
            return session
        turns = (
            replace(turn, user=self._transcript(session, number, turn) or turn.understood or turn.user, understood="")
            for number, turn in enumerate(session.turns)
        )
        return replace(session, turns=tuple(turns))

    def _transcript(self, session: Session, number: int, turn: Turn) -> str:
        keys = _keys(session, number, turn.user)
        return next((self._transcripts[key] for key in keys if key in self._transcripts), "")


def _keys(session: Session, number: int, placeholder: str) -> list[_TurnKey]:
    """Return what tells a turn from others: its place, its predecessor or session, and its placeholder.

    A chat may get its name after its first turn; the second key finds the transcript of that turn then.
    """
    if number:
        return [(None, number, session.turns[number - 1], placeholder)]
    return [(name, 0, None, placeholder) for name in dict.fromkeys((session.name, None))]


def model_name(whisper: Path | None, answer_model: Path | None) -> str:
    """Return the name of the two models that records have; None stands for the one that comes with the engine."""
    return f"{whisper.name if whisper else WHISPER} + {answer_model.stem if answer_model else SHIPPED}"


def has_words(transcript: str) -> bool:
    """Tell whether a transcript has a letter or digit of any script; Whisper writes `...` or notes for music."""
    return any(char.isalnum() for char in transcript)


def _shortened(transcript: str) -> str:
    words = transcript.split()
    if len(words) <= TRANSCRIPT_WORDS_FIRST + TRANSCRIPT_WORDS_LAST:
        return transcript
    return f"{' '.join(words[:TRANSCRIPT_WORDS_FIRST])} ... {' '.join(words[-TRANSCRIPT_WORDS_LAST:])}"
