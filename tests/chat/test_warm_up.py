"""Warming up the engine and the voice."""

import sys
from pathlib import Path

import pytest

from tests.support import speech_worker
from voxcli.chat.warm_up import warm_up
from voxcli.core.session import Session, Turn
from voxcli.core.testing import FakeEngine, FakeSynthesizer
from voxcli.errors import ModelError, SpeechError
from voxcli.tts.system import Pyttsx3Synthesizer


def test_the_engine_answers_once_in_the_session_and_no_longer_than_it_must() -> None:
    session = Session("kitchen", "Be short.", (Turn("a", "b"),))
    counts: list[int] = []
    engine = FakeEngine([["Hello", ", you", " there"]], before_delta=counts.append)
    warm_up(engine, session)
    ((asked, utterance),) = engine.asked
    assert asked == session
    assert utterance.clip  # goes through the audio encoder, too
    assert counts == [0, 1]  # asked for the second piece, it saw the interrupt
    assert engine.prefilled == [session]  # The turn of the warm-up is not in it.


def test_a_voice_is_warmed_up_by_one_sentence(tmp_path: Path) -> None:
    spoken = tmp_path / "spoken"
    command = (
        sys.executable,
        speech_worker.__file__,
        str(tmp_path / "starts"),
        f"note {spoken}",
    )
    with Pyttsx3Synthesizer(words_per_minute=180, timeout_seconds=20, command=command) as synthesizer:
        warm_up(FakeEngine([["Hello"]]), Session(), synthesizer)
        assert spoken.read_text().splitlines() == ["Ready."]


def test_a_voice_that_can_not_speak_is_an_error() -> None:
    with pytest.raises(SpeechError, match="gone"):
        warm_up(FakeEngine([["Hello"]]), Session(), FakeSynthesizer(error=SpeechError("gone")))


def test_an_engine_that_can_not_answer_is_an_error() -> None:
    with pytest.raises(ModelError):
        warm_up(FakeEngine([ModelError("out of memory")]), Session())
