"""The neural voice: English, through the library hibari, which runs in a worker process.

hibari-tts is an extra. Its package holds the weights of one voice; others are used where they were downloaded.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from voxcli.errors import ConfigError, SpeechError, missing_extra
from voxcli.tts.process import WorkerProcess
from voxcli.tts.rendering import RenderingSynthesizer
from voxcli.tts.voice import Voice, unknown_voice

WORKER_COMMAND = (sys.executable, "-P", "-m", "voxcli.tts.neural_worker")
REINSTALL = "pip install --force-reinstall --no-deps hibari-tts==0.2.1"
# The setting at which the voice keeps its own speed: then it says the sentences of `benchmarks.voices` at 212 words per
# minute, where espeak-ng set to 180 says them at 211.
NATIVE_WORDS_PER_MINUTE = 180


@dataclass(frozen=True)
class NeuralWeights:
    """The weights of a voice of hibari."""

    sha256: str
    language: str


DEFAULT = "heart"  # The voice whose weights are in the package.
WEIGHTS = {  # The checksums belong to hibari-tts 0.2.1.
    "heart": NeuralWeights("5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8", "en-US"),
    "emma": NeuralWeights("f709f0488ee63b583a22189a955aaf4257b9806dd330be3490661e53af0a89c1", "en-GB"),
    "fenrir": NeuralWeights("f59fbd87908c91f827bc21b1b89443757b9a8580db9eee20aa948deb731321f4", "en-US"),
    "fable": NeuralWeights("c28529302f2d27cd12f62625c24425888c4e3c2675583100ec530259136b8bc6", "en-GB"),
    "kore": NeuralWeights("346885752673e45d42f9864c9e2432094bc4b6385df060d4b83273da764d2fa9", "en-US"),
}


class NeuralSynthesizer(RenderingSynthesizer):
    """Implements `voxcli.core.protocols.Synthesizer` with hibari, which speaks English."""

    def __init__(
        self,
        voice: str = DEFAULT,
        *,
        words_per_minute: int,
        timeout_seconds: float,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Open a voice by its name.

        Args:
            timeout_seconds: the time limit for rendering a sentence; longer texts get more.
            command: starts a process that follows the protocol of `voxcli.tts.neural_worker`.

        Raises:
            SpeechError: hibari-tts is not installed.
            ConfigError: there is no such voice, or it was not downloaded.
        """
        if not is_installed():
            raise missing_extra(SpeechError, "the neural voice", "neural")
        self._settings = {
            "voice": voice,
            "path": str(_model(voice)),
            "sha256": WEIGHTS[voice].sha256,
            "speed": words_per_minute / NATIVE_WORDS_PER_MINUTE,
        }
        super().__init__(command, timeout_seconds=timeout_seconds, checked=False, install=REINSTALL)

    def settings(self, worker: WorkerProcess) -> dict[str, Any]:
        """Return the voice's name, its weights with their checksum, and the speed (1: as trained)."""
        del worker
        return self._settings


def is_installed() -> bool:
    """Return whether the library and what runs its model are installed, without importing them."""
    return find_spec("hibari") is not None and find_spec("onnxruntime") is not None


def listed() -> list[Voice]:
    """Return the voices whose weights are on this machine, that of the package first."""
    if not is_installed():
        return []
    paths = {name: _path(name) for name in WEIGHTS}
    return [
        Voice("neural", name, str(path), (WEIGHTS[name].language,), is_default=name == DEFAULT)
        for name, path in paths.items()
        if path.is_file()
    ]


def can_say(text: str) -> bool:
    """Return whether most letters of a text are Latin; the voice skips others, or spells them."""
    letters = [char for char in text if char.isalpha()]
    return 2 * sum(char < "\u0250" for char in letters) >= len(letters)


def _model(name: str) -> Path:
    if name not in WEIGHTS:
        raise unknown_voice(name, WEIGHTS)
    path = _path(name)
    if not path.is_file():
        fetch = f'hibari --voice {name} "Hello." -o hello.wav'
        raise ConfigError(f"the neural voice {name} is not there: {path} is missing", hint=f"{fetch}  (downloads it)")
    return path


def _path(name: str) -> Path:
    from hibari.voices import ASSETS, VOICES, cache_dir

    folder = Path(ASSETS if name == DEFAULT else cache_dir())
    return folder / str(VOICES[name]["file"])
