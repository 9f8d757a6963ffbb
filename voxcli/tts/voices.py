"""Lists voices, opens the one that a setting names, and speaks a text with it."""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from voxcli.config.paths import data_folder
from voxcli.core.protocols import Speaker, Synthesizer
from voxcli.core.sentences import PieceCutter
from voxcli.core.speakable import speakable
from voxcli.errors import ConfigError
from voxcli.tts import neural, piper
from voxcli.tts.auto import AutoSynthesizer
from voxcli.tts.neural import NeuralSynthesizer
from voxcli.tts.piper import PiperSynthesizer
from voxcli.tts.rendering import START_SECONDS
from voxcli.tts.system import Pyttsx3Synthesizer
from voxcli.tts.voice import Voice, unknown_voice

if TYPE_CHECKING:
    from voxcli.tts.remote import RemoteSynthesizer

log = logging.getLogger(__name__)

AUTO = "auto"
KINDS = ("neural", "pyttsx3", "piper", "openai")
LISTING_WORDS_PER_MINUTE = 180  # Any value works, because nothing is spoken.
WHICH = {  # What is asked of a setting that names only the kind.
    "neural": ("which neural voice?", "voxcli voices"),
    "pyttsx3": ("which voice of the system?", "voxcli voices"),
    "piper": ("which piper voice?", "--voice piper:NAME; voxcli voices lists those that are here"),
    "openai": ("which server?", "--voice 'openai:http://localhost:8880/v1#NAME'"),
}


def open_synthesizer(
    voice: str, *, words_per_minute: int, timeout_seconds: float, notice: Callable[[str], None] = log.warning
) -> "AutoSynthesizer | NeuralSynthesizer | Pyttsx3Synthesizer | PiperSynthesizer | RemoteSynthesizer":
    """Open a voice; the result is a context manager that loads in the background.

    Args:
        voice: "auto" (the neural voice if it is installed, and the system's for what that can't say), "neural" or
            "pyttsx3" (the default voice of that kind), "KIND:NAME", "piper:PATH", "openai:URL#NAME", or a bare name:
            that of a neural or piper voice, else the id, language or part of the name of a system's voice.
        timeout_seconds: how long a sentence may take before the voice's process is replaced, or a server given up.
        notice: told what a user should know about a server.

    Raises:
        ConfigError: there is no such voice, or several have this name.
        SpeechError: the voice's speech engine is not installed.
        RemoteError: the packages for voices on servers are not installed.
    """
    system = partial(Pyttsx3Synthesizer, words_per_minute=words_per_minute, timeout_seconds=timeout_seconds)
    if voice == AUTO:
        return _auto(system, words_per_minute, timeout_seconds)
    kind, colon, name = voice.partition(":")
    if kind not in KINDS:
        if (found := _named(voice)) is None:
            return _system_voice(voice, system)
        kind, name = found.kind, found.name
    elif not name and (colon or kind in ("piper", "openai")):
        message, hint = WHICH[kind]
        raise ConfigError(message, hint=hint)
    if kind == "neural":
        name = name or neural.DEFAULT
        return NeuralSynthesizer(name, words_per_minute=words_per_minute, timeout_seconds=timeout_seconds)
    if kind == "piper":
        return PiperSynthesizer(name, piper_folder(), words_per_minute=words_per_minute)
    if kind == "openai":
        from voxcli.tts.remote import RemoteSynthesizer

        return RemoteSynthesizer(
            name, words_per_minute=words_per_minute, timeout_seconds=timeout_seconds, notice=notice
        )
    return system(name)


def resolved(voice: str) -> str:
    """Return the setting without "auto": the kind of voice that it stands for on this machine."""
    if voice != AUTO:
        return voice
    return "neural" if neural.is_installed() else "pyttsx3"


def is_chosen(voice: Voice, setting: str) -> bool:
    """Return whether a setting other than "auto" names a voice of the list."""
    if setting == voice.kind:
        return voice.is_default
    kind, _, name = setting.partition(":")
    wanted = (name if kind in KINDS else setting).casefold()
    return kind in (voice.kind, setting) and wanted in (voice.name.casefold(), voice.id.casefold())


def list_voices() -> Iterator[Voice]:
    """Yield the neural voices, piper's and the system's; raises SpeechError without a system's speech engine."""
    yield from neural.listed()
    yield from piper.listed(piper_folder())
    with Pyttsx3Synthesizer(words_per_minute=LISTING_WORDS_PER_MINUTE, timeout_seconds=START_SECONDS) as synthesizer:
        yield from synthesizer.voices()


def _auto(
    system: Callable[[], Pyttsx3Synthesizer], words_per_minute: int, timeout_seconds: float
) -> AutoSynthesizer | Pyttsx3Synthesizer:
    if not neural.is_installed():
        return system()
    first = NeuralSynthesizer(words_per_minute=words_per_minute, timeout_seconds=timeout_seconds)
    return AutoSynthesizer(first, system, neural.can_say)


def _named(name: str) -> Voice | None:
    """Return the neural or piper voice of a name, given without its kind; raises ConfigError if there are two."""
    found = [
        voice for voice in [*neural.listed(), *piper.listed(piper_folder())] if voice.name.casefold() == name.casefold()
    ]
    if len(found) > 1:
        choices = " or ".join(f"--voice {voice.setting}" for voice in found)
        raise ConfigError(f"{len(found)} voices are named {name}", hint=choices)
    return found[0] if found else None


def _system_voice(name: str, system: Callable[[str], Pyttsx3Synthesizer]) -> Pyttsx3Synthesizer:
    """Open a system's voice; the error for an unknown name suggests voices of all kinds."""
    try:
        return system(name)
    except ConfigError:
        raise unknown_voice(name, [voice.name for voice in list_voices()]) from None


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
