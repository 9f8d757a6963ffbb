"""Files and flags as strangers give them: outputs that are inputs, `-`, URLs, manifests, and flags that do nothing."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from typer.testing import CliRunner, Result

from tests.support.batches import make_manifest, make_recording, records
from tests.support.openai_server import OpenAIServer
from voxcli.cli import app
from voxcli.core.testing import FakeSynthesizer
from voxcli.tts import voices
from voxcli.tts.wav_speaker import is_own_sound

pytest.importorskip("openai")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: OpenAIServer) -> Path:
    """A folder with a recording, a manifest and settings that name the test server; a voice that costs no time."""
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_ENGINE", "remote")
    monkeypatch.setenv("VOXCLI_REMOTE__URL", server.url)
    monkeypatch.setattr(voices, "open_synthesizer", lambda *_, **__: OpenVoice())
    monkeypatch.chdir(tmp_path)
    make_recording(Path("q.wav"))
    make_manifest(Path("m.jsonl"), [{"id": "q", "audio": "q.wav"}])
    return tmp_path


class OpenVoice(FakeSynthesizer):
    """A voice that is open; a context manager, as voices are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(*arguments: str | Path, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parts[0] != "home"}


# --- Outputs that are inputs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["once", "q.wav", "--save-reply", "q.wav"],
        ["once", "./q.wav", "--save-reply", "soft.wav"],
        ["once", "q.wav", "--save-reply", "hard.wav"],
        ["once", "file:///FOLDER/q.wav", "--save-reply", "q.wav"],
        ["once", "q.wav", "--config", "s.wav", "--save-reply", "s.wav"],
        ["once", "q.wav", "--instructions", "@s.wav", "--save-reply", "s.wav"],
        ["batch", "m.jsonl", "--out", "o.jsonl", "--save-replies", "."],
        ["batch", "m.jsonl", "--out", "m.jsonl"],
        ["batch", "m.jsonl", "--out", "m.jsonl", "--resume"],
        ["batch", "q.wav", "--out", "q.wav"],
        ["batch", "q.wav", "--config", "s.wav", "--out", "s.wav"],
        ["batch", "m.jsonl", "--out", "out/q.wav", "--save-replies", "out"],
    ],
)
def test_what_is_read_is_never_replaced(arguments: list[str]) -> None:
    Path("soft.wav").symlink_to("q.wav")
    os.link("q.wav", "hard.wav")
    Path("s.wav").touch()
    Path("out").mkdir()
    before = contents()
    done = run(*(each.replace("/FOLDER", str(Path.cwd())) for each in arguments), "--force")
    assert done.exit_code == 2, done.stderr
    assert "which this run reads" in done.stderr or "name the same file" in done.stderr
    assert done.stderr.count("\n") == 2
    assert contents() == before


def test_nothing_is_replaced_without_a_flag(folder: Path) -> None:
    Path("old.wav").write_bytes(b"older")
    Path("said").mkdir()
    Path("said/q.wav").write_bytes(b"older")
    for arguments in (
        ["once", "q.wav", "--save-reply", "old.wav"],
        ["batch", "m.jsonl", "--out", "o.jsonl", "--save-replies", "said"],
        ["batch", "m.jsonl", "--out", "o.jsonl", "--save-replies", "said", "--resume"],
        ["voices", "--say", "Hi", "--save", "old.wav"],
        ["config", "init", "--config", "old.wav"],
    ):
        before = contents()
        done = run(*arguments)
        assert (done.exit_code, "--force" in done.stderr, contents() == before) == (2, True, True), done.stderr
        assert run(*(each for each in arguments if each != "--resume"), "--force").exit_code == 0
        Path("old.wav").write_bytes(b"older")
        Path("said/q.wav").write_bytes(b"older")
        Path("o.jsonl").unlink(missing_ok=True)


def test_a_run_that_goes_on_replaces_its_own_replies_alone(folder: Path) -> None:
    command = ("batch", "m.jsonl", "--out", "o.jsonl", "--save-replies", "said", "--resume")
    assert run(*command).exit_code == 0
    assert is_own_sound(Path("said/q.wav"))
    make_recording(Path("r.wav"))
    make_manifest(Path("m.jsonl"), [{"id": name, "audio": f"{name}.wav"} for name in "qr"])
    Path("said/r.wav").write_bytes(b"not ours")
    assert "said/r.wav exists" in run(*command).stderr
    assert Path("said/r.wav").read_bytes() == b"not ours"
    Path("said/r.wav").write_bytes(Path("said/q.wav").read_bytes())  # A run that is killed just then leaves it so.
    assert run(*command).exit_code == 0
    assert [record["id"] for record in records(Path("o.jsonl"))] == ["q", "r"]


def test_an_export_does_not_replace_the_store(folder: Path) -> None:
    assert run("once", "q.wav", "--session", "s").exit_code == 0
    (store,) = Path("home").glob("*.db")
    before = store.read_bytes()
    assert "which this run reads" in run("sessions", "export", "s", "--output", store, "--force").stderr
    assert store.read_bytes() == before


def test_only_the_owner_reads_a_reply(folder: Path) -> None:
    assert run("once", "q.wav", "--save-reply", "reply.wav").exit_code == 0
    assert stat.S_IMODE(Path("reply.wav").stat().st_mode) == 0o600


# --- Standard input and output, URLs, manifests --------------------------------------------------


def voxcli(*arguments: str, stdin: bytes = b"", stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[bytes]":
    """Run voxcli as a process of its own, whose standard streams are files or pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "voxcli", *arguments], input=stdin, stdout=stdout, stderr=subprocess.PIPE,
        env=environment, check=False,
    )  # fmt: skip


def test_records_go_to_standard_output_and_a_manifest_comes_from_standard_input(folder: Path) -> None:
    done = voxcli("batch", "-", "--out", "-", stdin=Path("m.jsonl").read_bytes())
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["q"]
    assert not Path("-").exists()
    assert b"--resume" not in done.stderr


def test_standard_output_is_not_a_file_that_is_read(folder: Path) -> None:
    before = Path("q.wav").read_bytes()
    with Path("q.wav").open("ab") as file:
        done = voxcli("once", "q.wav", "--json", stdout=file.fileno())
    assert (done.returncode, b"standard output goes to q.wav" in done.stderr) == (2, True)
    assert Path("q.wav").read_bytes() == before


@pytest.mark.parametrize("name", ["a b.wav", "ü.wav", "100%.wav", "#1?.wav"])
def test_percent_encoding_of_a_url_is_undone(name: str) -> None:
    path = make_recording(Path(name)).absolute()
    for url in (path.as_uri(), *(path.as_uri().replace("file://", other) for other in ("FILE://localhost", "file:"))):
        assert run("once", url, "--json").exit_code == 0
    assert run("batch", path.as_uri(), "--out", "o.jsonl").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "told"),
    [
        (["once", ""], None, 3, "the name of the recording is empty"),
        (["once", " "], None, 3, "the name of the recording is empty"),
        (["results", "a\0b"], None, 2, "can't read a\\x00b: embedded null byte"),
        (["results", "~nobody-here/o.jsonl"], None, 2, "can't read ~nobody-here/o.jsonl"),
        (["batch", "", "--out", "o.jsonl"], None, 3, "the name of an input is empty"),
        (["once", "m.jsonl"], None, 3, "voxcli batch m.jsonl --out results.jsonl"),
        (["once", "m.txt"], None, 3, "voxcli batch m.txt --out results.jsonl"),
        (["once", "array.json"], None, 3, "array.json is a manifest"),
        (["batch", "array.json", "--out", "o.jsonl"], None, 2, "not a JSON object"),
        (["once", "s3x://bucket/q.wav"], None, 3, "only these URLs can be read"),
        (["once", "file://q.wav"], None, 3, "write file:///FOLDER/FILE"),
        (["once", "https://host/q.wav", "--raw-rate", "16000"], None, 2, "--raw-rate is for standard input and files"),
        (["once", "-", "--prompt", "-"], b"", 2, "standard input can be read only once"),
        (["batch", "-", "--config", "-", "--out", "o.jsonl"], b"", 2, "standard input can be read only once"),
        (["batch", "q.wav", "--out", "-", "--resume"], None, 2, "standard output can't be continued"),
        (["batch", "q.wav", "--out", "o.jsonl", "--save-replies", "-"], None, 2, "- is standard output"),
        (["once", "q.wav", "--save-reply", "-"], None, 2, "- is standard output"),
        (["chat", "--record", "-"], None, 2, "- is standard output"),
        (["voices", "--say", "Hi", "--save", "-"], None, 2, "- is standard output"),
    ],
)
def test_what_is_the_matter_is_said(arguments: list[str], stdin: bytes | None, code: int, told: str) -> None:
    Path("m.txt").write_bytes(Path("m.jsonl").read_bytes())
    Path("array.json").write_text(json.dumps([{"id": "q", "audio": "q.wav"}]))
    before = contents()
    done = run(*arguments, stdin=stdin)
    assert (done.exit_code, told in done.stderr) == (code, True), done.stderr
    assert contents() == before


def test_a_manifest_on_standard_input_is_no_recording(folder: Path) -> None:
    done = voxcli("once", "-", stdin=Path("m.jsonl").read_bytes())
    assert (done.returncode, b"voxcli batch - --out results.jsonl" in done.stderr) == (3, True)


def test_text_and_settings_come_from_standard_input(folder: Path) -> None:
    assert json.loads(run("once", "q.wav", "--json", "--prompt", "-", stdin="Why?\n").stdout)["prompt"] == "Why?"
    assert 'model = "small"' in run("config", "show", "--config", "-", stdin='model = "small"').stdout
    assert run("config", "init", "--config", "-").stdout.startswith("# Settings")


# --- Flags that do nothing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["once", "q.wav", "--engine", "embedded", "--model", "small"], "--model"),
        (["once", "q.wav", "--engine", "embedded", "--device", "cpu"], "--device"),
        (["once", "q.wav", "--engine", "embedded", "--url", "http://localhost/v1"], "--url"),
        (["once", "q.wav", "--quantize", "int4"], "--quantize"),
        (["once", "q.wav", "--device", "cpu"], "--device"),
        (["once", "q.wav", "--no-speak", "--voice", "pyttsx3"], "--voice"),
        (["batch", "q.wav", "--out", "o.jsonl", "--voice", "pyttsx3"], "--voice"),
        (["batch", "q.wav", "--out", "o.jsonl", "--quantize", "int4"], "--quantize"),
        (["batch", "q.wav", "--out", "o.jsonl", "--batch-size", "2"], "--batch-size"),
        (["batch", "q.wav", "--out", "o.jsonl", "--workers", "2"], "--workers"),
        (["chat", "--no-speak", "--voice", "pyttsx3"], "--voice"),
        (["results", "o.jsonl", "--json", "--format", "csv"], "--format"),
        (["chat", "--no-speak", "--output-device", "1"], "--output-device"),
        (["chat", "--device", "cpu"], "--device"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(arguments: list[str], flag: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, f"{flag} " in done.stderr) == (2, True), done.stderr
    assert not Path("o.jsonl").exists()


@pytest.mark.parametrize(("variable", "value"), [("MODEL", "small"), ("DEVICE", "cpu"), ("QUANTIZE", "int4")])
def test_a_setting_for_another_engine_does_no_harm(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"VOXCLI_{variable}", value)
    assert run("once", "q.wav").exit_code == 0
