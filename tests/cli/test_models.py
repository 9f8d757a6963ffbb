"""`voxcli models` as a program: its two outputs, its exit codes."""

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.model_hub import REPO, FakeHub, checkpoint_files
from voxcli.chat.speech import turn_model
from voxcli.engines.embedded import weights

Done = subprocess.CompletedProcess[str]


@dataclass
class Place:
    """A hub, and the environment of a user whose folders are all under `home`."""

    hub: FakeHub
    home: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "voxcli", "models", *arguments]

    def run(self, *arguments: str, **extra: str) -> Done:
        environment = self.environment | extra
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    fake = FakeHub(checkpoint_files())
    server = fake.serve()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    yield Place(fake, tmp_path, environment)
    fake.release.set()
    server.shutdown()
    server.server_close()


def test_pull_prints_the_folder_and_then_needs_no_network(place: Place) -> None:
    done = place.run("pull", REPO)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.removesuffix("\n"))
    assert (folder / "config.json").is_file()
    assert folder.is_relative_to(place.home)
    assert f"fetching {REPO}" in done.stderr
    assert "\r" not in done.stderr
    asked = len(place.hub.log)
    again = place.run("pull", REPO)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "already here" in again.stderr
    assert len(place.hub.log) == asked

    rows = {row["name"]: row for row in json.loads(place.run("list", "--json").stdout)["models"]}
    assert list(rows) == ["embedded", "mini", "small", REPO, "smart-turn"]
    assert rows[REPO]["path"] == str(folder)
    assert rows[REPO]["get"] is None
    assert rows["mini"] == {
        "name": "mini",
        "id": "mistralai/Voxtral-Mini-3B-2507",
        "bytes": 9_350_000_000,
        "cached": False,
        "path": None,
        "fetched_bytes": 0,
        "get": "voxcli models pull mini",
    }
    lines = place.run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", *rows]
    assert len({line.find(word) for line, word in zip(lines[2:4], ("9.35 GB", "48.50 GB"), strict=True)}) == 1


def test_where_links_can_not_be_made_nothing_lies_there_twice(place: Place) -> None:
    done = place.run("pull", REPO, HF_HUB_DISABLE_SYMLINKS="1")
    assert done.returncode == 0, done.stderr
    weights_file = Path(done.stdout.strip()) / "model-00001-of-00002.safetensors"
    assert weights_file.read_bytes() == place.hub.files[weights_file.name]
    copies = [file for file in (place.home / "hf").rglob("*") if file.is_file() and file.samefile(weights_file)]
    same_bytes = [file for file in (place.home / "hf").rglob("*") if file.is_file() and file.stat().st_size > 3000]
    assert not weights_file.is_symlink()
    assert copies == [weights_file]
    assert {file.parent for file in same_bytes} == {weights_file.parent}


def test_a_terminal_sees_a_bar(place: Place) -> None:
    ours, theirs = pty.openpty()
    environment = place.environment | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        place.command("pull", REPO), stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        stdout, _ = process.communicate(timeout=60)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert Path(stdout.decode().strip()).is_dir()
    assert "━" in seen
    assert "kB" in seen


@pytest.mark.usefixtures("usual_signals")
def test_control_c_ends_with_130(place: Place) -> None:
    place.hub.files = checkpoint_files(shards=1, size=24_000_000)
    place.hub.break_after, place.hub.stall = {"model-00001-of-00001.safetensors": [22_000_000]}, True
    process = subprocess.Popen(
        place.command("pull", REPO), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=place.environment
    )
    assert process.stderr
    told = []
    for line in iter(process.stderr.readline, ""):
        told.append(line)
        if line.startswith("0.02"):
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, [*told, stderr]
    assert stdout == ""
    assert "Traceback" not in stderr
    listed = json.loads(place.run("list", "--json").stdout)["models"]
    assert [row["name"] for row in listed] == ["embedded", "mini", "small", "smart-turn"], (
        "half a model is not listed as one"
    )


@pytest.mark.parametrize(
    ("model", "refuse", "extra", "says"),
    [
        ("minni", None, {}, "did you mean mini"),
        ("a/b\x1b[2J", None, {}, "there is no model called"),
        ("owner/missing", (404, "RepoNotFound"), {}, "the hub has no model owner/missing"),
        (REPO, (403, "GatedRepo"), {}, "gated"),
        (REPO, None, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be fetched"),
    ],
)
def test_failures_are_two_lines_and_exit_code_4(
    place: Place, model: str, refuse: tuple[int, str] | None, extra: dict[str, str], says: str
) -> None:
    place.hub.refuse = refuse
    done = place.run("pull", model, **extra, **{"HF_TOKEN": "hf_secret"})
    lines = [line for line in done.stderr.splitlines() if not line.startswith("fetching")]
    assert done.returncode == 4, done.stderr
    assert len(lines) == 2
    assert says in " ".join(lines)
    assert done.stdout == ""
    assert "hf_secret" not in done.stderr
    assert "\x1b[2J" not in done.stderr


def test_the_embedded_engine_is_pulled_from_its_packages(place: Place) -> None:
    if missing := weights.missing_packages():
        pytest.skip(f"not installed: {missing}")
    done = place.run("pull", "embedded")
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "smollm2.gguf").is_file()
    assert place.hub.log == []


def test_the_end_of_turn_model_is_taken_from_an_installed_package(place: Place) -> None:
    if not turn_model.packaged():
        pytest.skip("pipecat-ai is not installed")
    done = place.run("pull", "smart-turn")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.removesuffix("\n"))
    assert (
        hashlib.sha256((folder / turn_model.SMART_TURN.name).read_bytes()).hexdigest() == turn_model.SMART_TURN.sha256
    )
    assert place.hub.log == []
    listed = json.loads(place.run("list", "--json").stdout)["models"][-1]
    assert (listed["name"], listed["cached"], listed["path"], listed["get"]) == ("smart-turn", True, str(folder), None)


def test_a_folder_is_never_said_to_be_fetched(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = place.run("pull", str(tmp_path / "mine"))
    assert done.returncode == 4
    assert "fetching" not in done.stderr
    assert "is not a whole checkpoint: config.json" in done.stderr
