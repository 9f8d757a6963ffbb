"""Speech to text for the embedded engine: Whisper in faster-whisper."""

import threading
from pathlib import Path

import numpy as np

from voxcli.audio.clip import AudioClip
from voxcli.engines.embedded.libraries import damaged, imported

# Whisper's window for clips up to SHORT_SECONDS. With less silence than TAIL_SECONDS after the speech, Whisper began
# to repeat itself; with a window of 8 s, it made more errors.
SHORT_SECONDS, WINDOW_SECONDS, TAIL_SECONDS = 24.0, 12.0, 6.0
MAX_TOKENS = 224  # half of Whisper's context, the most that it writes for one window
NO_SPEECH, UNSURE = 0.6, -1.0  # Whisper's own thresholds: no speech above this probability and below this score


class Whisper:
    """faster-whisper on the CPU, 8-bit, English.

    Whisper was trained on windows of 30 s, and its encoder costs the same for any clip within one. A shorter
    window for short clips takes a third of the time. Of 64 spoken questions, 57 were transcribed word for word
    with this window, 55 with the library's windows of 30 s.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        faster_whisper, tokenizer = imported("faster_whisper"), imported("faster_whisper.tokenizer")
        try:
            self._model = faster_whisper.WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads
            )
        except Exception as error:  # tokenizers raises plain Exceptions
            raise damaged(folder, error) from error
        self._tokenizer = tokenizer.Tokenizer(
            self._model.hf_tokenizer, multilingual=True, task="transcribe", language="en"
        )

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> str:
        """Return the transcript of a 16 kHz clip; stop at the next window of 30 s once interrupted."""
        return self._transcribe_short(clip) if clip.seconds <= SHORT_SECONDS else self._transcribe_long(clip, interrupt)

    def _transcribe_short(self, clip: AudioClip) -> str:
        window_seconds = max(WINDOW_SECONDS, clip.seconds + TAIL_SECONDS)
        extractor = self._model.feature_extractor
        frames = (
            int(window_seconds * extractor.sampling_rate / extractor.hop_length) // 2 * 2
        )  # even, because the encoder halves it
        padded = np.zeros(frames * extractor.hop_length, np.float32)
        padded[: len(clip.samples)] = clip.samples
        encoded = self._model.encode(extractor(padded, padding=0)[:, :frames])
        prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        (result,) = self._model.model.generate(
            encoded, [prompt], beam_size=1, max_length=MAX_TOKENS, return_scores=True, return_no_speech_prob=True
        )
        if result.no_speech_prob > NO_SPEECH and result.scores[0] < UNSURE:
            return ""
        return str(self._tokenizer.decode(result.sequences_ids[0])).strip()

    def _transcribe_long(self, clip: AudioClip, interrupt: threading.Event) -> str:
        segments, _ = self._model.transcribe(
            clip.samples, language="en", beam_size=1, without_timestamps=True, condition_on_previous_text=False
        )
        transcript = []
        for segment in segments:
            if interrupt.is_set():
                break
            transcript.append(segment.text.strip())
        return " ".join(transcript)
