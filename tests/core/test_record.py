"""The record of a turn: what programs rely on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.record import Context, record_of
from voxcli.core.session import Turn
from voxcli.core.speaking import Timings
from voxcli.core.testing import FakeEngine
from voxcli.core.turn import TurnEnded

CLIP = AudioClip(np.full(33_333, 0.1, np.float32), damaged_seconds=0.25, cancelled_seconds=0.5, gain=0.5)
PLACEHOLDER = "[User audio input - 33333 samples, 2.08s]"
ENGINE = FakeEngine([], name="voxtral", model="mistralai/Voxtral-Mini-3B-2507")
ENDED = TurnEnded(
    Turn(PLACEHOLDER, "Paris."),
    PassReport(1, 379, 12, 21, "Where?", "length", 1, "A place"),
    Timings(0.123456, 0.2, 0.987654),
)
CONTEXT = Context(ENGINE, Utterance(CLIP), "q.wav", session="kitchen", turn=4, load_seconds=1.23456)


def test_a_record_says_all_of_a_turn() -> None:
    assert record_of(ENDED, CONTEXT) == {
        "reply": "Paris.",
        "user": PLACEHOLDER,
        "prompt": None,
        "transcript": "Where?",
        "understood": "A place",
        "not_understood": None,
        "audio": {
            "path": "q.wav",
            "samples": 33_333,
            "sample_rate": SAMPLE_RATE,
            "seconds": 2.0833,
            "damaged_seconds": 0.25,
            "cancelled_seconds": 0.5,
            "gain_db": -6.02,
        },
        "engine": "voxtral",
        "model": "mistralai/Voxtral-Mini-3B-2507",
        "model_passes": 1,
        "additional_generations": 1,
        "tools": [],
        "tools_stopped": None,
        "session": "kitchen",
        "turn": 4,
        "interrupted": False,
        "finish_reason": "length",
        "tokens": {"prompt": 379, "cached": 12, "reply": 21},
        "timings": {
            "load_seconds": 1.2346,
            "first_token_seconds": 0.1235,
            "first_audio_seconds": 0.2,
            "total_seconds": 0.9877,
        },
    }


def test_what_did_not_happen_is_null() -> None:
    ended = TurnEnded(Turn("Hello", "", interrupted=True), PassReport(1, 3, 0, 0), Timings(None, None, 0.5))
    record = record_of(ended, replace(CONTEXT, utterance=Utterance(None, "Hello"), path=None, session=None))
    assert json.loads(json.dumps(record)) == record
    assert [name for name, value in record.items() if value is None] == [
        *("prompt", "transcript", "understood", "not_understood", "audio", "tools_stopped", "session", "finish_reason")
    ]
    assert record["interrupted"]
    assert record["timings"]["first_token_seconds"] is record["timings"]["first_audio_seconds"] is None


def test_text_beside_the_audio_is_in_the_record() -> None:
    record = record_of(replace(ENDED, turn=Turn(PLACEHOLDER, "Paris.", prompt="Be exact.")), CONTEXT)
    assert (record["user"], record["prompt"]) == (PLACEHOLDER, "Be exact.")


@pytest.mark.parametrize("path", ["-", "\udcff.wav", "a\nb\x1b[2J.wav", '"\\.wav'])
def test_any_file_name_survives_json(path: str) -> None:
    record = record_of(ENDED, replace(CONTEXT, path=path))
    assert json.loads(json.dumps(record))["audio"]["path"] == path
