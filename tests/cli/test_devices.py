"""`voxcli devices` on a sound card whose loudspeaker the microphone hears, or does not."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.virtual_audio import SoundCard, missing_program
from tests.support.virtual_microphone import say, studio
from voxcli.audio.clip import AudioClip
from voxcli.chat.devices.portaudio import Device, distinct, find_device, output_devices
from voxcli.chat.speech.learned_pauses import load_silence, save_silence
from voxcli.chat.speech.silence import TurnSilence
from voxcli.cli import app
from voxcli.errors import AudioDeviceError

needs_sound_card = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")


@pytest.fixture(scope="module")
def card() -> Iterator[SoundCard]:
    with studio() as card:
        yield card


def voxcli(card: SoundCard, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "voxcli", "devices", *arguments]
    environment = card.environment | {"NO_COLOR": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_sound_card
def test_lists_each_device_once_and_marks_the_default(card: SoundCard) -> None:
    done = voxcli(card, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    for kind in ("inputs", "outputs"):
        names = [row["name"] for row in listed[kind]]
        assert len(set(names)) == len(names) > 0
        assert [row["name"] for row in listed[kind] if row["default"]] == ["default"]
    table = voxcli(card).stdout.splitlines()
    assert table[0] == "inputs:"
    assert any(line.startswith(" *") and " default " in line for line in table)


@needs_sound_card
def test_the_meter_shows_how_loud_it_is(card: SoundCard) -> None:
    loud = AudioClip(np.random.default_rng(1).uniform(-0.5, 0.5, 16_000 * 8).astype(np.float32))
    speaking = threading.Thread(target=say, args=(card, loud))
    speaking.start()
    done = voxcli(card, "--meter", "--seconds", "2", "--json")
    speaking.join()
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2
    assert max(row["level_dbfs"] for row in rows) == pytest.approx(-10.8, abs=1)  # of uniform noise
    assert "dBFS, peak" in voxcli(card, "--meter", "--seconds", "0.2").stdout


@needs_sound_card
def test_a_loopback_finds_no_echo_where_there_is_none(card: SoundCard) -> None:
    hiss = AudioClip(np.random.default_rng(1).uniform(-0.001, 0.001, 16_000 * 12).astype(np.float32))
    room = threading.Thread(target=say, args=(card, hiss))
    room.start()
    done = voxcli(card, "--loopback")
    room.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo:   none" in done.stdout
    assert "advice: full-duplex: talk at any time" in done.stdout


@needs_sound_card
def test_a_microphone_that_delivers_only_zeros_is_told(card: SoundCard) -> None:
    done = voxcli(card, "--loopback")
    assert (done.returncode, done.stderr) == (0, "")
    assert "echo:   not known; the microphone delivers only zeros" in done.stdout
    assert "advice: check-microphone" in done.stdout
    assert "delivers only zeros" in voxcli(card, "--meter", "--seconds", "4").stderr


@needs_sound_card
def test_a_loopback_measures_what_comes_back(card: SoundCard) -> None:
    subprocess.run(["pactl", "set-default-source", "speaker.monitor"], env=card.environment, check=True)
    try:
        done = voxcli(card, "--loopback", "--json")
    finally:
        subprocess.run(["pactl", "set-default-source", "microphone"], env=card.environment, check=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert 20 < found["delay_ms"] < 600
    assert found["echo_db"] == pytest.approx(0, abs=1)
    assert found["noise_dbfs"] < -60
    assert found["advice"] == "half-duplex"  # as loud as that, no canceller helps


@needs_sound_card
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--meter", "--input-device", "no such thing"], 5, "no audio input device is called 'no such thing'"),
        (["--meter", "--input-device", "no such\x1bthing"], 2, "--input-device is"),
        (["--loopback", "--output-device", "99"], 5, "name one of: "),
        (["--meter", "--loopback"], 2, "exclude each other"),
        (["--meter", "--reset-pauses"], 2, "--reset-pauses exclude each other"),
        (["--seconds", "3"], 2, "--meter --seconds"),
    ],
    ids=["unknown name", "hostile name", "unknown number", "both", "both too", "seconds alone"],
)
def test_what_can_not_be_done_is_told(card: SoundCard, arguments: list[str], code: int, said: str) -> None:
    done = voxcli(card, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == ""


def test_pauses_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    save_silence(tmp_path, "headset", TurnSilence(600))
    for number, words in ((1, "forgot the pauses of 1 microphone\n"), (0, "forgot the pauses of 0 microphones\n")):
        assert CliRunner().invoke(app, ["devices", "--reset-pauses"]).stdout == words, number
    done = CliRunner().invoke(app, ["devices", "--reset-pauses", "--json"])
    assert json.loads(done.stdout) == {"microphones_forgotten": 0}
    assert load_silence(tmp_path, "headset").ms == TurnSilence().ms


@needs_sound_card
def test_a_device_is_found_by_number_or_part_of_its_name(card: SoundCard) -> None:
    default = find_device("output")
    assert default.is_default
    for device in output_devices():
        assert find_device("output", str(device.index)) == device
        assert find_device("output", device.name.upper()) == device
    assert find_device("output", "u") == default  # of several, the default one: "default", "pulse"
    with pytest.raises(AudioDeviceError, match="no audio output device is called 'nothing'") as caught:
        find_device("output", "nothing")
    assert repr(default.name) in caught.value.hint


def device(index: int, name: str, host_api: str, *, is_default: bool = False) -> Device:
    return Device(index, name, 2, 48_000, is_default, "input", host_api)


def test_each_device_is_listed_once() -> None:
    headset = [device(index, "Headset", "WASAPI") for index in range(3, 8)]
    headset[2] = replace(headset[2], is_default=True)
    cut = [device(0, "Microphone (Realtek High Defini", "MME"), device(1, "Headset", "MME")]
    microphone = device(2, "Microphone (Realtek High Definition Audio)", "WASAPI")
    kept = distinct([*cut, microphone, *headset])
    assert [each.index for each in kept] == [2, 5]  # the main host API's alone, the default one of the same name


def test_without_a_default_device_each_name_is_listed_once() -> None:
    assert [each.index for each in distinct([device(0, "A", "x"), device(1, "A", "y"), device(2, "B", "y")])] == [0, 2]
