"""The benchmark of misheard words: how it counts, and a sample of its table with the neural voice."""

import threading
from importlib.util import find_spec

import pytest

from benchmarks.misheard_words import MOST_MISHEARD, compare, distance, readings, share_misheard, texts, words
from voxcli.audio.clip import AudioClip
from voxcli.config.paths import cache_folder
from voxcli.core.testing import FakeSynthesizer
from voxcli.engines.embedded.weights import missing_packages, prepare
from voxcli.engines.embedded.whisper import Recognized

HAS_VOICE = (
    all(find_spec(name) for name in ("hibari", "faster_whisper", "voxcli.tts.neural")) and not missing_packages()
)
EVERY = 20  # Of the table, this suffices to notice a voice that is given something else than words.


class Dictation:
    """Writes down what it is told to."""

    def __init__(self, transcript: str) -> None:
        self._transcript = transcript

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> Recognized:
        assert clip.sample_rate == 16_000
        assert not interrupt.is_set()
        return Recognized(self._transcript)


def test_words_that_differ_are_counted() -> None:
    assert distance(["a", "b", "c"], ["a", "c"]) == 1
    assert distance(["a", "b"], ["x", "b", "c"]) == 2
    assert distance([], ["a"]) == 1


def test_digits_case_and_punctuation_make_no_difference() -> None:
    assert words("It\u2019s 5 km, at TEN o'clock!") == words("it\u2019s five kilometers at ten o\u2019clock")
    assert words("at three thirty p.m.") in readings("At 3.30 p.m.")
    assert words("open twenty-four seven") in readings("Open 24-7.")


def test_a_transcript_is_compared_with_what_should_be_said() -> None:
    right = compare("It costs $5.", "It costs five dollars.", FakeSynthesizer(), Dictation("it costs $5"))
    wrong = compare("It costs $5.", "It costs five dollars.", FakeSynthesizer(), Dictation("It cost 5 dollars."))
    assert (right.errors, wrong.errors) == (0, 1)
    assert share_misheard([right, wrong]) == 1 / 8


@pytest.mark.skipif(not HAS_VOICE, reason="needs the extras neural and embedded, and the weights of Whisper")
def test_a_recognizer_understands_what_the_neural_voice_says() -> None:
    from voxcli.engines.embedded.whisper import Whisper
    from voxcli.tts.voices import open_synthesizer

    recognizer = Whisper(prepare(cache_folder()) / "whisper", threads=2)
    with open_synthesizer("neural", words_per_minute=180, timeout_seconds=30) as synthesizer:
        heard = [compare(text, spoken, synthesizer, recognizer) for text, spoken in list(texts())[::EVERY]]
    assert share_misheard(heard) <= 2 * MOST_MISHEARD, "a sample varies more than the table"
