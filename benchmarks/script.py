"""The conversation that every implementation answers, with the same clips and the same numbers of tokens.

    <s>  [INST]{placeholder}[/INST]{reply}</s> ...  [INST][BEGIN_AUDIO][AUDIO]*n[/INST]

The layout is that of `voxcli.engines.voxtral.prompt`, without a tokenizer: text is random ids, which cost as
much as words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.engines.voxtral.runtime.model import audio_tokens_per_window

BEGIN, END, USER, USER_END, BEGIN_AUDIO, TRANSCRIBE = 1, 2, 3, 4, 25, 34
CONTROL_IDS = 1000  # the first ids of Voxtral's vocabulary, none of them text
PLACEHOLDER_TOKENS = 20  # of `[User audio input - 35200 samples, 2.20s]`
LANGUAGE_TOKENS = 3  # of `lang:en`, before [TRANSCRIBE]
TOKENS_PER_WORD = 4 / 3  # of English
CLIP_SECONDS = 2.0


@dataclass(frozen=True)
class Script:
    """A conversation of similar turns."""

    audio_id: int
    audio_tokens: int  # of a clip
    vocabulary: int
    reply_tokens: int
    transcript_tokens: int
    seed: int = 7

    @classmethod
    def of(cls, config: Any, *, reply_tokens: int, transcript_words: int = 10) -> "Script":
        """Return the conversation for a model with this `VoxtralConfig`."""
        return cls(
            config.audio_token_id,
            audio_tokens_per_window(config.audio_config),
            config.text_config.vocab_size,
            reply_tokens,
            round(transcript_words * TOKENS_PER_WORD),
        )

    def finished(self, turns: int) -> list[int]:
        """Return the ids of a number of finished turns: placeholders and replies, no audio."""
        ids = [BEGIN]
        for number in range(1, turns + 1):
            words = np.random.default_rng((self.seed, number)).integers(
                CONTROL_IDS, self.vocabulary, PLACEHOLDER_TOKENS + self.reply_tokens
            )
            ids += [USER, *words[:PLACEHOLDER_TOKENS].tolist(), USER_END, *words[PLACEHOLDER_TOKENS:].tolist(), END]
        return ids

    def prompt(self, number: int) -> list[int]:
        """Return the whole prompt of turn `number`, the first being 1."""
        return [*self.finished(number - 1), USER, *self._audio(), USER_END]

    def transcription(self) -> list[int]:
        """Return the prompt for a transcription of the clip, as Voxtral's processor writes it."""
        return [BEGIN, USER, *self._audio(), USER_END, *range(CONTROL_IDS, CONTROL_IDS + LANGUAGE_TOKENS), TRANSCRIBE]

    def clips(self) -> Iterator[AudioClip]:
        """Yield clips without end: noise as long as a short question, which costs as much as speech.

        No two are alike, so that no clip is served from a cache.
        """
        return (self._clip(number) for number in count())

    def _clip(self, number: int) -> AudioClip:
        samples = np.random.default_rng((self.seed, number)).normal(0.0, 0.1, round(CLIP_SECONDS * SAMPLE_RATE))
        return AudioClip(samples.astype(np.float32), SAMPLE_RATE)

    def _audio(self) -> list[int]:
        return [BEGIN_AUDIO, *[self.audio_id] * self.audio_tokens]
