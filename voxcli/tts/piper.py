"""Neural voices through the library piper, in this process.

piper is an extra, because its licence is the GPL. A voice is a pair of files in a folder, NAME.onnx and
NAME.onnx.json. Synthesis can be interrupted between two sentences.
"""

import logging
import os
import shlex
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from voxcli.audio.clip import AudioClip
from voxcli.errors import ConfigError, SpeechError, missing_extra
from voxcli.printable import first_line
from voxcli.tts.voice import Voice

if TYPE_CHECKING:
    from piper import PiperVoice

log = logging.getLogger(__name__)

SUFFIX = ".onnx"
WARM_UP = "Ready."  # The first sentence takes longer than the others.
NATIVE_WORDS_PER_MINUTE = 180  # The rate of en_US-joe-medium at length_scale 1, measured on the README's questions.


class PiperSynthesizer:
    """Implements `voxcli.core.protocols.Synthesizer` with piper; a context manager.

    The constructor returns at once. The voice loads in the background, and the first sentence waits for it.
    """

    def __init__(self, voice: str, folder: Path, *, words_per_minute: int) -> None:
        """Open a voice by its name in `folder`, or by the path of its .onnx file.

        Raises:
            SpeechError: piper is not installed.
            ConfigError: a file of the voice is missing.
        """
        try:
            import piper  # noqa: F401 - only checks that piper is installed
        except ImportError as error:
            raise missing_extra(SpeechError, "the piper voice", "piper") from error
        self._pace = NATIVE_WORDS_PER_MINUTE / words_per_minute
        self._closed = False
        self._loader = ThreadPoolExecutor(1, "piper load")
        self._loading: Future[PiperVoice] = self._loader.submit(_load, find(voice, folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until the voice is loaded and warm; raises SpeechError if it can't be loaded."""
        self._loading.result()

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        """Yield a clip for each sentence that piper finds in the text.

        Raises:
            SpeechError: the voice is closed, can't be loaded or fails.
        """
        if self._closed:
            raise SpeechError("the voice is closed")
        if not sentence.strip():
            return
        from piper import SynthesisConfig

        voice = self._loading.result()
        config = SynthesisConfig(length_scale=voice.config.length_scale * self._pace)
        try:
            for chunk in voice.synthesize(sentence, config):
                yield AudioClip(chunk.audio_float_array, chunk.sample_rate)
        except Exception as error:
            raise SpeechError(f"the voice failed: {error}") from error

    def close(self) -> None:
        """Close the voice. May be called again."""
        self._closed = True
        self._loader.shutdown()


def find(voice: str, folder: Path) -> Path:
    """Return the .onnx file of a voice, given by its name in `folder` or its path; raises ConfigError."""
    path = Path(voice).expanduser()
    if path.suffix != SUFFIX:
        path = folder / f"{voice}{SUFFIX}"
    for needed in (path, _config_of(path)):
        if not os.path.isfile(needed):  # noqa: PTH113 - a Path raises where it may not look
            fetch = f"python -m piper.download_voices --download-dir {shlex.quote(str(path.parent))} {path.stem}"
            raise ConfigError(f"the piper voice {voice} is not there: {needed} is missing", hint=fetch)
    return path


def listed(folder: Path) -> list[Voice]:
    """Return the voices in `folder`, sorted by name."""
    try:
        paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if _config_of(path).is_file())
    except OSError as error:
        log.warning("no piper voices: %s", error)
        return []
    return [Voice("piper", path.stem, str(path), (path.stem.partition("-")[0],)) for path in paths]


def _config_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _load(path: Path) -> "PiperVoice":
    from piper import PiperVoice

    try:
        voice = PiperVoice.load(path)
        for _ in voice.synthesize(WARM_UP):
            pass
    except Exception as error:
        raise SpeechError(f"can't load the piper voice {path}: {first_line(error)}") from error
    return voice
