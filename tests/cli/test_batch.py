"""`voxcli batch` as a person or a job runs it: a process of its own, the embedded engine, real models."""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import make_manifest, make_recording, records
from voxcli.audio.clip import read_audio

ROOT = Path(__file__).parent.parent.parent
QUESTIONS = ROOT / "examples" / "questions"
ANSWERS = json.loads((QUESTIONS / "questions.json").read_text(encoding="utf-8"))
SHORT = sorted(name for name in ANSWERS if name != "three-friends-on-a-train.flac")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test works; no settings but its own are read."""
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_ENGINE", "embedded")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str | Path, **streams: Any) -> "subprocess.Popen[str]":
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "-m", "voxcli", "batch", *map(str, arguments)], text=True, **streams)


def run(*arguments: str | Path, stdin: str = "") -> tuple[int, str]:
    """Run a batch; return the exit code and what it wrote to stderr."""
    process = start(*arguments)
    stdout, stderr = process.communicate(stdin, timeout=120)
    assert stdout == ""
    assert "Traceback" not in stderr
    return process.returncode, stderr


def by_id(path: Path = Path("out.jsonl")) -> dict[str, dict[str, Any]]:
    found = records(path)
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def wait_for_records(process: "subprocess.Popen[str]", count: int, path: Path) -> None:
    """Wait until there are so many, or the process has ended."""
    while process.poll() is None and not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.01)


# --- With the real models ------------------------------------------------------------------------


def test_a_manifest_from_the_first_run_to_the_last(folder: Path) -> None:
    shutil.copy(QUESTIONS / "capital-of-france.flac", folder)
    make_manifest(
        Path("m.jsonl"),
        [
            {"id": "france", "audio": "capital-of-france.flac", "session": "talk"},
            {"id": "late", "audio": "late.flac"},
            {"id": "lemon", "audio": str(QUESTIONS / "color-of-a-lemon.flac"), "prompt": "Answer in one word."},
            {"id": "horse", "audio": str(QUESTIONS / "legs-of-a-horse.flac"), "session": "talk"},
        ],
    )
    code, stderr = run("m.jsonl", "--out", "out.jsonl")
    found = by_id()
    assert (code, set(found)) == (1, {"france", "late", "lemon", "horse"})
    assert "paris" in found["france"]["reply"].lower()
    assert (found["france"]["model_passes"], found["france"]["session"], found["horse"]["turn"]) == (1, "talk", 2)
    assert found["lemon"]["prompt"] == "Answer in one word."
    assert found["horse"]["tokens"]["prompt"] > found["france"]["tokens"]["prompt"]  # it remembers a turn
    assert found["late"]["error"] == {"code": "audio_input", "message": "late.flac does not exist"}
    assert "3 answered, 1 failed" in stderr
    assert "audio_input: 1, the first late: late.flac does not exist" in stderr
    assert "voxcli batch m.jsonl --out out.jsonl --retry-failed" in stderr

    before = Path("out.jsonl").read_bytes()
    code, stderr = run("m.jsonl", "--out", "out.jsonl")
    assert (code, "--resume" in stderr, Path("out.jsonl").read_bytes()) == (2, True, before)
    code, stderr = run("m.jsonl", "--out", "out.jsonl", "--resume")
    assert (code, Path("out.jsonl").read_bytes()) == (1, before)
    assert "engine" not in stderr  # nothing was loaded for nothing

    shutil.copy(QUESTIONS / "one-plus-one.flac", folder / "late.flac")
    code, stderr = run("m.jsonl", "--out", "out.jsonl", "--retry-failed", "--max-p95", "60")
    assert (code, "4 answered, 0 failed" in stderr) == (0, True)
    assert {name: record for name, record in by_id().items() if name != "late"} == {
        name: record for name, record in found.items() if name != "late"
    }
    assert by_id()["late"]["transcript"]
    code, stderr = run("m.jsonl", "--out", "out.jsonl", "--resume", "--max-p95", "0.001")
    assert (code, "above the 0.001 s" in stderr) == (1, True)


def test_replies_are_spoken_into_files_and_one_by_one_they_are_the_same() -> None:
    names = SHORT[:4]
    paths = [str(QUESTIONS / name) for name in names]
    code, stderr = run("-", "--out", "many.jsonl", "--save-replies", "said", stdin="\r\n".join(["", *paths]))
    assert code == 0, stderr
    assert run("-", "--out", "single.jsonl", "--concurrency", "1", stdin="\n".join(paths))[0] == 0
    many, single = by_id(Path("many.jsonl")), by_id(Path("single.jsonl"))
    assert {name: record["reply"] for name, record in many.items()} == {
        name: record["reply"] for name, record in single.items()
    }
    for record in many.values():
        assert read_audio(record["saved_reply"]).seconds > 0.3
        assert Path(record["saved_reply"]).is_relative_to("said")
    assert "saved_reply" not in next(iter(single.values()))


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(folder: Path) -> None:
    for number in range(40):
        shutil.copy(QUESTIONS / SHORT[number % len(SHORT)], folder / f"{number}.flac")
    process = start(".", "--out", "out.jsonl")
    wait_for_records(process, 1, Path("out.jsonl"))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing what is in flight" in stderr
    assert "to continue: voxcli batch . --out out.jsonl --resume" in stderr
    first = by_id()
    assert 1 <= len(first) < 40
    assert all("reply" in record for record in first.values())
    for path in folder.glob("*.flac"):
        if path.name not in first and path.name not in ("1.flac", "2.flac"):
            path.unlink()
    code, stderr = run(".", "--out", "out.jsonl", "--resume")
    assert (code, set(by_id()) - set(first) <= {"1.flac", "2.flac"}) == (0, True), stderr
    assert set(by_id()) == {path.name for path in folder.glob("*.flac")}


def run_at_a_terminal(*arguments: str, columns: int) -> tuple[int, str]:
    """Run a batch whose stderr is a terminal; return the exit code and what it wrote there, without its styles."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    with start(*arguments, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while data := os.read(leader, 4096):
                shown += data
        except OSError:  # how a terminal ends
            pass
    os.close(leader)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_a_terminal_shows_a_bar(folder: Path) -> None:
    shutil.copy(QUESTIONS / SHORT[0], folder / "a.flac")
    code, shown = run_at_a_terminal(".", "--out", "out.jsonl", columns=80)
    assert code == 0
    assert re.search(r"1 of 1 .*left", shown)
    assert "results: voxcli results out.jsonl" in shown


def test_a_terminal_shows_notes_wrapped_between_words_and_commands_in_one_piece(folder: Path) -> None:
    name = f"{'a-long-name-' * 3}.flac"
    shutil.copy(QUESTIONS / SHORT[0], folder / "a.flac")
    (folder / name).write_text("no sound")
    code, shown = run_at_a_terminal(".", "--out", "out.jsonl", columns=50)
    assert code == 1
    lines = [line.lstrip("\r") for line in shown.split("\r\n")]
    counts, failure, results = (
        next(number for number, line in enumerate(lines) if line.startswith(begun))
        for begun in ("1 answered, 1 failed", "  audio_input: 1", "results: voxcli results out.jsonl")
    )
    assert [line for line in lines[counts:results] if len(line) > 50] == []
    assert re.search(r" tokens/s · first token median \S+ s, p95 \S+ s$", " ".join(lines[counts:failure]))
    assert {line[:2] for line in lines[failure:results]} == {"  "}
    assert " ".join(line.strip() for line in lines[failure:results]).endswith("is not audio in a known format")
    assert lines[-3:] == ["to try failed items again:", "  voxcli batch . --out out.jsonl --retry-failed", ""]


# --- kill -9, with an engine that answers at once ------------------------------------------------

SCRIPTED = """
import sys, threading, time
from pathlib import Path
from tests.support.batches import Echo, Silent, plan_of, read
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.results import Results
from voxcli.batch.runner import Run
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.stats import Stats
from voxcli.batch.worker import EngineWorker
plan = plan_of("m.jsonl")
with Results(Path("out.jsonl"), resume=True, count=lambda _: None) as results:
    scheduler = Scheduler(iter(plan), results, "")
    engine = Echo(before_reply=lambda _: time.sleep(0.001))
    run = Run(scheduler, plan.items, results.write, Stats(), Silent(), threading.Event())
    with Prefetcher(scheduler, read) as prefetcher:
        run.answer([EngineWorker(prefetcher, engine, 0.0) for _ in range(3)])
"""


def test_however_often_it_is_killed_every_item_is_answered_once(folder: Path) -> None:
    count, kills, chance = 3000, 6, random.Random(1)
    values = [{"id": str(n), "audio": "x.wav", "prompt": str(n), "session": f"s{n % 7}"} for n in range(count)]
    make_manifest(Path("m.jsonl"), [value if n % 2 else {**value, "session": None} for n, value in enumerate(values)])
    out, finished = Path("out.jsonl"), b""
    for kill in range(kills + 1):
        with subprocess.Popen([sys.executable, "-c", SCRIPTED], text=True) as process:
            if kill < kills:
                wait_for_records(process, (kill + 1) * 300 + chance.randrange(100), out)
                process.kill()
        assert out.read_bytes().startswith(finished)  # nothing that was finished is touched
        finished = out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1]
    assert process.returncode == 0
    assert set(by_id()) == {str(number) for number in range(count)}
    for talk in range(7):  # in order, and each knows all before it
        turns = [(int(record["id"]), record["turn"]) for record in records(out) if record["session"] == f"s{talk}"]
        assert turns == [(n, place + 1) for place, n in enumerate(n for n in range(1, count, 2) if n % 7 == talk)]


# --- What is refused before anything runs --------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["missing.wav", "--out", "out.jsonl"], 3, "missing.wav does not exist"),
        (["empty", "--out", "out.jsonl"], 3, "no recordings"),
        (["-", "--out", "out.jsonl"], 3, "no recordings"),
        (["in", "in", "--out", "out.jsonl"], 2, "two items have the id 'a.wav'"),
        (["bad.jsonl", "--out", "out.jsonl"], 2, "bad.jsonl, line 2: not JSON"),
        (["in", "--out", "in"], 2, "in is a folder"),
        (["in", "--out", "bad.jsonl", "--resume"], 2, "line 1: not a record"),
        (["in", "--out", "out.jsonl", "--save-replies", "in/said"], 2, "answered like recordings"),
        (["in", "--out", "out.jsonl", "--save-replies", "in/a.wav"], 2, "answered like recordings"),
        (["in", "--out", "out.jsonl", "--save-replies", "bad.jsonl"], 2, "can't make the folder"),
        (["in", "--out", "/dev/full"], 1, "No space left"),
        (["in"], 2, "--out"),
        (["\x1b]0;\n.wav", "--out", "out.jsonl"], 3, r"\x1b]0;\n.wav does not exist"),
    ],
)
def test_what_can_not_be_done_ends_in_one_line(arguments: list[str], code: int, why: str) -> None:
    make_recording(Path("in/a.wav"))
    Path("empty").mkdir()
    Path("bad.jsonl").write_text('{"id": "a", "audio": "in/a.wav"}\n{"id": "b"\n')
    got, stderr = run(*arguments)
    assert (got, why in stderr) == (code, True), stderr
