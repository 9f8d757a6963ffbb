"""Tests of choosing between the neural voice and the system's, sentence by sentence."""

import sys

import pytest

from voxcli.core.testing import FakeSynthesizer
from voxcli.errors import SpeechError
from voxcli.tts.auto import AutoSynthesizer
from voxcli.tts.system import Pyttsx3Synthesizer
from voxcli.tts.voices import open_synthesizer, resolved


class Second:
    """Opens the other synthesizer, and counts how often."""

    def __init__(self) -> None:
        self.synthesizer, self.opened = FakeSynthesizer(), 0

    def __call__(self) -> FakeSynthesizer:
        self.opened += 1
        return self.synthesizer


def say(synthesizer: AutoSynthesizer, *sentences: str) -> None:
    for sentence in sentences:
        assert list(synthesizer.synthesize(sentence))


def test_the_second_says_only_what_the_first_can_not() -> None:
    first, second = FakeSynthesizer(), Second()
    with AutoSynthesizer(first, second, str.isascii) as synthesizer:
        synthesizer.wait_until_ready()
        say(synthesizer, "one")
        assert second.opened == 0
        say(synthesizer, "два", "three", "четыре")
    assert (first.said, second.synthesizer.said, second.opened) == (["one", "three"], ["два", "четыре"], 1)


def test_the_second_takes_over_where_the_first_fails() -> None:
    first, second = FakeSynthesizer(), Second()
    with AutoSynthesizer(first, second, str.isascii) as synthesizer:
        say(synthesizer, "one")
        first.error = SpeechError("no")
        say(synthesizer, "two")
        first.error = None
        say(synthesizer, "three")
    assert (first.said, second.synthesizer.said) == (["one"], ["two", "three"])


def test_a_first_that_never_gets_ready_is_replaced() -> None:
    second = Second()
    with AutoSynthesizer(FakeSynthesizer(SpeechError("no")), second, str.isascii) as synthesizer:
        synthesizer.wait_until_ready()
        say(synthesizer, "one")
    assert second.synthesizer.said == ["one"]


def test_after_close_no_voice_is_opened() -> None:
    first, second = FakeSynthesizer(), Second()
    synthesizer = AutoSynthesizer(first, second, str.isascii)
    synthesizer.close()
    synthesizer.close()
    first.error = SpeechError("the voice is closed")
    for sentence in ("one", "два"):
        with pytest.raises(SpeechError, match="closed"):
            list(synthesizer.synthesize(sentence))
    assert second.opened == 0


def test_without_the_neural_voice_auto_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    assert resolved("auto") == "pyttsx3"
    with open_synthesizer("auto", words_per_minute=180, timeout_seconds=20) as synthesizer:
        assert isinstance(synthesizer, Pyttsx3Synthesizer)


def test_auto_says_every_script() -> None:
    pytest.importorskip("hibari")
    assert resolved("auto") == "neural"
    with open_synthesizer("auto", words_per_minute=180, timeout_seconds=20) as synthesizer:
        for sentence in ("The capital of Japan is Tokyo.", "Столица Японии — Токио."):
            assert sum(clip.seconds for clip in synthesizer.synthesize(sentence)) > 1
