"""System voices (espeak-ng, macOS, Windows) through pyttsx3, which runs in a worker process.

pyttsx3 plays nothing here; it renders files, which are read as clips.
"""

import itertools
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from voxcli.audio.clip import AudioClip, read_unchanged
from voxcli.core.sentences import LONGEST_PIECE_CHARS
from voxcli.errors import AudioInputError, SpeechError
from voxcli.tts import worker
from voxcli.tts.process import WorkerFailed, WorkerProcess
from voxcli.tts.voice import Voice, choose

WORKER_COMMAND = (sys.executable, "-P", str(Path(worker.__file__)))  # -P: import nothing from the current folder.
START_SECONDS = 20.0  # Loading Python, a driver and its voices from a cold disk; Windows first builds COM wrappers.
RENDER_SUFFIX = ".aiff" if sys.platform == "darwin" else ".wav"  # The drivers' format, whatever the name.
WARM_UP = "Ready."  # Rendered in the background, because a process's first sentence takes longer than the others.
ATTEMPTS = 2  # A sentence that fails is tried once more, in a new process.


class Pyttsx3Synthesizer:
    """Implements `voxcli.core.turn.Synthesizer` with pyttsx3; a context manager.

    The constructor returns at once. The worker process starts and warms up in the background, and the first sentence
    waits for it. A process that hangs or dies is replaced.
    """

    def __init__(
        self,
        voice: str = "",
        *,
        words_per_minute: int,
        timeout_seconds: float,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Open a voice by its id, its language or a part of its name; "" is the system's default voice.

        Args:
            timeout_seconds: the time limit for rendering a sentence; longer texts get more.
            command: starts a process that implements the protocol of `voxcli.tts.worker`.

        Raises:
            ConfigError: there is no such voice.
            SpeechError: a voice is named and the system has no speech engine.
        """
        self._voice = voice
        self._words_per_minute = words_per_minute
        self._timeout_seconds = timeout_seconds
        self._command = command
        self._lock = threading.Lock()  # Allows one request at a time.
        self._worker: WorkerProcess | None = None
        self._numbers = itertools.count()
        self._closed = False
        self._warm_up_error: BaseException | None = None
        self._warming = threading.Thread(target=self._warm_up, name="speech warm-up", daemon=True)
        if voice:
            self._check_voice()
        self._warming.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The id of the worker process, or None where none runs."""
        return self._worker.pid if self._worker else None

    def voices(self) -> list[Voice]:
        """Return the system's voices; raises SpeechError where there is no speech engine."""
        with self._lock:
            return _voices(self._running())

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

    def _check_voice(self) -> None:
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
                self._set_voice(self._worker)
            except (OSError, WorkerFailed) as error:
                self._drop_worker()
                self._check_open()
                raise SpeechError(f"no speech engine: {error}", hint=_install_command()) from error
        return self._worker

    def _set_voice(self, worker: WorkerProcess) -> None:
        voice = choose(self._voice, _voices(worker)).id if self._voice else None
        worker.ask(START_SECONDS, do="set", voice=voice, rate=self._words_per_minute)

    def _check_open(self) -> None:
        if self._closed:
            raise SpeechError("the voice is closed")

    def _drop_worker(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None


def _voices(worker: WorkerProcess) -> list[Voice]:
    listed: list[dict[str, Any]] = worker.ask(START_SECONDS, do="voices")["voices"]
    return [
        Voice("pyttsx3", voice["name"].strip(), voice["id"], tuple(voice["languages"]), voice.get("default", False))
        for voice in listed
    ]


def _install_command() -> str:
    """Return the command that installs this system's speech engine."""
    if sys.platform == "darwin":
        return "pip install --force-reinstall pyttsx3 pyobjc"
    if sys.platform == "win32":
        return "pip install --force-reinstall pyttsx3 pywin32 comtypes"
    installers = {
        "apt-get": "sudo apt-get install espeak-ng",
        "dnf": "sudo dnf install espeak-ng",
        "pacman": "sudo pacman -S espeak-ng",
        "zypper": "sudo zypper install espeak-ng",
    }
    return next((command for tool, command in installers.items() if shutil.which(tool)), "install espeak-ng")
