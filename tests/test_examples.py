"""The spoken questions that ship with voxcli are what their list says: sound, in the format that the models hear."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "questions"
QUESTIONS: dict[str, dict[str, Any]] = json.loads((FOLDER / "questions.json").read_text(encoding="utf-8"))


def test_the_list_and_the_folder_hold_the_same_recordings() -> None:
    assert set(QUESTIONS) == {path.name for path in FOLDER.glob("*.flac")}


def test_there_are_enough_questions_and_voices() -> None:
    assert len(QUESTIONS) >= 8
    assert len({question["voice"] for question in QUESTIONS.values()}) >= 3


def test_the_demo_question_is_short_and_one_is_longer_than_a_window() -> None:
    seconds = {name: soundfile.info(FOLDER / name).duration for name in QUESTIONS}
    assert 1.5 <= seconds["capital-of-france.flac"] <= 2.5
    assert max(seconds.values()) >= 35


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_has_words_and_answers(name: str) -> None:
    question = QUESTIONS[name]
    assert question["text"].endswith("?")
    assert question["answers"]
    assert all(answer == answer.lower().strip() != "" for answer in question["answers"])


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_recording_is_mono_speech_that_neither_clips_nor_runs_into_its_ends(name: str) -> None:
    info = soundfile.info(FOLDER / name)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    samples, rate = soundfile.read(FOLDER / name, dtype="float32")
    margin = rate // 5  # the silence before and after is at least 200 ms
    assert 0.5 < np.abs(samples).max() < 0.9
    assert np.sqrt(np.mean(samples[margin:-margin] ** 2)) > 0.02
    assert not samples[:margin].any()
    assert not samples[-margin:].any()
