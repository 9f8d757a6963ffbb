"""What is kept of the user's pauses between conversations."""

import os
from pathlib import Path

import pytest

from voxcli.chat.speech.learned_pauses import FILE_NAME, forget_pauses, load_silence, save_silence
from voxcli.chat.speech.silence import FINAL_LOWEST_MS, HIGHEST_MS, START_MS, TurnSilence


def test_each_microphone_has_its_own_and_a_new_one_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save_silence(folder, "headset", TurnSilence(600))
    save_silence(folder, "webcam é", TurnSilence(300))
    save_silence(folder, "headset", TurnSilence(620))
    assert load_silence(folder, "headset").ms == 620
    assert load_silence(folder, "webcam é").ms == 300
    assert load_silence(folder, "laptop").ms == START_MS
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


@pytest.mark.skipif(os.name != "posix", reason="no permissions of the kind")
def test_its_owner_alone_can_read_it(tmp_path: Path) -> None:
    save_silence(tmp_path, "headset", TurnSilence(600))
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"headset": "600"}',
        b'{"headset": true}',
        b'{"headset": NaN}',
        b'{"headset": 1e999}',
        b"[" * 100_001,
    ],
)
def test_a_damaged_file_means_that_learning_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert load_silence(tmp_path, "headset").ms == START_MS
    save_silence(tmp_path, "headset", TurnSilence(600))
    assert load_silence(tmp_path, "headset").ms == 600


def test_a_length_out_of_bounds_is_moved_to_the_nearest_bound(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"headset": 99999}')
    assert load_silence(tmp_path, "headset").ms == HIGHEST_MS


def test_where_no_turn_can_be_taken_back_it_stays_higher(tmp_path: Path) -> None:
    assert load_silence(tmp_path, "headset", FINAL_LOWEST_MS).ms == FINAL_LOWEST_MS
    save_silence(tmp_path, "headset", TurnSilence(300))
    silence = load_silence(tmp_path, "headset", FINAL_LOWEST_MS)
    for _ in range(100):
        silence.add_turn(0)
    assert silence.ms == FINAL_LOWEST_MS
    save_silence(tmp_path, "headset", silence)
    assert load_silence(tmp_path, "headset").ms == 300, "what was learned where turns can be taken back is kept"


def test_a_folder_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save_silence(tmp_path / "file", "headset", TurnSilence(600))
    assert load_silence(tmp_path / "file", "headset").ms == START_MS


def test_only_the_microphones_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(60):
        save_silence(tmp_path, f"microphone {number}", TurnSilence(600))
    assert load_silence(tmp_path, "microphone 9").ms == START_MS
    assert load_silence(tmp_path, "microphone 10").ms == 600


def test_all_can_be_forgotten(tmp_path: Path) -> None:
    assert forget_pauses(tmp_path) == 0
    save_silence(tmp_path, "headset", TurnSilence(600))
    save_silence(tmp_path, "webcam", TurnSilence(600))
    assert forget_pauses(tmp_path) == 2
    assert load_silence(tmp_path, "headset").ms == START_MS
