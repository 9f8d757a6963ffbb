"""Transcribes short answers such as "yes" with the embedded engine's Whisper, whichever engine replies."""

import logging
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from voxcli.audio.clip import AudioClip
from voxcli.engines.embedded import chosen, weights
from voxcli.engines.embedded.whisper import Recognized, Whisper
from voxcli.errors import ModelError, VoxError

log = logging.getLogger(__name__)


class AnswerRecognizer(Protocol):
    """The part of `Whisper` that transcribes."""

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> Recognized: ...


class AnswerTranscriber:
    """Implements `voxcli.chat.responses.approval.Transcribe` with a recognizer that is loaded when it is needed."""

    def __init__(self, load: Callable[[], AnswerRecognizer], notice: Callable[[str], None]) -> None:
        """Load nothing yet.

        Args:
            load: returns the recognizer; raises VoxError.
            notice: told once if nothing can be transcribed.
        """
        self._load = load
        self._notice = notice
        self._lock = threading.Lock()
        self._recognizer: AnswerRecognizer | None = None
        self._has_failed = False

    def prepare(self) -> None:
        """Load the recognizer in the background, because an answer may come soon."""
        if self._recognizer is None and not self._has_failed:
            threading.Thread(target=self._loaded, name="answers", daemon=True).start()

    def __call__(self, clip: AudioClip, interrupt: threading.Event) -> str:
        """Return the words of a clip; "" if there are none, or it can't be transcribed."""
        recognizer = self._loaded()
        if recognizer is None:
            return ""
        try:
            return recognizer.transcribe(clip, interrupt).text
        except VoxError as error:
            self._fail(error)
            return ""

    def _loaded(self) -> AnswerRecognizer | None:
        with self._lock:
            if self._recognizer is None and not self._has_failed:
                try:
                    self._recognizer = self._load()
                except VoxError as error:
                    self._fail(error)
            return self._recognizer

    def _fail(self, error: VoxError) -> None:
        if not self._has_failed:
            self._notice(f"spoken answers can't be understood, so press a key: {error.message}")
        self._has_failed, self._recognizer = True, None


def answer_transcriber(
    cache: Path, whisper: str, language: str, notice: Callable[[str], None]
) -> AnswerTranscriber | None:
    """Return what transcribes answers; None where the embedded engine's Whisper is not installed.

    Args:
        cache: folder of the embedded engine's weights.
        whisper: the setting `embedded.whisper`.
        language: code of the language of all answers; "auto" to detect it in each.
    """
    if find_spec("faster_whisper") is None:
        return None
    try:
        folder = chosen.whisper(whisper)
    except ModelError as error:
        log.info("no transcripts of answers: %s", error.message)
        return None
    if folder is None and not weights.prepared(cache) and weights.missing_packages():
        return None

    def load() -> Whisper:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # `EmbeddedEngine.load` says why.
        return Whisper(folder or weights.prepare(cache) / "whisper", os.cpu_count() or 1, language)

    return AnswerTranscriber(load, notice)
