"""The worker process of the neural voice; it follows the protocol of `voxcli.tts.worker`.

    python -P -m voxcli.tts.neural_worker FOLDER

    {"do": "set", "voice": NAME, "path": MODEL, "sha256": ..., "speed": 1.0}    {}

The weights are loaded only if they have the checksum. Nothing is downloaded.
"""

import hashlib
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxcli.tts.silence import trimmed
from voxcli.tts.worker import serve

if TYPE_CHECKING:
    from voxcli.audio.clip import Samples

UNKNOWN_WORD = "Voxcli."  # Loads the network for words that are not in the lexicon.
LONGEST_CHARS = 400  # The model's memory grows with the square of a text's length.
SENTENCE_GAP_SECONDS = 0.25  # Silence after a sentence, as between those of a text that the voice says in one go.
CLAUSE_GAP_SECONDS = 0.1  # Silence after a part of a sentence.
SENTENCE_ENDS = tuple(".!?…")
NO = re.compile(r"\bno\.", re.IGNORECASE)  # hibari reads it as "number", which `voxcli.core.speakable` writes out.
CLOSERS = "\"'”’)]»"  # noqa: RUF001 - quotation marks


class NeuralRenderer:
    """Renders text into WAV files with hibari, without the silence that it puts around each sentence."""

    def __init__(self) -> None:
        self._speed = 1.0
        self._hibari: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request; raises what the voice raises, and ValueError for weights with another checksum."""
        if request["do"] == "set":
            self._open(request["voice"], request["path"], request["sha256"])
            self._speed = request["speed"]
        elif request["do"] == "render":
            self._render(request["text"], request["path"])
        return {}

    def _open(self, voice: str, path: str, sha256: str) -> None:
        from hibari import Hibari

        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{path} is damaged: its checksum is wrong")
        self._hibari = Hibari(voice=voice, model=path)
        self._spoken(UNKNOWN_WORD)

    def _render(self, text: str, path: str) -> None:
        from hibari import write_wav

        parts = [
            self._spoken(part)
            for sentence in self._hibari.split_sentences(text)
            for part in textwrap.wrap(sentence, LONGEST_CHARS)
            if any(char.isalnum() for char in part)  # The voice breathes at marks alone.
        ]
        write_wav(path, np.concatenate(parts) if parts else np.zeros(0, np.float32))

    def _spoken(self, text: str) -> "Samples":
        is_sentence = text.rstrip(CLOSERS).endswith(SENTENCE_ENDS)
        gap_seconds = (SENTENCE_GAP_SECONDS if is_sentence else CLAUSE_GAP_SECONDS) / self._speed
        samples = self._hibari(NO.sub("no .", text), speed=self._speed, seed=0)
        return trimmed(samples, self._hibari.sample_rate, gap_seconds)


if __name__ == "__main__":
    serve(sys.argv[1], lambda: NeuralRenderer().answer)
