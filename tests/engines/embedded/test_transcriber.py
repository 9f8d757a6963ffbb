"""What transcribes short answers: loaded when it is needed, and no reason to fail."""

import threading
from pathlib import Path

import numpy as np
import pytest

from voxcli.audio.clip import AudioClip
from voxcli.engines.embedded.transcriber import AnswerTranscriber, answer_transcriber
from voxcli.engines.embedded.whisper import Recognized
from voxcli.errors import ModelError

CLIP = AudioClip(np.zeros(1600, np.float32))


class FakeRecognizer:
    def __init__(self, *words: str | ModelError) -> None:
        self._words = list(words)

    def transcribe(self, clip: AudioClip, interrupt: threading.Event) -> Recognized:
        word = self._words.pop(0)
        if isinstance(word, ModelError):
            raise word
        return Recognized(word)


def test_it_is_loaded_once_when_an_answer_may_come() -> None:
    loaded: list[FakeRecognizer] = []
    ready = threading.Event()

    def load() -> FakeRecognizer:
        loaded.append(FakeRecognizer("Yes.", "No."))
        ready.set()
        return loaded[-1]

    transcriber = AnswerTranscriber(load, pytest.fail)
    assert loaded == []
    transcriber.prepare()
    assert ready.wait(30)
    transcriber.prepare()
    assert [transcriber(CLIP, threading.Event()) for _ in range(2)] == ["Yes.", "No."]
    assert len(loaded) == 1


def test_a_model_that_does_not_load_is_told_of_once() -> None:
    notices: list[str] = []

    def load() -> FakeRecognizer:
        raise ModelError("damaged")

    transcriber = AnswerTranscriber(load, notices.append)
    assert [transcriber(CLIP, threading.Event()) for _ in range(2)] == ["", ""]
    assert notices == ["spoken answers can't be understood, so press a key: damaged"]


def test_an_interrupt_ends_the_wait_for_a_model_that_is_loaded() -> None:
    begun, go_on, interrupt, words = threading.Event(), threading.Event(), threading.Event(), list[str]()

    def load() -> FakeRecognizer:
        begun.set()
        assert go_on.wait(30)
        return FakeRecognizer("Yes.")

    transcriber = AnswerTranscriber(load, pytest.fail)
    thread = threading.Thread(target=lambda: words.append(transcriber(CLIP, interrupt)), daemon=True)
    thread.start()
    assert begun.wait(30)
    interrupt.set()
    thread.join(30)
    assert words == [""]
    go_on.set()
    assert transcriber(CLIP, threading.Event()) == "Yes."


def test_a_model_that_fails_is_not_asked_again() -> None:
    notices: list[str] = []
    transcriber = AnswerTranscriber(lambda: FakeRecognizer(ModelError("out of memory"), "Yes."), notices.append)
    assert [transcriber(CLIP, threading.Event()) for _ in range(2)] == ["", ""]
    assert len(notices) == 1


def test_there_is_none_where_the_model_is_not_here(tmp_path: Path) -> None:
    assert answer_transcriber(tmp_path, "no such model", "auto", pytest.fail) is None
