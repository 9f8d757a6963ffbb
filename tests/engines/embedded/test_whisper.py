"""Speech to text: which language a clip is in, and what is done about a transcript that repeats itself."""

import threading
from pathlib import Path

import pytest

from voxcli.audio.clip import read_audio
from voxcli.config.paths import cache_folder
from voxcli.engines.embedded import weights
from voxcli.engines.embedded.whisper import Whisper, is_repetitive, likely_language

QUESTIONS = Path(__file__).parent.parent.parent.parent / "examples" / "questions"


@pytest.mark.parametrize(
    ("probabilities", "language"),
    [
        ({"en": 0.99, "fr": 0.01}, "en"),
        ({"fr": 0.709, "en": 0.007}, "fr"),  # the least clear of 12 French clips by a person
        ({"th": 0.84, "en": 0.12}, "en"),  # a clip of a synthetic voice, in English
        ({"ja": 0.37, "en": 0.23}, "en"),
        ({"it": 0.477, "es": 0.407, "en": 0.01}, "en"),  # not clear
        ({"de": 0.9}, "de"),
    ],
)
def test_english_is_assumed_unless_another_language_is_clear(probabilities: dict[str, float], language: str) -> None:
    assert likely_language(probabilities) == language


def test_a_repeated_transcript_is_recognized() -> None:
    assert is_repetitive("Press 1 to call this number. " * 8)
    assert not is_repetitive("Press 1 to call this number. Press 2 to go back to the menu, or hang up.")
    assert not is_repetitive("No, no, no.")
    assert not is_repetitive("")


@pytest.mark.parametrize(("setting", "language"), [("auto", "en"), ("fr", "fr")])
def test_a_language_that_was_set_is_not_detected(setting: str, language: str) -> None:
    whisper = Whisper(weights.prepare(cache_folder()) / "whisper", 1, setting)
    question = read_audio(QUESTIONS / "capital-of-france.flac")
    assert whisper.transcribe(question, threading.Event()).language == language
