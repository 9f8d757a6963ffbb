"""`voxcli voices` as a program: its two outputs, its exit codes."""

import json
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


def test_the_list_shows_what_the_flag_takes() -> None:
    done = voices()
    names = [line.split("  ")[0] for line in done.stdout.splitlines()]
    rows = json.loads(voices("--json").stdout)["voices"]
    assert done.exit_code == 0
    assert names == [row["voice"] for row in rows]
    assert all(row["voice"] == f"pyttsx3:{row['name']}" and row["id"] for row in rows)


def test_a_voice_is_tried_into_a_file(home: Path) -> None:
    path = home / "hello.wav"
    done = voices("--say", "Hello **there**. See https://example.com/a 😀", "--save", str(path), "--json")
    record = json.loads(done.stdout)
    samples, rate = soundfile.read(path)
    assert done.exit_code == 0
    assert record == {
        "voice": "pyttsx3",
        "said": "Hello there. See example dot com",
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
