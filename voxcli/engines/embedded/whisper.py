"""Speech to text for the embedded engine: Whisper in faster-whisper."""

import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxcli.audio.clip import AudioClip
from voxcli.engines.embedded.libraries import damaged, imported

SHORT_SECONDS = 24.0  # clips up to this length get a window of their own
MAX_TOKENS = 224  # half of Whisper's context, the most that it writes for one window
REPETITIVE = 2.4  # Whisper's own threshold: text that zlib makes so many times smaller repeats itself
NO_SPEECH, UNSURE = 0.6, -1.0  # Whisper's own thresholds: no speech above this probability and below this score
ENGLISH = "en"
# Least probability of another language than English, and how many times it has to be that of English. Most clips of
# this engine are in English, and Whisper base takes unclear ones for Thai or Japanese. docs/engines.md has the figures.
OTHER_LANGUAGE, OTHER_TIMES_ENGLISH = 0.5, 10.0


@dataclass(frozen=True)
class Window:
    """The audio that Whisper is given for a short clip: the clip, then silence."""

    least_seconds: float
    tail_seconds: float  # least silence after the clip

    def seconds(self, clip_seconds: float) -> float:
        return max(self.least_seconds, clip_seconds + self.tail_seconds)


# In windows of 12 s and of 9 s, 45 of 62 short clips were transcribed word for word, in 7 s 42 and in 5 s 37. The
# encoder takes 0.64 times as long for 9 s. With less silence than 6 s after the speech, Whisper sometimes repeats
# itself; then the wide window is used.
NARROW, WIDE = Window(9.0, 4.0), Window(12.0, 6.0)


@dataclass(frozen=True)
class Recognized:
    """The words of a clip, and the language that they are in by Whisper's code."""

    text: str
    language: str = ENGLISH


class Whisper:
    """faster-whisper on the CPU, 8-bit.

    Whisper was trained on windows of 30 s, and its encoder costs the same for any clip within one. Of 64 spoken
    questions, 57 were transcribed word for word in a window of 12 s, 55 in the library's windows of 30 s.
    """

    def __init__(self, folder: Path, threads: int, language: str = "auto") -> None:
        """Load the model.

        Args:
            language: code of the language of all clips, such as "fr"; "auto" to detect it in each. A model that
                knows English only takes every clip for English.
        """
        faster_whisper, tokenizer = imported("faster_whisper"), imported("faster_whisper.tokenizer")
        try:
            self._model = faster_whisper.WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads
            )
        except Exception as error:  # tokenizers raises plain Exceptions
            raise damaged(folder, error) from error
        self._tokenizer = tokenizer.Tokenizer
        self._language = language if self._model.model.is_multilingual else ENGLISH

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> Recognized:
        """Return the transcript of a 16 kHz clip; stop at the next window of 30 s once interrupted."""
        if clip.seconds > SHORT_SECONDS:
            return self._transcribe_long(clip, interrupt)
        encoded = self.encode(self.features(clip, NARROW.seconds(clip.seconds)))
        language = self.language(encoded)
        text = self.decode(encoded, language)
        if is_repetitive(text) and not interrupt.is_set():
            text = self.decode(self.encode(self.features(clip, WIDE.seconds(clip.seconds))), language)
        return Recognized(text, language)

    def features(self, clip: AudioClip, seconds: float) -> NDArray[np.float32]:
        """Return the mel features of a clip in a window of at least its length, of shape (bands, frames of 10 ms)."""
        extractor = self._model.feature_extractor
        # An even number of frames, because the encoder halves it.
        frames = int(seconds * extractor.sampling_rate / extractor.hop_length) // 2 * 2
        padded = np.zeros(frames * extractor.hop_length, np.float32)
        padded[: len(clip.samples)] = clip.samples
        features: NDArray[np.float32] = extractor(padded, padding=0)[:, :frames]
        return features

    def encode(self, features: NDArray[np.float32]) -> Any:
        """Return the encoder's output for a window, which stays in CTranslate2's own form."""
        return self._model.encode(features)

    def language(self, encoded: Any) -> str:
        """Return the language that was set, or else that of an encoded window: one step of the decoder."""
        if self._language != "auto":
            return self._language
        (found,) = self._model.model.detect_language(encoded)  # pairs of token, such as <|en|>, and probability
        return likely_language({token[2:-2]: probability for token, probability in found})

    def decode(self, encoded: Any, language: str) -> str:
        """Return the words in an encoded window; empty if there is no speech."""
        tokenizer = self._tokenizer_for(language)
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        (result,) = self._model.model.generate(
            encoded, [prompt], beam_size=1, max_length=MAX_TOKENS, return_scores=True, return_no_speech_prob=True
        )
        if result.no_speech_prob > NO_SPEECH and result.scores[0] < UNSURE:
            return ""
        return str(tokenizer.decode(result.sequences_ids[0])).strip()

    def _tokenizer_for(self, language: str) -> Any:
        multilingual = self._model.model.is_multilingual
        return self._tokenizer(
            self._model.hf_tokenizer, multilingual=multilingual, task="transcribe", language=language
        )

    def _transcribe_long(self, clip: AudioClip, interrupt: threading.Event) -> Recognized:
        first = AudioClip(clip.samples[: round(SHORT_SECONDS * clip.sample_rate)], clip.sample_rate)
        language = (
            self.language(self.encode(self.features(first, SHORT_SECONDS)))
            if self._language == "auto"
            else self._language
        )
        segments, _ = self._model.transcribe(
            clip.samples, language=language, beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        transcript = []
        for segment in segments:
            if interrupt.is_set():
                break
            transcript.append(segment.text.strip())
        return Recognized(" ".join(transcript), language)


def likely_language(probabilities: Mapping[str, float]) -> str:
    """Return the most probable language of a clip if it is clearly not English, else English."""
    best = max(probabilities, key=lambda language: probabilities[language])
    least = max(OTHER_LANGUAGE, OTHER_TIMES_ENGLISH * probabilities.get(ENGLISH, 0.0))
    return best if probabilities[best] >= least else ENGLISH


def is_repetitive(text: str) -> bool:
    """Tell whether a transcript says the same thing again and again, as Whisper does where it has lost its way."""
    data = text.encode()
    return len(data) > REPETITIVE * len(zlib.compress(data))
