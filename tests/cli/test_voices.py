"""`voxcli voices` as a program: its two outputs, its exit codes."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from voxcli.cli import app


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of a user who has nothing yet."""
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def voices(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["voices", *arguments])


def test_the_list_is_grouped_by_language_and_marks_the_default() -> None:
    done = voices()
    rows = json.loads(voices("--json").stdout)["voices"]
    groups = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    lines = [line.strip() for line in done.stdout.splitlines() if line.startswith(" ")]
    assert done.exit_code == 0
    assert sorted(line.split("  ")[0] for line in lines) == sorted(row["voice"] for row in rows)
    assert all(row["voice"] == f"{row['kind']}:{row['name']}" and row["id"] for row in rows)
    assert len(groups) == len(set(groups)) > 10
    assert groups[1:] == sorted(groups[1:])
    (default,) = (row for row in rows if row["default"])
    assert [line.split("  ")[0] for line in lines if line.endswith("the default")] == [default["voice"]]
    assert lines[0].startswith("neural:heart") or find_spec("hibari") is None


def test_the_default_is_the_voice_of_the_settings() -> None:
    rows = json.loads(voices("--json", "--voice", "german").stdout)["voices"]
    assert [row["name"] for row in rows if row["default"]] == ["German"]


def test_the_speed_changes_the_length(home: Path) -> None:
    seconds = []
    for speed in ("90", "360"):
        arguments = ("--say", "Hello there, how are you?", "--speed", speed, "--voice", "German", "--json")
        seconds.append(json.loads(voices(*arguments, "--save", str(home / f"{speed}.wav")).stdout)["seconds"])
    assert seconds[1] < 0.5 * seconds[0]
    assert voices("--speed", "90").exit_code == 2
    assert voices("--say", "Hi.", "--speed", "5", "--save", str(home / "x.wav")).exit_code == 2


def test_an_unknown_voice_names_the_nearest_of_all_kinds(home: Path) -> None:
    done = voices("--say", "Hi.", "--save", str(home / "x.wav"), "--voice", "hart")
    assert done.exit_code == 2
    assert "there is no voice named hart" in done.stderr
    assert "voxcli voices" in done.stderr
    assert "heart" in done.stderr or find_spec("hibari") is None


def test_a_voice_is_tried_into_a_file(home: Path) -> None:
    path = home / "hello.wav"
    done = voices("--say", "Hello **there**. See https://example.com/a 😀", "--save", str(path), "--json")
    record = json.loads(done.stdout)
    samples, rate = soundfile.read(path)
    assert done.exit_code == 0
    assert record == {
        "voice": "pyttsx3",
        "said": "Hello there. See example.com",
        "seconds": pytest.approx(len(samples) / rate, abs=0.001),
        "path": str(path),
    }
    assert np.abs(samples).max() > 0.1


def test_the_path_is_what_is_printed(home: Path) -> None:
    path = home / "hello.wav"
    listed = json.loads(voices("--json").stdout)["voices"]
    done = voices("--say", "- not a flag", "--save", str(path), "--voice", listed[0]["voice"])
    assert (done.exit_code, done.stdout) == (0, f"{path}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save", "x.wav"], "--save needs --say"),
        (["--say", "hi", "--save", "x.mp3"], "x.mp3 is not a .wav file"),
        (["--say", "hi", "--save", "missing/x.wav"], "can't write missing/x.wav"),
        (["--say", "😀 ***", "--save", "x.wav"], "there is nothing to say"),
        (["--say", "hi", "--save", "x.wav", "--voice", "pyttsx3:Jermann"], "there is no voice named Jermann"),
        (["--say", "hi", "--save", "x.wav", "--voice", "piper:nobody"], "the piper voice nobody is not there"),
        (["--say", "hi", "--save", "x.wav", "--voice", "loud"], "loud"),
    ],
)
def test_what_can_not_be_done_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(home)
    done = voices(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not list(home.glob("*.wav"))
