"""Commands as tools, run for real: their input, environment, limits, and that nothing of them stays."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from voxcli.core.tools import ToolCall
from voxcli.errors import VoxError
from voxcli.tools.arguments import ArgumentSchema
from voxcli.tools.command import CommandTool
from voxcli.tools.process import clean_environment
from voxcli.tools.toolbox import Toolbox

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and shells of POSIX")
ANYTHING = ArgumentSchema({"type": "object", "additionalProperties": True}, trusted=True)


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def tool(
    command: Sequence[str], *, seconds: float = 60.0, further: Sequence[str] = (), approval: Any = "always"
) -> CommandTool:
    environ = clean_environment(further)
    return CommandTool("it", "Does it.", ANYTHING, command, environ, approval=approval, timeout_seconds=seconds)


def result(command: Sequence[str], arguments: dict[str, Any] | None = None, **options: Any) -> str:
    return tool(command, **options).call(arguments or {}, threading.Event())


def failure(command: Sequence[str], **options: Any) -> VoxError:
    with pytest.raises(VoxError) as caught:
        result(command, **options)
    return caught.value


def interrupted_by(path: Path, interrupt: threading.Event) -> threading.Thread:
    """Set an interrupt as soon as a program has written a file."""

    def watch() -> None:
        while not (path.exists() and path.read_text()):
            interrupt.wait(0.01)
        interrupt.set()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_arguments_come_as_a_line_of_json() -> None:
    program = "import json, sys; line = sys.stdin.readline(); print(json.loads(line)['city'], sys.stdin.read() == '')"
    assert result(python(program), {"city": 'Röm"; rm -rf /'}) == 'Röm"; rm -rf / True\n'


def test_no_shell_reads_the_command() -> None:
    odd = ["$HOME", "; echo x", "`id`", "*", "a b", ""]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(result(python(program, *odd))) == odd


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECRET": "s", "TOKEN": "t", "LANG": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    seen = json.loads(result(python(program), further=["TOKEN", "UNITS=a=b", "MISSING"]))
    assert {name: seen.get(name) for name in ("TOKEN", "UNITS", "LANG", "HOME", "PATH")} == {
        "TOKEN": "t",
        "UNITS": "a=b",
        "LANG": "C.UTF-8",
        "HOME": os.environ["HOME"],
        "PATH": os.environ["PATH"],
    }
    assert seen.keys() - {"LC_CTYPE"} == {"TOKEN", "UNITS", "LANG", "HOME", "PATH"}  # Python sets LC_CTYPE itself


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit(3)", "exit code 3"),
        (
            "import sys; sys.exit('no such \\x1b[31mcity\\nsecond line')",
            "exit code 1: no such \\x1b[31mcity",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
    ],
)
@posix_only
def test_an_exit_code_is_a_failure(program: str, said: str) -> None:
    assert failure(python(program)).message == said


def test_standard_error_is_logged_and_no_result(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "voxcli"):
        assert result(python("import sys; print('out'); print('odd\\x1b[2J', file=sys.stderr)")) == "out\n"
    assert "tool it: stderr: odd\\x1b[2J" in caplog.messages


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "~nobody-at-all/x", "", "a\nb"])
def test_a_program_that_is_missing_is_told(program: str) -> None:
    error = failure([program])
    assert "there is no program" in error.message
    assert error.hint


@posix_only
def test_a_program_that_can_not_be_run_is_told(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.write_text("echo hello\n")
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    assert failure([str(plain)]).message == f"the program {plain} can't be run"
    assert "can't be run" in failure([str(broken)]).message
    assert "there is no program" in failure([str(tmp_path)]).message


@posix_only
def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "mine").chmod(0o755)
    assert result(["~/mine"]).strip() == str(tmp_path.resolve())


def test_output_is_text_whatever_it_is() -> None:
    assert result(python("import sys; sys.stdout.buffer.write(b'a\\xff\\x00b')")) == "a\ufffd\x00b"


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_input_that_nobody_reads_is_no_failure(size: int) -> None:
    assert result(python("print('done')"), {"text": "x" * size}).strip() == "done"


# --- Limits --------------------------------------------------------------------------------------


@posix_only
def test_a_program_that_writes_without_end_is_stopped() -> None:
    assert "wrote more than 4 MB" in failure(["yes"]).message


def test_errors_without_end_are_dropped() -> None:
    program = "import sys; [sys.stderr.write('x' * 99 + '\\n') for _ in range(100_000)]; print('done')"
    assert result(python(program)).strip() == "done"


def test_a_program_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        result(python("import time; time.sleep(1000)"), seconds=0.2)


@posix_only
@pytest.mark.parametrize("ends_by", ["interrupt", "time"])
def test_what_ignores_signals_is_stopped_with_its_children(tmp_path: Path, ends_by: str) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "pids = f'{os.getpid()} {child}' if child else ''\n"
        "if pids: open(sys.argv[1], 'w').write(pids)\n"
        "time.sleep(1000)\n"
    )
    pids, interrupt = tmp_path / "pids", threading.Event()
    started = tool(python(program, str(pids)), seconds=60 if ends_by == "interrupt" else 4)
    watch = interrupted_by(pids, interrupt) if ends_by == "interrupt" else None
    with pytest.raises(VoxError if ends_by == "interrupt" else TimeoutError):
        started.call({}, interrupt)
    if watch:
        watch.join()
    parent, child = map(int, pids.read_text().split())
    assert not is_running(parent)
    assert not is_running(child)


@posix_only
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_a_program_is_stopped_when_voxcli_is_killed(tmp_path: Path, number: int) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(1000)\n"
    )
    runs_it = (
        "import sys, threading\n"
        "from voxcli.tools.process import clean_environment, run_program\n"
        "run_program(sys.argv[1:], '', clean_environment(()), timeout_seconds=60, interrupt=threading.Event(), what='')"
    )
    pid = tmp_path / "pid"
    with subprocess.Popen(python(runs_it, *python(program, str(pid)))) as ours:
        wait_for(lambda: pid.exists() and bool(pid.read_text()))
        ours.send_signal(number)
    wait_for(lambda: not is_running(int(pid.read_text())))


@posix_only
def test_a_child_that_keeps_the_pipe_open_is_not_waited_for(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(1000)\n"
        "open(sys.argv[1], 'w').write(str(child))\n"
        "print('started', flush=True)\n"
    )
    assert result(python(program, str(tmp_path / "child"))) == "started\n"
    child = int((tmp_path / "child").read_text())
    assert is_running(child), "what a command starts and leaves may go on"
    os.kill(child, 9)


# --- In a toolbox --------------------------------------------------------------------------------


class Source:
    def __init__(self, *tools: CommandTool) -> None:
        self.tools = tools


@pytest.mark.parametrize("approval", ["ask", "never"])
def test_nothing_runs_that_was_not_allowed(tmp_path: Path, approval: str) -> None:
    canary = tmp_path / "canary"
    command = python("import pathlib, sys; pathlib.Path(sys.argv[1]).touch()", str(canary))
    box = Toolbox([Source(tool(command, approval=approval))], lambda _call, _interrupt: False)
    calls = ['{"city": "Rome"}', "{}", "", "{", '{"city": "; touch canary"}', '{"approval": "always"}']
    statuses = {box.run(ToolCall("1", "it", arguments), threading.Event()).status for arguments in calls}
    assert statuses == ({"refused", "malformed"} if approval == "ask" else {"malformed"})
    assert not canary.exists()
    Toolbox([Source(tool(command))], lambda _call, _interrupt: False).run(ToolCall("1", "it", "{}"), threading.Event())
    assert canary.exists(), "the canary would have been there"


def test_a_stopped_command_has_its_status() -> None:
    box = Toolbox([Source(tool(python("import time; time.sleep(1000)"), seconds=0.2))], lambda _call, _interrupt: False)
    timed_out = box.run(ToolCall("1", "it", "{}"), threading.Event())
    assert (timed_out.status, timed_out.text) == (
        "timed-out",
        "The call took too long and was stopped. Its limit is 0.2 s.",
    )
    assert timed_out.seconds > 0
