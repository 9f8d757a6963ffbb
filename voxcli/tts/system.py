"""System voices (espeak-ng, macOS, Windows) through pyttsx3, which runs in a worker process.

pyttsx3 plays nothing here; it renders files, which are read as clips.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxcli.tts import worker
from voxcli.tts.process import WorkerProcess
from voxcli.tts.rendering import START_SECONDS, RenderingSynthesizer
from voxcli.tts.voice import Voice, choose

WORKER_COMMAND = (sys.executable, "-P", str(Path(worker.__file__)))  # -P: import nothing from the current folder.


class Pyttsx3Synthesizer(RenderingSynthesizer):
    """Implements `voxcli.core.protocols.Synthesizer` with pyttsx3."""

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
        super().__init__(command, timeout_seconds=timeout_seconds, checked=bool(voice), install=_install_command())

    def voices(self) -> list[Voice]:
        """Return the system's voices; raises SpeechError where there is no speech engine."""
        return _voices(self.ask(START_SECONDS, do="voices"))

    def settings(self, worker: WorkerProcess) -> dict[str, Any]:
        """Return the chosen voice's id and the rate; raises ConfigError if there is no such voice."""
        listed = _voices(worker.ask(START_SECONDS, do="voices")) if self._voice else []
        voice = choose(self._voice, listed).id if self._voice else None
        return {"voice": voice, "rate": self._words_per_minute}


def _voices(answer: dict[str, Any]) -> list[Voice]:
    return [
        Voice("pyttsx3", voice["name"].strip(), voice["id"], tuple(voice["languages"]), voice.get("default", False))
        for voice in answer["voices"]
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
