"""`voxcli sessions`: what people and programs read, and that nobody's text can do harm on the way."""

import json
import re
import stat
import subprocess
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from voxcli.cli.sessions import app
from voxcli.core.export import as_markdown, as_text
from voxcli.core.session import Turn
from voxcli.core.store import Store
from voxcli.core.stored import StoredSession, StoredTurn, TurnDetails
from voxcli.errors import ConfigError, StoreError, VoxError
from voxcli.printable import printable

PLACEHOLDER = "[User audio input - 35200 samples, 2.20s]"
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egpj.exe\r\n```\n# Turn 99\n</div><script>x</script>\n````\n~~~\n> you: yes"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def kitchen(home: Path) -> None:
    with Store.open(home) as store:
        details = TurnDetails("embedded", "smollm2", transcript="What is that?")
        store.append("kitchen", Turn(PLACEHOLDER, "A kettle.", prompt="Be exact."), details, instructions="Be short.")
        store.append("kitchen", Turn(PLACEHOLDER, "It boils", interrupted=True), details)


def tell(home: Path, text: str, name: str = "odd") -> None:
    with Store.open(home) as store:
        store.append(name, Turn(text, text, prompt=text), TurnDetails(text, text, text), instructions=text)


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=answer)


def refused(*arguments: str) -> VoxError:
    error = run(*arguments).exception
    assert isinstance(error, VoxError)
    return error


def is_safe(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"} for char in text)


def test_an_empty_list_says_so_beside_the_output() -> None:
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no sessions yet" in result.stderr
    assert json.loads(run("list", "--json").stdout) == {"sessions": []}


@pytest.mark.usefixtures("kitchen")
def test_list_gives_names_and_counts(home: Path) -> None:
    tell(home, "hello", name="attic")
    lines = run("list").stdout.splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines[1:]] == [("1", "attic"), ("2", "kitchen")]
    listed = json.loads(run("list", "--json").stdout)["sessions"]
    assert [(each["name"], each["turns"]) for each in listed] == [("attic", 1), ("kitchen", 2)]
    assert listed[1]["started"] < listed[1]["last"]


@pytest.mark.usefixtures("kitchen")
def test_show_gives_the_conversation() -> None:
    text = run("show", "kitchen").stdout
    for part in ("Be short.", PLACEHOLDER, "Be exact.", "What is that?", "reply: A kettle.", "interrupted: It boils"):
        assert part in text


@pytest.mark.usefixtures("kitchen")
def test_json_has_all_that_is_kept() -> None:
    shown = json.loads(run("show", "kitchen", "--json").stdout)
    assert shown == json.loads(run("export", "kitchen", "--format", "json").stdout)
    assert (shown["name"], shown["instructions"]) == ("kitchen", "Be short.")
    assert shown["turns"][0] | {"created_at": ""} == {
        "number": 1,
        "created_at": "",
        "user": PLACEHOLDER,
        "prompt": "Be exact.",
        "transcript": "What is that?",
        "reply": "A kettle.",
        "interrupted": False,
        "engine": "embedded",
        "model": "smollm2",
    }
    assert shown["turns"][1]["interrupted"] is True


def test_hostile_text_reaches_no_terminal(home: Path) -> None:
    tell(home, HOSTILE)
    for arguments in (["list"], ["show", "odd"], ["show", "odd", "--json"], ["export", "odd"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert is_safe(result.stdout)
        assert "\u202e" not in result.stdout
    assert json.loads(run("show", "odd", "--json").stdout)["turns"][0]["reply"] == HOSTILE


def test_hostile_text_can_not_pose_as_another_line(home: Path) -> None:
    tell(home, "a\nreply: b\n  reply: c\n2  2026-01-01 00:00")
    lines = run("show", "odd").stdout.splitlines()
    assert sum(bool(re.match(r" {0,2}reply:", line)) for line in lines) == 1
    assert [line for line in lines if line.startswith("2")] == []


@given(st.lists(st.sampled_from([*"`~#> \n\n\t\r\x1ba<\u2028", "```", "\n````\n", "~~~"]), max_size=20).map("".join))
@example(HOSTILE)
def test_markdown_keeps_its_structure_whatever_was_said(text: str) -> None:
    turn = Turn(text, text, prompt=text)
    told = StoredTurn(1, datetime.now(UTC), turn, TurnDetails(text, text, text))
    stored = StoredSession(text, text, (told,))
    outside = [line for line in lines_outside_fences(as_markdown(stored)) if line]
    assert is_safe(as_markdown(stored))
    assert is_safe(as_text(stored))
    span = re.fullmatch(r"# Session (`+)(?!`)(.*)(?<!`)\1", outside[0])
    assert span
    assert span[1] not in re.findall("`+", span[2])
    assert [line for line in outside if line.startswith("#")][1:] == (["## Instructions"] if text else []) + [
        "## Turn 1"
    ]
    assert outside[-1] == "Reply:"


def lines_outside_fences(markdown: str) -> list[str]:
    """Return the lines that a CommonMark reader sees as structure: those in no fenced block."""
    outside, fence = [], ""
    for line in re.split(r"\r\n|\r|\n", markdown):
        opened = re.match(r" {0,3}(`{3,}|~{3,})[^`]*$", line)
        if fence:
            closed = re.fullmatch(r" {0,3}(`{3,})[ \t]*", line)
            fence = "" if closed and len(closed[1]) >= len(fence) else fence
        elif opened:
            fence = opened[1]
        else:
            outside.append(line)
    assert not fence
    return outside


def test_scripts_and_emoji_are_not_taken_for_control_characters() -> None:
    text = "Grüße\u00a0日本語\u3000👩\u200d🚀 ❤️"
    assert printable(text) == text
    assert printable("a\nb\x7f") == r"a\nb\x7f"


@pytest.mark.usefixtures("kitchen")
def test_export_writes_a_file_for_its_owner_and_none_twice(tmp_path: Path) -> None:
    file = tmp_path / "kitchen.md"
    assert run("export", "kitchen", "--output", str(file)).stdout == ""
    assert file.read_text("utf-8") == run("export", "kitchen").stdout == run("export", "kitchen", "-o", "-").stdout
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("mine", "utf-8")
    file.chmod(0o644)
    assert "--force" in refused("export", "kitchen", "--output", str(file)).hint
    assert file.read_text("utf-8") == "mine"
    assert run("export", "kitchen", "--output", str(file), "--format", "json", "--force").exit_code == 0
    assert json.loads(file.read_text("utf-8"))["name"] == "kitchen"
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.usefixtures("kitchen")
def test_a_place_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (["--output", str(tmp_path / "file" / "such")], ["--output", str(tmp_path), "--force"]):
        error = refused("export", "kitchen", *arguments)
        assert isinstance(error, ConfigError)
        assert error.message.startswith("can't write ")


@pytest.mark.usefixtures("kitchen")
def test_delete_asks_and_takes_no_for_an_answer() -> None:
    result = run("delete", "kitchen", answer="n\n")
    assert result.exit_code == 1
    assert "2 turns" in result.stderr
    assert run("show", "kitchen").exit_code == 0
    assert run("delete", "kitchen", answer="").exit_code == 1
    assert run("delete", "kitchen", answer="y\n").exit_code == 0
    assert "sessions list" in refused("show", "kitchen").hint


@pytest.mark.usefixtures("kitchen")
def test_delete_with_yes_does_not_ask() -> None:
    assert run("delete", "kitchen", "--yes").exit_code == 0
    assert json.loads(run("list", "--json").stdout) == {"sessions": []}


@pytest.mark.usefixtures("kitchen")
@pytest.mark.parametrize("command", ["show", "export", "delete"])
def test_an_unknown_name_is_an_error_that_names_the_nearest(command: str) -> None:
    error = refused(command, "kitchn")
    assert isinstance(error, ConfigError)
    assert "'kitchen'" in error.hint


@pytest.mark.parametrize("name", ["", "a/b", "\x1b[2J", "x" * 101])
def test_a_name_that_can_not_be_is_an_error(name: str) -> None:
    assert isinstance(refused("show", name), ConfigError)


def test_a_damaged_store_is_an_error(home: Path) -> None:
    home.mkdir()
    (home / "sessions.db").write_text("no database at all")
    assert isinstance(refused("list"), StoreError)


def test_nothing_heavy_is_imported() -> None:
    code = """
import sys, voxcli.cli.sessions
assert not {"sqlite3", "numpy", "pydantic", "torch"} & set(sys.modules)
import voxcli.core.store, voxcli.core.export
assert not {"numpy", "pydantic", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
