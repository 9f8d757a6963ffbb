"""Help pages, usage errors, completion and the man page: one form for all commands."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from scripts.man_page import PAGE, man_page
from voxcli.chat.keyboard.bindings import OTHER_KEYS
from voxcli.cli import app
from voxcli.cli.interface import completion
from voxcli.cli.interface.help import SUBJECTS, help_page, subcommands
from voxcli.config.schema import allowed, fields
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store

ROOT = Path(__file__).parent.parent.parent


def every_command() -> Iterator[tuple[Any, typer.Context]]:
    command = get_command(app)
    todo = [(command, typer.Context(command, info_name="voxcli", help_option_names=["-h", "--help"]))]
    while todo:
        command, context = todo.pop()
        yield command, context
        todo += subcommands(command, context)


COMMANDS = {context.command_path: (command, context) for command, context in every_command()}


def refused(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, list(arguments), prog_name="voxcli")
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize("path", COMMANDS)
def test_a_page_has_examples_that_work_and_no_column_of_types(path: str) -> None:
    page = help_page(*COMMANDS[path])
    assert len(page.examples) >= 2
    for line, _ in page.examples:
        parse_each(line)
    text = page.text(80)
    assert "-h, --help" in text
    assert not re.search(r"<(bool|str|int|float|path)>", text)
    flags = [label for section in page.sections for label, _ in section.rows if label.startswith("-")]
    assert len(flags) == len(set(flags))
    assert page.text(200).count("\n") <= text.count("\n")


def parse_each(line: str) -> None:
    """Check the commands of a shell line against the flags and arguments that voxcli has."""
    for part in re.split(r"\| ", line):
        words = [word for word in shlex.split(part.replace("$(", "").replace(")", "")) if "=" not in word]
        if words[:1] == ["voxcli"]:
            command, arguments = get_command(app), words[1:]
            context = typer.Context(command, info_name="voxcli")
            while arguments and (found := getattr(command, "commands", {}).get(arguments[0])):
                command, context = found, typer.Context(found, info_name=arguments.pop(0), parent=context)
            if "--version" not in arguments:
                command.make_parser(context).parse_args(arguments)


def test_flags_stand_under_their_subject_and_every_subject_is_used() -> None:
    titles = {section.title for command in COMMANDS.values() for section in help_page(*command).sections}
    assert set(SUBJECTS) <= titles
    chat = {section.title: dict(section.rows) for section in help_page(*COMMANDS["voxcli chat"]).sections}
    assert "--voice NAME" in chat["Voice and devices"]
    assert OTHER_KEYS.items() <= chat["Keys"].items()


@pytest.mark.parametrize(
    "arguments", [["-h"], ["chat", "-h"], ["sessions", "show", "-h"], ["help", "sessions", "show"]]
)
def test_help_comes_however_one_asks(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments, prog_name="voxcli")
    path = " ".join(["voxcli", *(word for word in arguments if word not in ("-h", "help"))])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: {path} [FLAGS]")


def test_version_is_a_command_and_a_flag() -> None:
    texts = {CliRunner().invoke(app, [word]).stdout for word in ("version", "--version")}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("chat --vioce x", "there is no flag --vioce", "did you mean --voice?"),
        ("chat -x", "there is no flag -x", "voxcli chat -h lists the flags"),
        ("chta", "there is no command voxcli chta", "did you mean voxcli chat?"),
        ("sessions shw", "there is no command voxcli sessions shw", "did you mean voxcli sessions show?"),
        ("help xyz", "there is no command voxcli xyz", "voxcli -h lists the commands"),
        ("batch x", "--out is missing", "usage: voxcli batch [FLAGS] --out FILE.jsonl INPUT..."),
        ("models pull", "MODEL is missing", "usage: voxcli models pull [FLAGS] MODEL"),
        ("chat --voice", "--voice needs a value", "voxcli -h lists the flags"),
        ("chat --json=3", "--json takes no value", "voxcli -h lists the flags"),
        ("chat a b", "voxcli chat does not take a b", "voxcli chat -h lists the flags"),
        ("sessions export s --format pdf", "--format is 'pdf' (command line), but must be one of md, html, json", ""),
        ("chat --max-turns x", "--max-turns is 'x' (command line), but must be a whole number, at least 1", ""),
        ("chat --temperature x", "--temperature is 'x' (command line), but must be auto, or a number from 0 to 2", ""),
        ("once", "there is nothing to answer", 'name a recording, or ask: voxcli once --prompt "TEXT"'),
    ],
)
def test_every_mistake_has_one_line_and_a_hint(arguments: str, message: str, hint: str) -> None:
    first, second = refused(*arguments.split())
    assert first == f"voxcli: {message}"
    assert second == f"  {hint}" if hint else second.endswith("-h lists the flags, after any command") or "-h" in second


def test_a_hostile_name_cannot_drive_the_terminal() -> None:
    for arguments in (["\x1b[2J"], ["chat", "--\x1b[2J"], ["chat", "\x1b[2J"], ["help", "\x1b[2J"]):
        assert "\x1b" not in "".join(refused(*arguments))


def test_completion_offers_what_the_settings_allow() -> None:
    named = [value for value, _ in completion.engines("")]
    assert allowed(fields()["engine"]) == "one of " + ", ".join(named)
    assert {value for value, _ in completion.checkpoints("")} == {"mini", "small"}
    assert {"auto", "cuda", "mps", "cpu"} <= {value for value, _ in completion.compute_devices("")}


def test_completion_of_voices_knows_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "en_US-joe-medium.onnx").touch()
    assert {"auto", "neural", "pyttsx3", "openai:", "piper:en_US-joe-medium"} <= {
        value for value, _ in completion.voices("")
    }


def test_completion_of_sessions_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    assert completion.sessions("") == []
    with Store.open(tmp_path) as store:
        store.append("kitchen", Turn("a", "b"))
        store.append("\u202ehostile", Turn("a", "b"))
        assert [name for name, _ in completion.sessions("")] == ["kitchen"]
    (tmp_path / "sessions.db").write_bytes(b"no database" * 1000)
    assert completion.sessions("") == []
    monkeypatch.setenv("VOXCLI_HOME", "~no-such-user/x")
    assert completion.sessions("") == []


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys; from voxcli.cli.interface import completion as c\n"
        "c.engines(''), c.compute_devices(''), c.sessions(''), c.voices(''), c.models('')\n"
        "print({'torch', 'transformers', 'numpy', 'sounddevice', 'pydantic', 'pyttsx3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_the_man_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == man_page(), "python -m scripts.man_page"


def test_the_man_page_has_every_command_and_no_stray_request() -> None:
    text = man_page()
    for path in COMMANDS:
        assert path.replace("-", "\\-") in text
    assert {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))} <= {
        *(".TH", ".SH", ".SS", ".PP", ".TP"),
    }
