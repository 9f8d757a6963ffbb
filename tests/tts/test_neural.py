"""Tests of the neural voice with its real library: silence, speed, other scripts, damage, what a recogniser hears."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.voices import SENTENCES, embedded_whisper, misheard_share, say_all, silence_ms, words_per_minute
from tests.support import speech_worker
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.errors import ConfigError, SpeechError
from voxcli.tts.neural import NeuralSynthesizer, can_say, listed

pytest.importorskip("hibari")
SOFT_STARTS = ("Four fine things.", "He is here, for you.", "Sheep graze.", "Yes.", "Oh, she sells shells.", "What?")


def neural_voice(name: str = "heart", words_per_minute: int = 180) -> NeuralSynthesizer:
    return NeuralSynthesizer(name, words_per_minute=words_per_minute, timeout_seconds=30)


@pytest.fixture(scope="module")
def voice() -> Iterator[NeuralSynthesizer]:
    with neural_voice() as synthesizer:
        synthesizer.wait_until_ready()
        yield synthesizer


def said(synthesizer: NeuralSynthesizer, sentence: str) -> AudioClip:
    (clip,) = synthesizer.synthesize(sentence)
    return clip


def test_a_recogniser_mishears_three_words_of_a_hundred_at_most(voice: NeuralSynthesizer) -> None:
    assert misheard_share(say_all(voice, SENTENCES), embedded_whisper()) <= 0.03


@pytest.mark.parametrize("text", ["The answer is no.", "She said no. Then she left."])
def test_no_at_the_end_of_a_sentence_is_no_number(voice: NeuralSynthesizer, text: str) -> None:
    transcript = embedded_whisper().transcribe(said(voice, text).resampled(SAMPLE_RATE), threading.Event()).text
    assert "number" not in transcript.lower()
    assert re.search(r"\bno\b", transcript.lower())


def test_the_sound_begins_within_20_ms(voice: NeuralSynthesizer) -> None:
    assert [each.text for each in say_all(voice, SOFT_STARTS) if not silence_ms(each) <= 20] == []


def silent_ends(clip: AudioClip) -> float:
    """Return the seconds of silence at the end."""
    return float(np.argmax(np.abs(clip.samples[::-1]) > 0.003)) / clip.sample_rate


def test_a_pause_stays_between_sentences_and_a_shorter_one_after_a_clause(voice: NeuralSynthesizer) -> None:
    assert 0.2 < silent_ends(said(voice, "It lies on the Seine.")) < 0.4
    assert 0.05 < silent_ends(said(voice, "It lies on the Seine,")) < 0.25


def test_two_sentences_in_one_text_are_as_long_as_each_by_itself(voice: NeuralSynthesizer) -> None:
    one, other = said(voice, "Paris is large.").seconds, said(voice, "It lies on the Seine.").seconds
    assert said(voice, "Paris is large. It lies on the Seine.").seconds == pytest.approx(one + other, rel=0.02)


def test_the_rate_follows_the_setting(voice: NeuralSynthesizer) -> None:
    usual = words_per_minute(say_all(voice, SENTENCES[:3]))
    with neural_voice(words_per_minute=270) as fast:
        assert words_per_minute(say_all(fast, SENTENCES[:3])) == pytest.approx(1.5 * usual, rel=0.15)


@pytest.mark.parametrize("text", ["東京は大きいです。", "...", "\x00", " ", "[](/)"])
def test_what_can_not_be_said_gives_no_clip_and_the_voice_lives_on(voice: NeuralSynthesizer, text: str) -> None:
    process = voice.process_id
    assert list(voice.synthesize(text)) == []
    assert said(voice, "Hello.").seconds > 0.3
    assert voice.process_id == process


@pytest.mark.parametrize(
    "text", ["x" * 3000, "word " * 200, "-v --version; $(id)", "[hi](/<script>/) \x1b[2J", "\ud800a"]
)
def test_hostile_text_is_said_or_refused_and_the_voice_lives_on(voice: NeuralSynthesizer, text: str) -> None:
    for clip in voice.synthesize(text):
        assert np.abs(clip.samples).max() <= 1
    assert 0.3 < said(voice, "Hello.").seconds < 2


def test_a_process_that_is_killed_is_replaced(voice: NeuralSynthesizer) -> None:
    before, process = said(voice, "Hello."), voice.process_id
    assert process
    os.kill(process, signal.SIGTERM)
    np.testing.assert_array_equal(said(voice, "Hello.").samples, before.samples)
    assert voice.process_id != process


def test_a_sentence_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    command = (sys.executable, speech_worker.__file__, str(tmp_path / "starts"), "hang")
    with (
        NeuralSynthesizer(words_per_minute=180, timeout_seconds=0.5, command=command) as synthesizer,
        pytest.raises(SpeechError, match=r"gave no answer within 0\.5 s"),
    ):
        said(synthesizer, "Hello.")


def test_only_voices_whose_weights_are_here_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    assert [(voice.setting, voice.languages, voice.is_default) for voice in listed()] == [
        ("neural:heart", ("en-US",), True)
    ]
    with pytest.raises(ConfigError, match="the neural voice emma is not there") as caught:
        neural_voice("emma")
    assert caught.value.hint.startswith("hibari --voice emma")
    with pytest.raises(ConfigError, match="there is no voice named hart") as caught:
        neural_voice("hart")
    assert caught.value.hint == "did you mean heart? voxcli voices lists all"


def test_weights_with_another_checksum_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    (tmp_path / "bf_emma.int8.onnx").write_bytes(b"other weights")
    with neural_voice("emma") as synthesizer, pytest.raises(SpeechError, match=r"bf_emma\.int8\.onnx is damaged"):
        synthesizer.wait_until_ready()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    assert listed() == []
    with pytest.raises(SpeechError) as caught:
        neural_voice()
    assert caught.value.hint == "pip install 'voxcli[neural]'"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("The café costs 3 €.", True),
        ("Tokyo (東京) is large.", True),
        ("42.", True),
        ("東京は大きい", False),
        ("Привет, Tom!", False),
        ("مرحبا", False),
    ],
)
def test_most_letters_have_to_be_latin(text: str, fits: bool) -> None:
    assert can_say(text) is fits
