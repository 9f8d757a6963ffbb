"""Speaks each sentence with a voice of its language; the voices of other languages are opened when they are needed."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Synthesizer
from voxcli.errors import ConfigError, SpeechError, VoxError
from voxcli.tts.languages.detection import ENGLISH, LanguageFollower, primary
from voxcli.tts.voice import Voice, choose

log = logging.getLogger(__name__)


class VoiceChoice:
    """Chooses the voice of a language: that of the settings, the default voice, or the first that is installed."""

    def __init__(self, default: str, chosen: Mapping[str, str], list_voices: Callable[[], Iterable[Voice]]) -> None:
        """Remember the settings.

        Args:
            default: the setting of the default voice.
            chosen: settings of voices by the code of their language.
            list_voices: lists the installed voices, the preferred kind first; asked at most once, and not at all
                for English.
        """
        self._default = default
        self._chosen = chosen
        self._list_voices = list_voices
        self._lock = threading.Lock()  # Lets one thread list the voices.
        self._listed: list[Voice] | None = None

    def voice_for(self, language: str) -> str | None:
        """Return the setting of a language's voice; None if no voice speaks it."""
        if language in self._chosen:
            return self._chosen[language]
        if language == ENGLISH and self._listed is None:  # Nearly every default voice speaks it; a list takes time.
            return self._default
        listed = self._voices()
        if language in spoken_by(self._default, listed):
            return self._default
        return next((voice.setting for voice in _ranked(language, listed)), None)

    def _voices(self) -> list[Voice]:
        with self._lock:
            if self._listed is None:
                listed: list[Voice] = []
                with suppress(SpeechError):  # A missing speech engine leaves the voices of other kinds.
                    listed.extend(self._list_voices())
                self._listed = listed
            return self._listed


def spoken_by(setting: str, listed: Sequence[Voice]) -> set[str]:
    """Return the codes of the languages of the voice that a setting names; English if they are not known."""
    kind, colon, name = setting.partition(":")
    own = [voice for voice in listed if voice.kind == kind]
    if not own and not colon:  # A name without its kind.
        own, name = list(listed), setting
    tags: Iterable[str] = ()
    try:
        found = choose(name, own) if name else next((voice for voice in own if voice.is_default), None)
        tags = found.languages if found else ()
    except ConfigError:  # A file outside the folder of piper's voices.
        tags = [Path(name).stem.partition("-")[0]] if kind == "piper" else ()
    return {primary(tag) for tag in tags if tag} or {ENGLISH}


def _ranked(language: str, listed: Sequence[Voice]) -> list[Voice]:
    """Return the voices of a language: kinds as they are listed, and France's French before Belgium's."""
    kinds = list(dict.fromkeys(voice.kind for voice in listed))
    found = [voice for voice in listed if language in map(primary, voice.languages)]
    return sorted(found, key=lambda voice: (kinds.index(voice.kind), not _is_main(language, voice)))


def _is_main(language: str, voice: Voice) -> bool:
    """Return whether a voice has a language's main variety: its tag names no region, or that of the same letters."""
    tags = {tag.casefold().replace("_", "-") for tag in voice.languages}
    return any(tag in {language, f"{language}-{language}"} for tag in tags)


class MultilingualSynthesizer:
    """Implements `voxcli.core.protocols.Synthesizer` with a voice for each language; a context manager.

    The default voice never waits for another one. A language whose voice is missing or fails is spoken by the default
    voice, with one notice.
    """

    def __init__(
        self,
        default: Synthesizer,
        default_setting: str,
        follower: LanguageFollower,
        choice: VoiceChoice,
        open_voice: Callable[[str], Synthesizer],
        notice: Callable[[str], None],
    ) -> None:
        """Take the open default voice, which this one closes.

        Args:
            default_setting: the setting of the default voice.
            follower: tells the language of each sentence; it loads its detector in the background.
            open_voice: opens a voice by its setting; raises VoxError.
            notice: told once for each language that the default voice has to speak.
        """
        self._default = default
        self._follower = follower
        self._choice = choice
        self._open_voice = open_voice
        self._notice = notice
        self._opening = threading.Lock()  # Lets one thread open a voice.
        self._lock = threading.Lock()  # Guards the voices against `close`.
        self._by_setting: dict[str, Synthesizer] = {default_setting: default}
        self._without_voice: set[str] = set()  # Languages that the default voice has to speak.
        self._closed = False
        self._preparing = threading.Thread(target=self._prepare, name="language detector", daemon=True)
        self._preparing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait for the default voice and the language detector; raises SpeechError if the voice can't speak."""
        self._default.wait_until_ready()
        self._preparing.join()

    def language_of(self, piece: str) -> str:
        """Return the code of the language of a piece of a reply, which comes next."""
        return self._follower.language_of(piece)

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        """Yield the clips of a sentence in a voice of its language; raises SpeechError if the default voice fails."""
        if not sentence.strip():
            return
        language = self._follower.language_of(sentence)
        voice = self._voice_of(language)
        spoken = False
        if voice is not self._default:
            try:
                for clip in voice.synthesize(sentence):
                    spoken = True
                    yield clip
            except VoxError as error:
                self._give_up(language, error.message)
            else:
                return
        if not spoken:
            yield from self._default.synthesize(sentence)

    def close(self) -> None:
        """Close all voices. May be called again."""
        with self._lock:
            self._closed = True
            voices = list(self._by_setting.values())
        for voice in voices:
            voice.close()
        self._preparing.join()

    def _prepare(self) -> None:
        """Load the detector, and open the voice of the language that is expected."""
        try:
            self._follower.prepare()
        except SpeechError as error:
            self._notice(f"the voice does not follow the reply's language: {error.message}")
        self._voice_of(self._follower.start)

    def _voice_of(self, language: str) -> Synthesizer:
        """Return the voice of a language, opened if needed; the default voice where there is none."""
        if language in self._without_voice:
            return self._default
        try:
            setting = self._choice.voice_for(language)
            if setting is not None:
                return self._opened(setting)
            self._give_up(language, "no voice is installed")
        except VoxError as error:
            self._give_up(language, error.message)
        return self._default

    def _opened(self, setting: str) -> Synthesizer:
        if setting not in self._by_setting:
            with self._opening:
                if setting not in self._by_setting:
                    log.info("opening the voice %s", setting)
                    self._add(setting, self._open_voice(setting))
        return self._by_setting[setting]

    def _add(self, setting: str, voice: Synthesizer) -> None:
        with self._lock:
            if not self._closed:
                self._by_setting[setting] = voice
                return
        voice.close()
        raise SpeechError("the voice is closed")

    def _give_up(self, language: str, reason: str) -> None:
        """Leave a language to the default voice, and say so."""
        self._without_voice.add(language)
        if not self._closed:
            self._notice(f"the default voice speaks the language {language}: {reason} (voxcli voices)")
