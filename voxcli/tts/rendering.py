"""Renders sentences with a speech engine in a worker process, which is replaced where it hangs or dies."""

import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from voxcli.audio.clip import AudioClip, read_unchanged
from voxcli.core.sentences import LONGEST_PIECE_CHARS
from voxcli.errors import AudioInputError, SpeechError
from voxcli.tts.process import WorkerFailed, WorkerProcess

START_SECONDS = 20.0  # Loading Python, a driver and its voices from a cold disk; Windows first builds COM wrappers.
RENDER_SUFFIX = ".aiff" if sys.platform == "darwin" else ".wav"  # The format of pyttsx3's drivers, whatever the name.
WARM_UP = "Ready."  # A process's first sentence takes longer than the others.
ATTEMPTS = 2  # A sentence that fails is tried once more, in a new process.


class RenderingSynthesizer:
    """Implements `voxcli.core.protocols.Synthesizer` in a process that obeys `voxcli.tts.worker`; a context manager.

    The constructor returns at once. The process starts and warms up in the background, and the first sentence waits
    for it. A process that hangs or dies is replaced.
    """

    def __init__(self, command: Sequence[str], *, timeout_seconds: float, checked: bool, install: str) -> None:
        """Start the process.

        Args:
            command: starts the process.
            timeout_seconds: the time limit for rendering a sentence; longer texts get more.
            checked: wait until the process has accepted its settings.
            install: the hint of the error where there is no speech engine.

        Raises:
            VoxError: `checked`, and the process does not accept its settings.
        """
        self._command = command
        self._timeout_seconds = timeout_seconds
        self._install = install
        self._lock = threading.Lock()  # Allows one request at a time.
        self._worker: WorkerProcess | None = None
        self._numbers = itertools.count()
        self._closed = False
        self._warm_up_error: BaseException | None = None
        self._warming = threading.Thread(target=self._warm_up, name="speech warm-up", daemon=True)
        if checked:
            self._check_settings()
        self._warming.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The id of the worker process, or None where none runs."""
        return self._worker.pid if self._worker else None

    def wait_until_ready(self) -> None:
        """Wait until a first sentence has been rendered.

        Raises:
            SpeechError: the voice is closed, or failed twice.
        """
        self._warming.join()
        self._check_open()
        if self._warm_up_error:
            raise self._warm_up_error

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        """Yield the sentence as one clip at the voice's rate; yield nothing for blank text.

        Raises:
            SpeechError: the voice is closed, or failed twice.
        """
        if not sentence.strip():
            return
        with self._lock:
            clip = self._rendered(sentence)
        if len(clip.samples):
            yield clip

    def close(self) -> None:
        """Kill the process; a sentence that is being rendered fails. May be called again."""
        self._closed = True
        if worker := self._worker:
            worker.kill()
        if self._warming.ident:
            self._warming.join()
        with self._lock:
            self._drop_worker()

    def settings(self, worker: WorkerProcess) -> dict[str, Any]:
        """Return what a new process is told in its first request, `set`; it may be asked for that."""
        raise NotImplementedError

    def ask(self, timeout_seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request to the process and return its answer; raises SpeechError without a speech engine."""
        with self._lock:
            return self._running().ask(timeout_seconds, **request)

    def _check_settings(self) -> None:
        try:
            with self._lock:
                self._running()
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> None:
        try:
            with self._lock:
                self._rendered(WARM_UP)
        except BaseException as error:  # noqa: BLE001 - wait_until_ready() raises it; a sentence tries again
            self._warm_up_error = error

    def _rendered(self, sentence: str) -> AudioClip:
        failure: WorkerFailed | None = None
        for _ in range(ATTEMPTS):
            try:
                return self._render(self._running(), sentence)
            except WorkerFailed as error:
                failure = error
                self._drop_worker()
        self._check_open()
        raise SpeechError(f"the voice failed: {failure}", hint="voxcli doctor")

    def _render(self, worker: WorkerProcess, sentence: str) -> AudioClip:
        path = worker.folder / f"{next(self._numbers)}{RENDER_SUFFIX}"
        timeout_seconds = self._timeout_seconds * max(1.0, len(sentence) / LONGEST_PIECE_CHARS)
        worker.ask(timeout_seconds, do="render", text=sentence, path=str(path))
        try:
            return read_unchanged(path)
        except (OSError, AudioInputError) as error:
            raise WorkerFailed(f"rendered no sound: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    def _running(self) -> WorkerProcess:
        """Return the process, after starting it and setting the voice if needed; the lock must be held."""
        self._check_open()
        if self._worker is None:
            try:
                self._worker = WorkerProcess(self._command)
                self._check_open()  # close() may have missed the new process.
                self._worker.ask(START_SECONDS, do="set", **self.settings(self._worker))
            except (OSError, WorkerFailed) as error:
                self._drop_worker()
                self._check_open()
                raise SpeechError(f"no speech engine: {error}", hint=self._install) from error
        return self._worker

    def _check_open(self) -> None:
        if self._closed:
            raise SpeechError("the voice is closed")

    def _drop_worker(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None
