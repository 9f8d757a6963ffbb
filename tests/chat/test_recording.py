"""The files that are kept of a conversation."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxcli.audio.clip import AudioClip
from voxcli.chat.events import Latency, TurnTaken
from voxcli.chat.recording import Recording
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.speaking import Timings
from voxcli.core.turn import TurnEnded
from voxcli.errors import ConfigError, VoxError

SAMPLES = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)


def taken(number: int = 1, clip: AudioClip | None = AudioClip(SAMPLES), prompt: str = "") -> TurnTaken:  # noqa: B008
    turn = Utterance(clip, prompt).answered("It rains. 雨", interrupted=True)
    report = PassReport(1, 10, 0, 3, transcript="Does it rain?", finish_reason="length")
    return TurnTaken(TurnEnded(turn, report, Timings(0.1, 0.2, 0.3)), number, Latency(600, 700, None, "used", 2), clip)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_turn_is_written_as_wav_and_json(tmp_path: Path) -> None:
    Recording(tmp_path / "a" / "b").keep(taken(7))
    folder = tmp_path / "a" / "b"
    assert names(folder) == ["turn-0001.json", "turn-0001.wav"]
    samples, rate = soundfile.read(folder / "turn-0001.wav", dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(samples, SAMPLES, atol=2**-15)
    assert json.loads((folder / "turn-0001.json").read_text()) == {
        "turn": 7,
        "user": "[User audio input - 8000 samples, 0.50s]",
        "reply": "It rains. 雨",
        "interrupted": True,
        "prompt": "",
        "understood": "",
        "tools": [],
        "latency": {
            "endpoint_ms": 600,
            "first_token_ms": 700,
            "first_audio_ms": None,
            "speculative_reply": "used",
            "dropped_speculative_replies": 2,
        },
        "transcript": "Does it rain?",
        "finish_reason": "length",
    }


def test_a_typed_turn_has_no_wav(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.keep(taken(1, None, "Hello"))
    recording.keep(taken(2))
    assert names(tmp_path) == ["turn-0001.json", "turn-0002.json", "turn-0002.wav"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A conversation without a name begins at turn 1 each time."""
    (tmp_path / "turn-0041.json").write_text("kept")
    (tmp_path / "turn-notes.txt").touch()
    Recording(tmp_path).keep(taken(1))
    Recording(tmp_path).keep(taken(1))
    assert names(tmp_path) == [
        "turn-0041.json",
        "turn-0042.json",
        "turn-0042.wav",
        "turn-0043.json",
        "turn-0043.wav",
        "turn-notes.txt",
    ]
    assert (tmp_path / "turn-0041.json").read_text() == "kept"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    Recording(tmp_path / "kept").keep(taken())
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()} == {0o600}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("a\0b")):
        with pytest.raises(ConfigError, match="can't record to"):
            Recording(folder)


def test_a_folder_that_goes_away_is_an_error(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    with pytest.raises(VoxError, match=r"can't record to .*kept: No such file"):
        recording.keep(taken())


def test_control_characters_of_a_name_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J").touch()
    with pytest.raises(ConfigError) as caught:
        Recording(tmp_path / "a\x1b[2J")
    assert "\x1b" not in caught.value.message
