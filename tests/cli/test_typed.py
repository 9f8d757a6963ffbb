"""`voxcli chat --text` and `once --prompt` as a program runs them: lines in, events or replies out, no audio device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.openai_server import REPLY, OpenAIServer

pytest.importorskip("openai")

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]
LINES = "What is the capital of France?\nAnd of Italy?\nAnd of Spain?\n"


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def run(server: OpenAIServer, tmp_path: Path) -> Run:
    """Return a function that runs voxcli with the server as engine, and with no sound server to connect to."""
    nowhere = {"PULSE_SERVER": f"unix:{tmp_path}/none", "PIPEWIRE_REMOTE": "none"}
    ours = {"VOXCLI_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path), "VOXCLI_ENGINE": "remote"}
    environment = {**os.environ, **nowhere, **ours, "VOXCLI_REMOTE__URL": server.url}

    def run(*arguments: str, typed: str | bytes) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "voxcli", *arguments]
        data = typed.encode() if isinstance(typed, str) else typed
        done = subprocess.run(
            command, check=False, input=data, capture_output=True, timeout=60, cwd=ROOT, env=environment
        )
        out, notes = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in notes
        return subprocess.CompletedProcess(command, done.returncode, out, notes)

    return run


def test_three_turns_go_in_and_json_comes_out(run: Run, server: OpenAIServer) -> None:
    done = run("chat", "--text", "--json", typed=LINES)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    turns = [event for event in events if event["event"] == "turn_ended"]
    assert [(turn["turn"], turn["user"]) for turn in turns] == list(enumerate(LINES.splitlines(), 1))
    assert {turn["reply"] for turn in turns} == {"".join(REPLY)}
    assert (events[-1]["event"], events[-1]["turns"]) == ("session_ended", 3)
    (ready,) = [event for event in events if event["event"] == "ready"]
    assert (ready["input_device"], ready["output_device"]) == (None, None)
    assert len(server.chats[-1].body["messages"]) >= 5  # the last turn has those before


def test_replies_go_to_stdout_one_a_line_and_a_failed_line_to_the_exit_code(run: Run) -> None:
    done = run("chat", "--text", "--no-speak", typed=b"One?\nRIFF\0\0\n/hlep\nTwo?\n/undo")
    assert (done.returncode, done.stdout) == (1, f"{''.join(REPLY)}\n" * 2)
    assert "no answer: a line that is not text was left out (voxcli once FILE answers a recording)" in done.stderr
    assert "no answer: there is no command /hlep (did you mean /help?)" in done.stderr
    assert "undone: turn 2, Two" in done.stderr


def test_instructions_change_and_a_conversation_is_saved(run: Run, server: OpenAIServer) -> None:
    done = run("chat", "--text", "--no-speak", typed="One?\n/instructions Be brief.\nTwo?\n/save pipe\nThree?\n")
    assert done.returncode == 0, done.stderr
    assert "Be brief." in str(server.chats[-1].body["messages"][0])
    shown = run("sessions", "show", "pipe", "--json", typed="")
    assert [turn["user"] for turn in json.loads(shown.stdout)["turns"]] == ["One?", "Two?", "Three?"]


def test_a_prompt_is_answered_without_a_recording(run: Run) -> None:
    piped = run("once", "--prompt", "-", "--json", typed="Where is Paris?\n")
    record = json.loads(piped.stdout)
    assert (record["user"], record["prompt"], record["audio"]) == ("Where is Paris?", None, None)
    assert record["reply"] == "".join(REPLY)
    refused = run("once", "--prompt", " ", typed="")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "voxcli: there is nothing to answer")


@pytest.mark.parametrize("flags", [("--push-to-talk", "toggle"), ("--record", "x"), ("--understood", "show")])
def test_flags_for_speech_are_refused(run: Run, flags: tuple[str, ...]) -> None:
    refused = run("chat", "--text", *flags, typed="")
    assert (refused.returncode, refused.stderr.splitlines()) == (
        2,
        [f"voxcli: {flags[0]} is for a spoken chat", f"  leave out --text or {flags[0]}"],
    )
