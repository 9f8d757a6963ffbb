"""`voxcli sessions`: what people and programs read, and that nobody's text can do harm on the way."""

import json
import re
import stat
import subprocess
import sys
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner, Result

from voxcli.cli import app as voxcli
from voxcli.cli.sessions import app
from voxcli.core.session import Turn
from voxcli.core.storage.export import as_markdown, as_text
from voxcli.core.storage.html_page import as_html
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import StageTimes, StoredSession, StoredTurn, TurnDetails
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
        timed = replace(details, latency=StageTimes(600.0, 700.0))
        store.append("kitchen", Turn(PLACEHOLDER, "A kettle.", prompt="Be exact."), timed, instructions="Be short.")
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
    assert lines[0].split() == ["TURNS", "LENGTH", "LAST", "NAME", "FIRST", "WORDS"]
    rows = [re.fullmatch(r" +(\d+) +0 s  [-0-9]{10} [:0-9]{5}  (\w+) +(.+)", line) for line in lines[1:]]
    assert [row and row.groups() for row in rows] == [("1", "attic", "hello"), ("2", "kitchen", "What is that")]
    listed = json.loads(run("list", "--json").stdout)["sessions"]
    assert [(each["name"], each["turns"]) for each in listed] == [("attic", 1), ("kitchen", 2)]
    assert listed[1]["started"] < listed[1]["last"]


@pytest.mark.usefixtures("kitchen")
def test_show_gives_the_conversation() -> None:
    text = run("show", "kitchen").stdout
    for part in ("Be short.", "typed: Be exact.", "you: What is that?", "reply: A kettle.", "interrupted: It boils"):
        assert part in text
    assert PLACEHOLDER not in text


@pytest.mark.usefixtures("kitchen")
def test_show_gives_the_newest_turns_of_the_session_used_last(home: Path) -> None:
    tell(home, "hello", name="attic")
    assert "reply: hello" in run("show", "--last").stdout
    text = run("show", "kitchen", "-n", "1").stdout
    assert "It boils" in text
    assert "A kettle." not in text
    assert [each["number"] for each in json.loads(run("show", "kitchen", "-n", "5", "--json").stdout)["turns"]] == [
        1,
        2,
    ]
    for arguments in ([], ["kitchen", "--last"]):
        assert isinstance(refused("show", *arguments), ConfigError)


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
        "understood": None,
        "reply": "A kettle.",
        "interrupted": False,
        "tools": [],
        "engine": "embedded",
        "model": "smollm2",
        "latency": {"endpoint_ms": 600.0, "first_token_ms": 700.0, "first_audio_ms": None},
    }
    assert shown["turns"][1]["latency"] is None
    assert shown["turns"][1]["interrupted"] is True


def test_hostile_text_reaches_no_terminal(home: Path) -> None:
    tell(home, HOSTILE)
    for arguments in (["list"], ["show", "odd"], ["show", "odd", "--json"], ["export", "odd"], ["search", "owned"]):
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


markup = st.lists(
    st.sampled_from(
        [*'`~#>*_-+=|:.)1&[]()!<$ \n\n\t\r\x1ba\u2028\\"', "```", "\n````\n", "    x", "\n---\n", "&lt;", "</p><b>"]
    ),
    max_size=20,
).map("".join)


def session_of(text: str) -> StoredSession:
    turn = Turn(text, text, prompt=text)
    return StoredSession(text, text, (StoredTurn(1, datetime.now(UTC), turn, TurnDetails(text, text, text)),))


@given(markup)
@example(HOSTILE)
def test_markdown_keeps_its_structure_whatever_was_said(text: str) -> None:
    stored = session_of(text)
    document = as_markdown(stored)
    assert is_safe(document)
    assert is_safe(as_text(stored))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(document)
    outer = [token for token in tokens if token.level == 0 and token.nesting >= 0]
    has_instructions = [["paragraph_open"], ["blockquote_open"]] * bool(text)
    kinds = ["heading_open", "paragraph_open", *chain(*has_instructions), *["paragraph_open", "blockquote_open"] * 2]
    assert [token.type for token in outer] == kinds
    assert {token.type for token in tokens if token.level} <= {"inline", "paragraph_open", "paragraph_close"}
    inline = {child.type for token in tokens for child in token.children or [] if not is_label(token)}
    assert inline <= {"text", "hardbreak", "text_special"}


def is_label(token: Token) -> bool:
    return token.level == 1 and token.content.startswith("**")


@given(markup.filter(lambda text: text.strip() != ""))
def test_markdown_gives_what_was_said_word_for_word(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(as_markdown(session_of(text)))
    last = max(index for index, token in enumerate(tokens) if token.type == "blockquote_open")
    quoted = "".join(
        "\n" if child.type == "hardbreak" else child.content
        for token in tokens[last:]
        for child in token.children or []
    )
    assert "".join(quoted.split()) == "".join(printable(text, keep="\n\t").split())


@given(markup)
@example(HOSTILE)
def test_a_page_keeps_its_structure_whatever_was_said(text: str) -> None:
    page = as_html(session_of(text), {1: b"RIFF"})
    plain = as_html(session_of("words" if text else ""), {1: b"RIFF"})
    assert is_safe(page)
    assert tags(page) == tags(plain)


def tags(page: str) -> list[str]:
    """Return the tags and attributes of a page, as a browser's parser finds them."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(f"{tag} {attrs}")

    Reader().feed(page)
    return found


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
def test_a_page_is_one_file_with_text_latency_and_recordings(home: Path, tmp_path: Path) -> None:
    (tmp_path / "recorded").mkdir()
    record = {"turn": 1, "user": PLACEHOLDER, "reply": "A kettle."}
    for name, each in (("1", record), ("2", record | {"turn": 2}), ("3", [])):
        (tmp_path / "recorded" / f"turn-000{name}.json").write_text(json.dumps(each))
        (tmp_path / "recorded" / f"turn-000{name}.wav").write_bytes(b"RIFF of " + name.encode())
    page = run("export", "kitchen", "--format", "html", "--recordings", str(tmp_path / "recorded")).stdout
    for part in ("What is that?", "Be exact.", "A kettle.", "It boils", "(interrupted)", "<svg", "0.7 s"):
        assert part in page
    assert re.findall(r'src="([^"]*)"', page) == ["data:audio/wav;base64,UklGRiBvZiAx"], "that of turn 1 alone"
    assert not re.search(r"https?:|url\(|@import|href", page)
    tell(home, "hello")
    assert "<svg" not in run("export", "odd", "--format", "html").stdout
    nothing = run("export", "kitchen", "--format", "html", "--recordings", str(tmp_path))
    assert "no turn of this session was recorded" in nothing.stderr
    assert isinstance(refused("export", "kitchen", "--recordings", str(tmp_path)), ConfigError)
    missing = refused("export", "kitchen", "--format", "html", "--recordings", str(tmp_path / "missing"))
    assert isinstance(missing, ConfigError)


@pytest.mark.usefixtures("kitchen")
def test_search_shows_where_the_words_are(home: Path) -> None:
    tell(home, "before " * 30 + "the kettle boils" + " after" * 30, name="attic")
    text = run("search", "kettle", "boils").stdout
    assert text.startswith("attic, turn 1  ")
    assert "the kettle boils" in text
    assert "…" in text
    assert [hit["session"] for hit in json.loads(run("search", "KETTLE", "--json").stdout)["hits"]] == [
        "attic",
        "kitchen",
    ]
    first = run("search", "kettle", "-n", "1")
    assert "kitchen" not in first.stdout
    assert "1 more" in first.stderr
    nothing = run("search", '"', "NEAR(")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no turn" in nothing.stderr


@pytest.mark.usefixtures("kitchen")
def test_a_session_is_renamed_forked_and_undone(home: Path) -> None:
    tell(home, "hello", name="attic")
    assert isinstance(refused("rename", "kitchen", "attic"), ConfigError)
    assert run("rename", "kitchen", "cellar").exit_code == 0
    assert run("fork", "cellar", "--at", "1").stdout == "cellar 2\n"
    assert run("fork", "cellar", "--as", "roof").stdout == "roof\n"
    assert isinstance(refused("fork", "cellar", "--as", "roof"), ConfigError)
    assert "2" in refused("fork", "cellar", "--at", "3").hint
    assert "It boils" not in run("show", "cellar 2").stdout
    assert "turn 2" in run("undo", "cellar").stderr
    assert "It boils" not in run("show", "cellar").stdout
    assert run("redo", "cellar").exit_code == 0
    assert run("show", "cellar").stdout == run("show", "roof").stdout
    assert isinstance(refused("redo", "cellar"), ConfigError)


def test_a_session_whose_turns_are_all_undone_can_be_deleted(home: Path) -> None:
    tell(home, "hello")
    run("undo", "odd")
    assert run("delete", "odd", "--yes").exit_code == 0
    assert isinstance(refused("redo", "odd"), ConfigError)


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chat", "-c"], "there is no session to continue"),
        (["once", "-c", "question.wav"], "there is no session to continue"),
        (["chat", "--no-save", "--session", "kitchen"], "contradict each other"),
        (["chat", "--no-save", "-c"], "contradict each other"),
    ],
)
def test_a_conversation_that_can_not_be_continued_is_an_error(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(voxcli, arguments)
    assert result.exit_code == ConfigError.exit_code
    assert says in result.stderr


def test_a_damaged_store_is_an_error(home: Path) -> None:
    home.mkdir()
    (home / "sessions.db").write_text("no database at all")
    assert isinstance(refused("list"), StoreError)


def test_nothing_heavy_is_imported() -> None:
    code = """
import sys, voxcli.cli.sessions
assert not {"sqlite3", "numpy", "pydantic", "torch"} & set(sys.modules)
import voxcli.core.storage.store, voxcli.core.storage.export
assert not {"numpy", "pydantic", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
