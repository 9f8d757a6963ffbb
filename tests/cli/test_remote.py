"""`voxcli once` and `batch` with a server, as a person or a program runs them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.openai.test_engine import options
from tests.support.openai_server import REPLY, WAIT_SECONDS, Exchange, OpenAIServer, refuses, says
from voxcli.core.storage.store import Store
from voxcli.engines import factory

pytest.importorskip("openai")

ROOT = Path(__file__).parent.parent.parent
QUESTION = ROOT / "examples" / "questions" / "capital-of-france.flac"
PLACEHOLDER = "[User audio input - 33948 samples, 2.12s]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("VOXCLI_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_ENGINE", "remote")
    return home


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "voxcli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    with start(*arguments) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


def test_the_reply_goes_to_stdout_and_the_choice_to_stderr(home: Path) -> None:
    with OpenAIServer() as server:
        done = run("once", QUESTION, "--url", server.url)
    assert (done.returncode, done.stdout) == (0, f"{''.join(REPLY)}\n")
    assert done.stderr.startswith(f"remote engine: tiny at {server.url}\n")


def test_a_session_of_three_turns_has_one_clip_a_request(home: Path) -> None:
    with OpenAIServer(models=("a", "tiny")) as server:
        command = ("once", QUESTION, "--url", server.url, "--model", "tiny", "--session", "s", "--json")
        records = [json.loads(run(*command).stdout) for _ in range(3)]
        bodies = [request.body for request in server.chats]
    assert [record["turn"] for record in records] == [1, 2, 3]
    last = records[-1]
    assert (last["engine"], last["model"], last["model_passes"]) == ("remote", "tiny", 1)
    assert last["tokens"] == {"prompt": 395, "cached": 16, "reply": 8}
    assert [len(body["messages"]) for body in bodies] == [1, 3, 5]
    assert all(str(body).count("'input_audio', 'input_audio'") == 1 for body in bodies)
    assert PLACEHOLDER in bodies[-1]["messages"][0]["content"]
    assert bodies[-1]["messages"][1] == {"role": "assistant", "content": "".join(REPLY)}


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_stops_the_server_and_keeps_what_was_said(home: Path) -> None:
    with OpenAIServer() as server:
        server.always = server.hangs("The capital")
        with start("once", QUESTION, "--url", server.url, "--session", "s") as process:
            assert process.stdout
            assert process.stdout.read(1) == "T"
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=WAIT_SECONDS)
        assert server.left.wait(WAIT_SECONDS)
    assert process.returncode == 130
    with Store.open(home) as store:
        session = store.session("s")
    assert session
    assert [(turn.reply, turn.interrupted) for turn in session.turns] == [("The capital", True)]


def test_an_error_is_two_lines_and_exit_code_6(home: Path) -> None:
    with OpenAIServer() as server:
        server.always = refuses(401)
        done = run("once", QUESTION, "--url", server.url, "--model", "tiny")
    assert (done.returncode, done.stdout) == (6, "")
    lines = done.stderr.splitlines()
    assert lines[-2] == f"voxcli: {server.url} refuses access (HTTP 401)"
    assert lines[-1] == f"  set VOXCLI_API_KEY, or: keyring set voxcli 127.0.0.1:{server.port}"


def test_a_server_is_for_its_engine_and_the_engine_for_a_server(home: Path) -> None:
    for arguments, said in [
        (("--engine", "embedded", "--url", "http://localhost/v1"), "--url is for the remote engine"),
        ((), "the remote engine needs a server"),
        (("--url", "localhost:8000/v1"), "did you mean http://localhost:8000/v1?"),
    ]:
        done = run("once", QUESTION, *arguments)
        assert done.returncode == 2
        assert said in done.stderr


def test_a_key_on_an_open_line_is_told_of_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_API_KEY", "sk-canary")
    notices: list[str] = []
    factory.open_server(options(model="tiny", connect_seconds=0.1), "http://192.0.2.1:8000/v1", notices.append)
    assert "the key travels unencrypted to 192.0.2.1:8000" in notices[0]
    assert "sk-canary" not in str(notices)


def test_a_batch_spreads_over_servers_and_survives_one(home: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "items.jsonl", tmp_path / "results.jsonl"
    lines = [{"id": str(number), "audio": os.fspath(QUESTION)} for number in range(40)]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with OpenAIServer() as stays, OpenAIServer() as dies:
        count = 0

        def answer(exchange: Exchange) -> None:
            nonlocal count
            count += 1
            says("The")(exchange) if count < 5 else exchange.drop()

        dies.always = answer
        done = run("batch", manifest, "--out", out, "--url", stays.url, "--url", dies.url, "--concurrency", "3")
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(int(record["id"]) for record in records) == list(range(40))
    assert {record["reply"] for record in records} == {"The", "".join(REPLY)}
    assert stays.most_in_flight <= 3
