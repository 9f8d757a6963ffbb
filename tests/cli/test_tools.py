"""`voxcli tools`: through the whole command line, as users call it."""

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from voxcli.cli import app
from voxcli.cli.interface import completion

PROGRAM = "import json, sys; print(json.load(sys.stdin).get('city', 'nowhere'))"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "voxcli" / "config.toml"
    path.parent.mkdir()
    path.write_text(
        f"""
        [tools]
        builtin = ["time", "timer"]
        [tools.weather]
        description = "Tells the \\u001b[31mweather\\nof a city."
        command = ['{sys.executable}', "-c", "{PROGRAM}"]
        parameters.properties.city = {{type = "string"}}
        [tools.canary]
        command = ['{sys.executable}', "-c", "import pathlib; pathlib.Path('{tmp_path}/canary').touch()"]
        [tools.broken]
        command = ['{sys.executable}', "-c", "import sys; sys.exit('no \\u001b[2J luck')"]
        approval = "always"
        [tools.off]
        command = ["x"]
        approval = "never"
        """
    )
    return path


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(app, ["tools", *arguments], input=text)


def test_list_shows_where_each_comes_from_and_whether_it_asks() -> None:
    result = run("list")
    assert result.exit_code == 0
    rows = [line.split(maxsplit=3) for line in result.stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        ["time", "built-in", "always"],
        ["timer", "built-in", "always"],
        ["weather", "command", "ask"],
        ["canary", "command", "ask"],
        ["broken", "command", "always"],
        ["off", "command", "never"],
    ]
    assert rows[2][3] == "Tells the \\x1b[31mweather of a city."
    assert result.stderr == "tools.off can't be run: there is no program x\n"


def test_list_as_json_has_the_schemas() -> None:
    tools = json.loads(run("list", "--json").stdout)["tools"]
    assert tools[2] == {
        "name": "weather",
        "source": "command",
        "approval": "ask",
        "description": "Tells the \x1b[31mweather\nof a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }


def test_without_tools_list_says_how_to_get_some(config: Path) -> None:
    config.write_text("")
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "voxcli config set tools.builtin time,timer" in result.stderr
    assert json.loads(run("list", "--json").stdout) == {"tools": []}


def test_test_prints_what_the_model_would_be_told() -> None:
    result = run("test", "weather", "--args", '{"city": "Rome"}', "--yes")
    assert (result.exit_code, result.stdout) == (0, "Rome\n")
    assert run("test", "weather", "--yes").stdout == "nowhere\n"
    assert run("test", "weather", "--yes", "--args", "-", text='{"city": "Oslo"}').stdout == "Oslo\n"


def test_test_as_json_is_the_record() -> None:
    record = json.loads(run("test", "weather", "--args", '{"city": "Rome"}', "--yes", "--json").stdout)
    assert record.pop("seconds") > 0
    assert record == {
        "id": "test",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
        "status": "done",
        "text": "Rome",
        "asked": False,
        "allowed": True,
        "decided_by": "flag",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["weather", "--yes", "--args", "{"], 2, "weather malformed: The arguments can't be read"),
        (["weather", "--yes", "--args", '{"city": 3}'], 2, "weather malformed: The arguments don't fit: city: 3"),
        (["broken"], 1, "broken failed: exit code 1: no \\x1b[2J luck"),
        (["wether", "--yes"], 2, "there is no tool wether"),
        (["off", "--yes"], 2, "off is never to be run"),
        (["weather"], 2, "weather asks before it runs, and there is no terminal to ask on"),
    ],
)
def test_what_does_not_work_has_a_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    result = run("test", *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert f"voxcli: {message}" in result.stderr
    if "no tool" not in message and "never" not in message and "asks" not in message:
        as_json = run("test", *arguments, "--json")
        assert as_json.exit_code == code
        assert json.loads(as_json.stdout)["status"] in message


def test_nothing_runs_that_nobody_allowed(tmp_path: Path) -> None:
    assert run("test", "canary", text="y\n").exit_code == 2
    assert not (tmp_path / "canary").exists()
    assert run("test", "canary", "--yes").exit_code == 0
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(("answer", "code", "runs"), [(b"y\n", 0, True), (b"n\n", 1, False), (b"\n", 1, False)])
def test_a_terminal_is_asked(tmp_path: Path, answer: bytes, code: int, runs: bool) -> None:
    terminal, program_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "voxcli", "tools", "test", "canary"],
        stdin=program_side,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(terminal, answer)
    _, errors = process.communicate(timeout=120)
    os.close(terminal)
    os.close(program_side)
    assert b"Run canary with {}?" in errors
    assert process.returncode == code
    assert (tmp_path / "canary").exists() == runs


def test_ctrl_c_stops_a_tool(config: Path, tmp_path: Path, usual_signals: None) -> None:
    slow = f"import pathlib, time; pathlib.Path('{tmp_path}/began').touch(); time.sleep(1000)"
    config.write_text(f"""[tools.slow]\ncommand = ['{sys.executable}', "-c", "{slow}"]\ntimeout_seconds = 100\n""")
    process = subprocess.Popen(
        [sys.executable, "-m", "voxcli", "tools", "test", "slow", "--yes", "--json"], stdout=subprocess.PIPE
    )
    pause = threading.Event()
    while not (tmp_path / "began").exists():
        pause.wait(0.02)
    process.send_signal(2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output)["status"] == "interrupted"


def test_completion_offers_tools_and_never_fails(config: Path) -> None:
    config.write_text(config.read_text() + '[mcp.files]\ncommand = ["x"]\n')
    found = completion.tools("")
    assert all(meaning.isprintable() for _, meaning in found)
    assert [name for name, _ in found] == ["time", "timer", "weather", "canary", "broken", "off", "files_"]
    config.write_text("no TOML")
    assert completion.tools("") == []
    config.unlink()
    assert completion.tools("") == []


@pytest.mark.parametrize("missing", ["mcp", "anyio"])
def test_a_missing_extra_is_told_with_the_command_that_brings_it(config: Path, missing: str) -> None:
    config.write_text('[mcp.files]\ncommand = ["x"]\n')
    program = f"import sys; sys.modules[{missing!r}] = None; from voxcli.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "tools", "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "an MCP server needs packages that are not installed" in done.stderr
    assert "pip install 'voxcli[tools]'" in done.stderr
