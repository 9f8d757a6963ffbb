"""Each sentence is spoken by a voice of its language, and the default voice never waits for another."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress

import pytest

from tests.support.sentences import NAMES, SENTENCES
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import SpeechOutput, Synthesizer, Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import run_turn
from voxcli.errors import ConfigError, SpeechError
from voxcli.tts.languages.detection import LanguageFollower, is_installed
from voxcli.tts.languages.multilingual import MultilingualSynthesizer, VoiceChoice, spoken_by
from voxcli.tts.system import Pyttsx3Synthesizer
from voxcli.tts.voice import Voice

needs_detector = pytest.mark.skipif(not is_installed(), reason="the extra languages is not installed")

SYSTEM = [
    Voice("pyttsx3", "German", "de", ("de",)),
    Voice("pyttsx3", "English (America)", "en-us", ("en-us",), is_default=True),
    Voice("pyttsx3", "Spanish (Spain)", "es", ("es",)),
    Voice("pyttsx3", "French (Belgium)", "fr-be", ("fr-be",)),
    Voice("pyttsx3", "French (France)", "fr-fr", ("fr-fr",)),
    Voice("pyttsx3", "Chinese (Mandarin)", "cmn", ("cmn",)),
]
JAPANESE, RUSSIAN, GREEK = "こんにちは。", "Добрый день.", "Καλημέρα."


def word_detector(text: str) -> Mapping[str, float]:
    """Know a language by its first word."""
    words = {"Bonjour": "fr", "Guten": "de", "Hello": "en", "Ciao": "it"}
    return {language: 1.0 for word, language in words.items() if text.startswith(word)}


class VoiceLog:
    """Opens doubles of voices by their settings, and keeps who said what."""

    def __init__(self) -> None:
        self.opened: dict[str, FakeSynthesizer] = {}
        self.errors: dict[str, Exception] = {}
        self.closed: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.listings = 0
        self.installed = SYSTEM

    def open(self, setting: str) -> Synthesizer:
        if error := self.errors.get(setting):
            raise error
        return LoggedVoice(setting, self)

    def list_voices(self) -> Iterator[Voice]:
        self.listings += 1
        yield from self.installed


class LoggedVoice(FakeSynthesizer):
    def __init__(self, setting: str, log: VoiceLog) -> None:
        super().__init__()
        self.setting = setting
        self.log = log
        log.opened[setting] = self

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        yield from super().synthesize(sentence)
        self.log.lines.append((self.setting, sentence))

    def close(self) -> None:
        self.log.closed.append(self.setting)


@pytest.fixture
def log() -> VoiceLog:
    return VoiceLog()


@pytest.fixture
def notices() -> list[str]:
    return []


Opener = Callable[..., MultilingualSynthesizer]


@pytest.fixture
def open_voices(log: VoiceLog, notices: list[str]) -> Iterator[Opener]:
    with ExitStack() as stack:

        def opened(
            voices: Mapping[str, str] | None = None, start: str = "en", default: str = "pyttsx3"
        ) -> MultilingualSynthesizer:
            follower = LanguageFollower(start, lambda: word_detector)
            choice = VoiceChoice(default, voices or {}, log.list_voices)
            synthesizer = MultilingualSynthesizer(
                log.open(default), default, follower, choice, log.open, notices.append
            )
            return stack.enter_context(synthesizer)

        yield opened


def say(synthesizer: Synthesizer, *sentences: str) -> None:
    for sentence in sentences:
        assert list(synthesizer.synthesize(sentence)), sentence


def test_a_sentence_is_spoken_by_the_first_voice_of_its_language(log: VoiceLog, open_voices: Opener) -> None:
    say(open_voices(), "Hello there.", "Guten Tag.", "Bonjour à tous.", "Hello again.")
    voices = [voice for voice, _ in log.lines]
    assert voices == ["pyttsx3", "pyttsx3:German", "pyttsx3:French (France)", "pyttsx3"]


def test_the_settings_choose_the_voice_of_a_language(log: VoiceLog, open_voices: Opener) -> None:
    say(open_voices({"fr": "piper:siwis", "en": "piper:amy"}), "Bonjour.", "Guten Tag.", "Hello.")
    assert [voice for voice, _ in log.lines] == ["piper:siwis", "pyttsx3:German", "piper:amy"]


def test_english_alone_lists_and_opens_nothing(log: VoiceLog, open_voices: Opener) -> None:
    synthesizer = open_voices()
    synthesizer.wait_until_ready()
    say(synthesizer, "Hello.", "Hello again.")
    assert (list(log.opened), log.listings) == (["pyttsx3"], 0)


def test_a_voice_is_opened_once(log: VoiceLog, open_voices: Opener, notices: list[str]) -> None:
    synthesizer = open_voices()
    say(synthesizer, "Guten Tag.")
    first = log.opened["pyttsx3:German"]
    say(synthesizer, "Hello.", "Guten Abend.", "Bonjour.")
    assert log.opened["pyttsx3:German"] is first
    assert (log.listings, notices) == (1, [])


def test_a_default_voice_of_another_language_speaks_that_language(log: VoiceLog, open_voices: Opener) -> None:
    say(open_voices(default="pyttsx3:German"), "Guten Tag.", "Hello.")
    assert [voice for voice, _ in log.lines] == ["pyttsx3:German", "pyttsx3:English (America)"]


def test_the_voice_of_the_expected_language_is_opened_at_once(log: VoiceLog, open_voices: Opener) -> None:
    open_voices(start="fr").wait_until_ready()
    assert list(log.opened) == ["pyttsx3", "pyttsx3:French (France)"]


def test_a_language_without_a_voice_is_told_once(log: VoiceLog, open_voices: Opener, notices: list[str]) -> None:
    say(open_voices(), JAPANESE, JAPANESE, RUSSIAN, "Hello.", JAPANESE)
    assert {voice for voice, _ in log.lines} == {"pyttsx3"}
    assert len(log.lines) == 5
    assert [text.split(":")[0] for text in notices] == [
        "the default voice speaks the language ja",
        "the default voice speaks the language ru",
    ]


@pytest.mark.parametrize("error", [SpeechError("no piper"), ConfigError("no such voice")])
def test_a_voice_that_cannot_be_opened_is_told_once(
    log: VoiceLog, open_voices: Opener, notices: list[str], error: Exception
) -> None:
    log.errors["piper:siwis"] = error
    say(open_voices({"fr": "piper:siwis"}), "Bonjour.", "Bonjour.", "Guten Tag.")
    assert [voice for voice, _ in log.lines] == ["pyttsx3", "pyttsx3", "pyttsx3:German"]
    assert notices == [f"the default voice speaks the language fr: {error} (voxcli voices)"]


def test_a_voice_that_fails_leaves_the_sentence_to_the_default_voice(
    log: VoiceLog, open_voices: Opener, notices: list[str]
) -> None:
    synthesizer = open_voices()
    say(synthesizer, "Guten Tag.")
    log.opened["pyttsx3:German"].error = SpeechError("it died")
    say(synthesizer, "Guten Abend.", "Guten Morgen.")
    assert log.lines[1:] == [("pyttsx3", "Guten Abend."), ("pyttsx3", "Guten Morgen.")]
    assert len(notices) == 1
    assert "it died" in notices[0]


def test_a_default_voice_that_fails_is_an_error(log: VoiceLog, open_voices: Opener) -> None:
    synthesizer = open_voices()
    log.opened["pyttsx3"].error = SpeechError("it died")
    with pytest.raises(SpeechError):
        synthesizer.wait_until_ready()
    with pytest.raises(SpeechError):
        say(synthesizer, "Hello.")


def test_without_a_speech_engine_other_kinds_of_voices_remain(
    log: VoiceLog, open_voices: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing() -> Iterator[Voice]:
        yield Voice("piper", "fr_FR-siwis-low", "siwis.onnx", ("fr_FR",))
        raise SpeechError("no speech engine")

    monkeypatch.setattr(log, "list_voices", listing)
    say(open_voices(), "Bonjour.")
    assert log.lines == [("piper:fr_FR-siwis-low", "Bonjour.")]


def test_closing_closes_every_voice(log: VoiceLog, open_voices: Opener) -> None:
    synthesizer = open_voices()
    say(synthesizer, "Guten Tag.", "Bonjour.")
    synthesizer.close()
    assert set(log.closed) == {"pyttsx3", "pyttsx3:German", "pyttsx3:French (France)"}


def test_a_voice_that_opens_while_the_chat_ends_is_closed(log: VoiceLog, notices: list[str]) -> None:
    opening, closed = threading.Event(), threading.Event()

    def open_slowly(setting: str) -> Synthesizer:
        opening.set()
        assert closed.wait(20)
        return log.open(setting)

    follower, choice = LanguageFollower("en", lambda: word_detector), VoiceChoice("pyttsx3", {}, log.list_voices)
    synthesizer = MultilingualSynthesizer(log.open("pyttsx3"), "pyttsx3", follower, choice, open_slowly, notices.append)

    def speak() -> None:
        with suppress(SpeechError):
            list(synthesizer.synthesize("Guten Tag."))

    speaking = threading.Thread(target=speak)
    speaking.start()
    assert opening.wait(20)
    synthesizer.close()
    closed.set()
    speaking.join()
    assert log.closed == ["pyttsx3", "pyttsx3:German"]
    assert notices == []


def test_the_default_voice_does_not_wait_for_another(log: VoiceLog, notices: list[str]) -> None:
    may_open = threading.Event()

    def open_slowly(setting: str) -> Synthesizer:
        assert may_open.wait(20)
        return log.open(setting)

    follower, choice = LanguageFollower("fr", lambda: word_detector), VoiceChoice("pyttsx3", {}, log.list_voices)
    voices = MultilingualSynthesizer(log.open("pyttsx3"), "pyttsx3", follower, choice, open_slowly, notices.append)
    with closing(voices):
        say(voices, "Hello.")
        assert log.lines == [("pyttsx3", "Hello.")]
        may_open.set()


@pytest.mark.parametrize(
    ("setting", "languages"),
    [
        ("pyttsx3", {"en"}),
        ("pyttsx3:German", {"de"}),
        ("pyttsx3:Chinese", {"zh"}),
        ("pyttsx3:nobody", {"en"}),
        ("piper:/tmp/fr_FR-siwis-low.onnx", {"fr"}),
        ("unknown:x", {"en"}),
        ("unknown", {"en"}),
        ("German", {"de"}),
    ],
)
def test_the_languages_of_a_voice(setting: str, languages: set[str]) -> None:
    assert spoken_by(setting, SYSTEM) == languages


@needs_detector
def test_a_scripted_reply_is_spoken_by_the_right_voices(log: VoiceLog, notices: list[str]) -> None:
    """The bar: 40 of 40 sentences in four languages, and names of other languages change nothing."""
    mixed = [(language, group[number]) for number in range(10) for language, group in SENTENCES.items()]
    named = [(language, text) for language, group in NAMES.items() for text in [SENTENCES[language][0], *group]]
    follower, choice = LanguageFollower(), VoiceChoice("pyttsx3", {}, log.list_voices)
    voices = MultilingualSynthesizer(log.open("pyttsx3"), "pyttsx3", follower, choice, log.open, notices.append)
    with closing(voices):
        output = SpeechOutput(voices, FakeSpeaker())
        for turn in (mixed, named):
            engine = FakeEngine([[f"{text}\n" for _, text in turn]])
            for _ in run_turn(engine, Session(), Utterance(None, "Go on."), threading.Event(), output):
                pass
    names = {"en": "pyttsx3", "fr": "pyttsx3:French (France)", "de": "pyttsx3:German", "es": "pyttsx3:Spanish (Spain)"}
    spoken = " ".join(text for _, text in log.lines).split()
    assert spoken == " ".join(text for _, text in mixed + named).split()
    expected = dict[str, str]()
    for language, text in mixed + named:
        expected[text] = names[language]
    wrong = [(voice, said) for voice, said in log.lines for text in expected if said in text if expected[text] != voice]
    assert (wrong, notices) == ([], [])


@needs_detector
def test_real_voices_follow_the_language(notices: list[str]) -> None:
    def open_one(setting: str) -> Pyttsx3Synthesizer:
        opened.append(setting)
        name = setting.partition(":")[2]
        return Pyttsx3Synthesizer(name, words_per_minute=180, timeout_seconds=20)

    def listing() -> Iterable[Voice]:
        with Pyttsx3Synthesizer(words_per_minute=180, timeout_seconds=20) as lister:
            return lister.voices()

    opened: list[str] = []
    follower, choice = LanguageFollower(), VoiceChoice("pyttsx3", {}, listing)
    with MultilingualSynthesizer(open_one("pyttsx3"), "pyttsx3", follower, choice, open_one, notices.append) as voices:
        for language in ("en", "fr", "de", "fr"):
            say(voices, SENTENCES[language][0])
    assert notices == []
    assert opened == ["pyttsx3", "pyttsx3:French (France)", "pyttsx3:German"]
