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
from voxcli.printable import first_line

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks whether a transcript is still wanted, while the recognizer is loaded


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
        self._lock = threading.Lock()  # guards `_loading`
        self._loading: threading.Thread | None = None
        self._recognizer: AnswerRecognizer | None = None
        self._has_failed = False

    def prepare(self) -> None:
        """Load the recognizer in the background, because an answer may come soon."""
        self._begin_to_load()

    def __call__(self, clip: AudioClip, interrupt: threading.Event) -> str:
        """Return the words of a clip; "" if there are none, it can't be transcribed, or `interrupt` is set."""
        loading = self._begin_to_load()
        while loading.is_alive():
            if interrupt.is_set():
                return ""
            loading.join(LOOK_SECONDS)
        if self._recognizer is None:
            return ""
        try:
            return self._recognizer.transcribe(clip, interrupt).text
        except VoxError as error:
            self._fail(error)
            return ""

    def _begin_to_load(self) -> threading.Thread:
        """Return the thread that loads the recognizer, or has loaded it."""
        with self._lock:
            if self._loading is None:
                self._loading = threading.Thread(target=self._loaded, name="answers", daemon=True)
                self._loading.start()
            return self._loading

    def _loaded(self) -> None:
        try:
            self._recognizer = self._load()
        except Exception as error:
            self._fail(error if isinstance(error, VoxError) else ModelError(first_line(error)))
            if not isinstance(error, VoxError):
                raise  # The hook of threads reports the defect.

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
