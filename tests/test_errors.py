"""Errors as people and scripts meet them: one line, a hint, an exit code, whatever else goes wrong."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from voxcli import cli, errors
from voxcli.cli.interface.common import INTERRUPTED, VerboseFlag, note, report
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store
from voxcli.errors import (
    AudioDeviceError,
    AudioInputError,
    ConfigError,
    ModelError,
    RemoteError,
    SpeechError,
    StoreError,
    VoxError,
    missing_extra,
)

EXIT_CODES = {
    VoxError: 1,
    StoreError: 1,
    SpeechError: 1,
    ConfigError: 2,
    AudioInputError: 3,
    ModelError: 4,
    AudioDeviceError: 5,
    RemoteError: 6,
}
HOSTILE = "\x1b[2J\r\n\u202e\x9b"
FULL = Path("/dev/full")
ROOT = Path(__file__).parent.parent
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def run(action: Callable[[], object], *flags: str) -> Result:
    """Run a command that does `action` under the root of the real command line."""
    app = typer.Typer(cls=cli._Root)

    @app.callback()
    def root(_verbose: VerboseFlag = False) -> None:
        pass

    @app.command()
    def act() -> None:
        action()

    return CliRunner().invoke(app, [*flags, "act"])


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def voxcli(*arguments: str, unbuffered: bool = False, **streams: int) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    command = [sys.executable, "-m", "voxcli", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, env=environment, text=True, check=False, cwd=ROOT, **streams)  # type: ignore[call-overload,no-any-return]


def test_every_error_has_its_exit_code_and_a_name_of_its_own() -> None:
    assert {kind: kind.exit_code for kind in EXIT_CODES} == EXIT_CODES
    assert set(VoxError.__subclasses__()) == set(EXIT_CODES) - {VoxError}
    assert len({kind.code for kind in EXIT_CODES}) == len(EXIT_CODES)


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    drawn = re.findall(r"^[ ├└─]*(\w+Error) +(\d)", errors.__doc__ or "", re.MULTILINE)
    assert dict(drawn) == {kind.__name__: str(code) for kind, code in EXIT_CODES.items()}


def test_exit_codes_are_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \|", text.partition("## Exit codes")[2], re.MULTILINE)
    assert {int(code) for code in table} == {0, INTERRUPTED, *EXIT_CODES.values()}


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_error_is_a_line_a_hint_and_an_exit_code(kind: type[VoxError]) -> None:
    result = run(raising(kind("it broke", hint="mend it")))
    assert result.exit_code == EXIT_CODES[kind]
    assert (result.stdout, result.stderr) == ("", "voxcli: it broke\n  mend it\n")


def test_an_error_without_a_hint_is_one_line() -> None:
    assert run(raising(VoxError("it broke"))).stderr == "voxcli: it broke\n"


def test_what_is_missing_comes_with_the_command_that_brings_it() -> None:
    error = missing_extra(SpeechError, "piper", "piper")
    assert isinstance(error, SpeechError)
    assert error.hint == "pip install 'voxcli[piper]'"


def test_a_bug_is_two_lines_too() -> None:
    result = run(raising(ZeroDivisionError("by\nzero")))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        r"voxcli: unexpected ZeroDivisionError: by\nzero",
        "  please report it with what --verbose shows",
    ]


@pytest.mark.parametrize("error", [VoxError(HOSTILE, hint=HOSTILE), ValueError(HOSTILE)])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_error_can_drive_the_terminal(error: Exception, verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    report(error, verbose=verbose)
    out, err = capsys.readouterr()
    assert out == ""
    assert all(char.isprintable() for line in err.split("\n") for char in line)
    assert verbose or err.count("\n") == 2


@pytest.mark.parametrize("error", [ModelError("it broke"), ZeroDivisionError("it broke")])
def test_only_verbose_shows_where_an_error_came_from(error: Exception) -> None:
    assert "Traceback" not in run(raising(error)).stderr
    lines = run(raising(error), "--verbose").stderr.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert any("raise error" in line for line in lines)
    assert any(line.startswith("voxcli: ") and line.endswith("it broke") for line in lines)


def test_ctrl_c_ends_with_130_and_no_word() -> None:
    result = run(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_at_a_question_ends_with_130(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.append("kitchen", Turn("a", "b"))
    with subprocess.Popen(
        [sys.executable, "-m", "voxcli", "sessions", "delete", "kitchen"],
        env={**os.environ, "VOXCLI_HOME": str(tmp_path)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as asked:
        assert asked.stderr
        while asked.stderr.read(1) != b"?":
            pass
        asked.send_signal(signal.SIGINT)
        assert asked.wait(30) == 130


def test_exits_and_aborts_stay_what_they_are() -> None:
    assert run(raising(typer.Exit(7))).exit_code == 7
    aborted = run(raising(typer.Abort()))
    assert aborted.exit_code == 1
    assert "unexpected" not in aborted.stderr


def test_usage_errors_end_with_2() -> None:
    assert CliRunner().invoke(cli.app, ["once"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_an_error_of_the_system_that_has_to_do_with_no_output_is_a_bug(error: OSError) -> None:
    result = run(raising(error))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"voxcli: unexpected {type(error).__name__}")


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_who_has_enough_is_no_failure(unbuffered: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = voxcli("config", "show", stdout=writing, unbuffered=unbuffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@needs_full
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_that_can_not_be_written_is_a_failure(unbuffered: bool) -> None:
    with FULL.open("w") as full:
        done = voxcli("config", "show", stdout=full.fileno(), unbuffered=unbuffered)
    assert done.returncode == 1
    assert done.stderr.startswith("voxcli: can't write the output: No space left")
    assert done.stderr.count("\n") == 2


@needs_full
def test_an_exit_code_does_not_depend_on_who_reads_the_error() -> None:
    with FULL.open("w") as full:
        assert voxcli("once", "missing.wav", stderr=full.fileno()).returncode == 3


def test_streams_may_be_closed_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["voxcli", "once", "missing.wav"])
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit, match="3"):
        cli.main()
    for stream in (sys.stdout, sys.stderr):
        with stream:
            print("to nowhere", file=stream)


def test_a_note_that_nobody_can_read_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        note("hello")
        note("again")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "dim"), [("", True), ("1", False)])
def test_notes_are_dim_unless_that_is_not_wanted(no_color: str, dim: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    note(f"loading{HOSTILE}")
    assert ("\x1b[2m" in terminal.getvalue()) is dim
    assert r"loading\x1b[2J\r\n\u202e\x9b" in terminal.getvalue()
