"""Lists voices, opens the one that a setting names, and speaks a text with it."""

import threading
from collections.abc import Iterator
from pathlib import Path

from voxcli.config.paths import data_folder
from voxcli.core.sentences import PieceCutter
from voxcli.core.speakable import speakable
from voxcli.core.turn import Speaker, Synthesizer
from voxcli.errors import ConfigError
from voxcli.tts import piper
from voxcli.tts.piper import PiperSynthesizer
from voxcli.tts.system import START_SECONDS, Pyttsx3Synthesizer
from voxcli.tts.voice import Voice

LISTING_WORDS_PER_MINUTE = 180  # Any value works, because nothing is spoken.


def open_synthesizer(
    voice: str, *, words_per_minute: int, timeout_seconds: float
) -> Pyttsx3Synthesizer | PiperSynthesizer:
    """Open a voice; the result is a context manager that loads in the background.

    Args:
        voice: "pyttsx3" (the system's default voice), "pyttsx3:NAME" or "NAME" (id, language or part of a
            name), "piper:NAME" or "piper:PATH".
        timeout_seconds: how long a sentence may take before the voice's process is replaced.

    Raises:
        ConfigError: there is no such voice.
        SpeechError: the voice's speech engine is not installed.
    """
    kind, colon, name = voice.partition(":")
    if kind == "piper":
        if not name:
            raise ConfigError("which piper voice?", hint="--voice piper:NAME; voxcli voices lists those that are here")
        return PiperSynthesizer(name, piper_folder(), words_per_minute=words_per_minute)
    wanted = name if kind == "pyttsx3" else voice
    if kind == "pyttsx3" and colon and not name:
        raise ConfigError("which voice of the system?", hint="voxcli voices")
    return Pyttsx3Synthesizer(wanted, words_per_minute=words_per_minute, timeout_seconds=timeout_seconds)


def list_voices() -> Iterator[Voice]:
    """Yield the installed piper voices, then the system's; raises SpeechError without a speech engine."""
    yield from piper.listed(piper_folder())
    with Pyttsx3Synthesizer(words_per_minute=LISTING_WORDS_PER_MINUTE, timeout_seconds=START_SECONDS) as synthesizer:
        yield from synthesizer.voices()


def say(text: str, synthesizer: Synthesizer, speaker: Speaker, interrupt: threading.Event) -> str:
    """Speak a text, wait until it has been played, and return its speakable part, which may be empty."""
    cutter = PieceCutter()
    sentences = [sentence for piece in [*cutter.feed(text), *cutter.flush()] if (sentence := speakable(piece))]
    end = speaker.position
    for sentence in sentences:
        for clip in synthesizer.synthesize(sentence):
            end = speaker.play(clip, interrupt)
    speaker.wait(end, interrupt)
    return " ".join(sentences)


def piper_folder() -> Path:
    """Return the folder of piper's voices."""
    return data_folder() / "voices"
