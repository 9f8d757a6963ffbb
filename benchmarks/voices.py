"""Measures voices side by side: `python -m benchmarks.voices neural pyttsx3 piper:PATH.onnx`.

Each voice says the same sentences, one at a time, as a conversation gives them. The time until the first audio is
taken after a warm-up. The transcript of the embedded engine's Whisper is compared with the text, word by word.
"""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, publish, require_writable
from benchmarks.misheard_words import distance
from benchmarks.report import Figure, median, percentile, spread
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.config.paths import cache_folder
from voxcli.core.protocols import Synthesizer
from voxcli.engines.embedded import weights
from voxcli.engines.embedded.whisper import Whisper
from voxcli.tts.voices import open_synthesizer

WORDS_PER_MINUTE, TIMEOUT_SECONDS = 180, 20.0
PAUSE_SECONDS = 0.3  # between sentences that Whisper transcribes in one go
WINDOW_SECONDS = 22.0  # the embedded engine transcribes clips up to 24 s in one pass
AUDIBLE_DBFS = -55.0  # a level that is silence in any room
LEVEL_SECONDS = 0.005
BAR_WORDS, BAR_AUDIO_MS, BAR_SILENCE_MS = 0.03, 60.0, 20.0
SENTENCES = (
    "The capital of France is Paris.",
    "Water boils at a lower temperature on a high mountain.",
    "She opened the window and listened to the rain.",
    "I would put the butter in the fridge before it melts.",
    "Yes, that is right.",
    "The train to the airport leaves from the other platform.",
    "Bees collect nectar from flowers and turn it into honey.",
    "You can find the library behind the old church.",
    "Could you tell me what you would like to hear next?",
    "Plants use sunlight to make sugar from water and air.",
    "He wrote a long letter to his sister in Canada.",
    "The moon is smaller than the earth and has no air.",
    "My favorite season is autumn, because the leaves turn red.",
    "A good night of sleep helps you to remember what you learned.",
    "The museum is closed on Monday, but open on the weekend.",
    "Please speak a little louder, there is music in the background.",
    "Gold is heavier than silver, and it does not rust.",
    "The children built a castle of sand near the water.",
    "Most birds fly south before the winter begins.",
    "Thank you for asking, and have a nice day.",
)


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence as a voice said it."""

    text: str
    samples: Samples  # all clips in one, shape (n,)
    sample_rate: int  # Hertz
    first_audio_ms: float  # Time from the call to the first clip.


def say_all(synthesizer: Synthesizer, sentences: Sequence[str] = SENTENCES) -> list[SpokenSentence]:
    """Let a voice say sentences, and measure the wait for each."""
    synthesizer.wait_until_ready()
    return [_spoken(synthesizer, sentence) for sentence in sentences]


def _spoken(synthesizer: Synthesizer, sentence: str) -> SpokenSentence:
    began = time.perf_counter()
    clips: list[AudioClip] = []
    first = 0.0
    for clip in synthesizer.synthesize(sentence):
        first = first or time.perf_counter()
        clips.append(clip)
    samples = np.concatenate([clip.samples for clip in clips])
    return SpokenSentence(sentence, samples, clips[0].sample_rate, 1000 * (first - began))


def silence_ms(spoken: SpokenSentence) -> float:
    """Return the milliseconds before the first sound."""
    frame = round(LEVEL_SECONDS * spoken.sample_rate)
    frames = spoken.samples[: len(spoken.samples) // frame * frame].reshape(-1, frame)
    audible = np.mean(np.square(frames), axis=1) > 10 ** (AUDIBLE_DBFS / 10)
    return float(np.argmax(audible)) * 1000 * LEVEL_SECONDS if audible.any() else float("inf")


def transcripts(spoken: Sequence[SpokenSentence], whisper: Whisper) -> list[tuple[str, str]]:
    """Return pairs of what was said and its transcript; several sentences make up a pair."""
    texts, sounds = [""], [np.zeros(0, np.float32)]
    for sentence in spoken:
        clip = AudioClip(sentence.samples, sentence.sample_rate).resampled(SAMPLE_RATE)
        if len(sounds[-1]) and len(sounds[-1]) + len(clip.samples) > WINDOW_SECONDS * SAMPLE_RATE:
            texts.append("")
            sounds.append(np.zeros(0, np.float32))
        pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
        texts[-1] = f"{texts[-1]} {sentence.text}".strip()
        sounds[-1] = np.concatenate([sounds[-1], clip.samples, pause])
    return [
        (text, whisper.transcribe(AudioClip(samples), threading.Event()).text)
        for text, samples in zip(texts, sounds, strict=True)
    ]


def misheard_share(spoken: Sequence[SpokenSentence], whisper: Whisper) -> float:
    """Return the share of words that Whisper gets wrong, from 0; more than 1 if it adds many."""
    pairs = [(_words(text), _words(transcript)) for text, transcript in transcripts(spoken, whisper)]
    return sum(distance(*pair) for pair in pairs) / sum(len(words) for words, _ in pairs)


def words_per_minute(spoken: Sequence[SpokenSentence]) -> float:
    """Return the rate of the speech, without the silence before each sentence."""
    seconds = sum(len(each.samples) / each.sample_rate - silence_ms(each) / 1000 for each in spoken)
    return 60 * sum(len(_words(each.text)) for each in spoken) / seconds


def embedded_whisper(threads: int = 2) -> Whisper:
    """Return the embedded engine's Whisper; raises ModelError if it is not installed."""
    return Whisper(weights.prepare(cache_folder()) / "whisper", threads)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def figures(voice: str, spoken: Sequence[SpokenSentence], whisper: Whisper) -> list[Figure]:
    """Return what was measured of a voice, beside the bars of the neural voice."""
    waits, silences = [each.first_audio_ms for each in spoken], [silence_ms(each) for each in spoken]
    share, rate = misheard_share(spoken, whisper), words_per_minute(spoken)
    wait, silence = median(waits), max(silences)
    return [
        Figure(
            f"{voice}: words misheard, {len(spoken)} sentences",
            f"{100 * share:.1f} %",
            f"at most {100 * BAR_WORDS:.0f} %",
            share <= BAR_WORDS,
            {"share": share, "transcripts": transcripts(spoken, whisper)},
        ),
        Figure(
            f"{voice}: first audio after the sentence, median and 95th percentile",
            f"{wait:.0f} ms, {percentile(waits, 0.95):.0f} ms",
            f"at most {BAR_AUDIO_MS:.0f} ms",
            wait <= BAR_AUDIO_MS,
            spread(waits),
        ),
        Figure(
            f"{voice}: silence before the sound, longest",
            f"{silence:.0f} ms",
            f"at most {BAR_SILENCE_MS:.0f} ms",
            silence <= BAR_SILENCE_MS,
            spread(silences),
        ),
        Figure(f"{voice}: rate where {WORDS_PER_MINUTE} is set", f"{rate:.0f} words per minute"),
    ]


def measure(
    voices: Annotated[
        list[str] | None, typer.Argument(metavar="[VOICE]...", help="Voices, as --voice of voxcli takes them.")
    ] = None,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Compare voices: what a recognizer mishears, the wait for the first audio, the silence before it."""
    require_writable(json, force=force)
    whisper = embedded_whisper()
    found: list[Figure] = []
    for voice in voices or ["neural", "pyttsx3"]:
        with open_synthesizer(voice, words_per_minute=WORDS_PER_MINUTE, timeout_seconds=TIMEOUT_SECONDS) as synthesizer:
            found += figures(voice, say_all(synthesizer), whisper)
    publish(found, json)


app = command_line(measure)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.voices")
