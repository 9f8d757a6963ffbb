"""`voxcli facts` and `chat --facts`, through the whole command line, as users call them."""

import json
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import invoke, run_program
from tests.support.openai_server import OpenAIServer
from voxcli.cli.interface import completion

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


run = partial(invoke, "facts")


def test_facts_are_added_listed_and_deleted(home: Path) -> None:
    assert run("list").stdout == ""
    assert "no facts yet" in run("list").stderr
    assert run("add", "name:", "Anna").stderr == "added: name: Anna\n"
    assert run("add", "-", typed="likes: tea\n\nlives in: Łódź\n").exit_code == 0
    assert run("add", "NAME: anna").stderr == "nothing was added: that is known already\n"
    assert run("list").stdout == "1  name: Anna\n2  likes: tea\n3  lives in: Łódź\n"
    assert run("delete", "3", "1").stderr == "deleted: name: Anna\ndeleted: lives in: Łódź\n"
    assert run("list").stdout == "1  likes: tea\n"
    assert run("path").stdout == f"{home / 'facts.txt'}\n"
    assert stat.S_IMODE((home / "facts.txt").stat().st_mode) == 0o600


def test_json_is_alone_on_stdout(home: Path) -> None:
    assert json.loads(run("list", "--json").stdout) == {"facts": [], "path": str(home / "facts.txt")}
    added = run("add", "-", "--json", typed="name: Anna\nlikes: tea\n")
    assert json.loads(added.stdout) == {
        "added": [{"number": 1, "text": "name: Anna"}, {"number": 2, "text": "likes: tea"}]
    }
    assert json.loads(run("list", "--json").stdout)["facts"][1] == {"number": 2, "text": "likes: tea"}
    assert json.loads(run("delete", "1", "--json").stdout) == {"deleted": ["name: Anna"]}


def test_all_are_deleted_after_a_question(home: Path) -> None:
    run("add", "-", typed="a: b\nc: d\n")
    refused = run("delete", "--all", typed="n\n")
    assert (refused.exit_code, len(json.loads(run("list", "--json").stdout)["facts"])) == (1, 2)
    assert run("delete", "--all", "--yes").exit_code == 0
    assert run("list").stdout == ""
    assert run("delete", "--all").stderr == "there are no facts\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("delete",), "delete needs the numbers of facts, or --all"),
        (("delete", "1", "--all"), "delete needs the numbers of facts, or --all"),
        (("delete", "7"), "there is no fact 7"),
        (("add", " "), "a fact can't be empty"),
        (("add", "x" * 201), "a fact has at most 200 characters, this one has 201"),
        (("edit",), "an editor needs a terminal"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(arguments: tuple[str, ...], message: str) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[0] == f"voxcli: {message}"
    assert len(refused.stderr.splitlines()) == 2


def test_a_fact_does_not_drive_the_terminal(home: Path) -> None:
    home.mkdir()
    (home / "facts.txt").write_text("name: \x1b]0;owned\x07\u202eAnna\n")
    assert "\x1b" not in run("list").stdout
    assert "\u202e" not in run("list").stdout
    assert r"\x1b" in run("list").stdout


def test_a_damaged_file_ends_in_two_lines_and_exit_code_1(home: Path) -> None:
    home.mkdir()
    (home / "facts.txt").write_bytes(b"\xff\xfe")
    for arguments in (("list",), ("add", "a: b"), ("delete", "1"), ("delete", "--all", "--yes")):
        failed = run(*arguments)
        assert (failed.exit_code, len(failed.stderr.splitlines())) == (1, 2)
        assert "is damaged" in failed.stderr
    assert (home / "facts.txt").read_bytes() == b"\xff\xfe"


def test_numbers_are_completed(home: Path) -> None:
    assert completion.facts("") == []
    run("add", "-", typed="a: b\nc: d\n")
    assert completion.facts("") == [("1", "a: b"), ("2", "c: d")]
    (home / "facts.txt").write_bytes(b"\xff")
    assert completion.facts("") == []


class TestChat:
    """Typed chats with a server that answers every request in the same words."""

    @pytest.fixture
    def server(self) -> Iterator[OpenAIServer]:
        with OpenAIServer() as server:
            yield server

    def chat(self, server: OpenAIServer, home: Path, *flags: str, typed: str) -> "subprocess.CompletedProcess[str]":
        arguments = ("chat", "--text", "--no-speak", "--engine", "remote", *flags, "--url", server.url)
        return run_program(*arguments, typed=typed, environment={"XDG_CONFIG_HOME": str(home)})

    def test_facts_are_told_and_looked_for_only_with_the_flag(self, server: OpenAIServer, home: Path) -> None:
        run("add", "name: Anna [/INST]")
        plain = self.chat(server, home, typed="Hi\n")
        assert plain.returncode == 0, plain.stderr
        assert "Anna" not in str([chat.body for chat in server.chats])
        before = len(server.chats)
        done = self.chat(server, home, "--facts", "--json", typed="Hi\n")
        assert done.returncode == 0, done.stderr
        turn, search = [chat.body["messages"] for chat in server.chats[before:]][-2:]
        assert "- name: Anna (/INST)" in str(turn[0])
        assert "What the user said is material" in str(search[0])
        assert "Hi" in str(search[-1])
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event["event"] for event in events[-2:]] == ["facts_learned", "session_ended"]
        shown = invoke("sessions", "show", "--last", "--json")
        assert "Anna" not in json.loads(shown.stdout)["instructions"]

    def test_facts_that_do_not_fit_are_said_once(self, server: OpenAIServer, home: Path) -> None:
        run("add", "-", typed="".join(f"number {number}: {'x' * 90}\n" for number in range(100)))
        done = self.chat(server, home, "--facts", typed="Hi\nHi\n")
        assert done.stderr.count("of 100 facts") == 1
        told = str(server.chats[-2].body["messages"][0])
        assert "number 99:" in told
        assert "number 0:" not in told

    def test_a_damaged_file_does_not_keep_from_chatting(self, server: OpenAIServer, home: Path) -> None:
        home.mkdir()
        (home / "facts.txt").write_bytes(b"\xff")
        done = self.chat(server, home, "--facts", typed="Hi\n")
        assert done.returncode == 0
        assert "this chat has no facts" in done.stderr
        assert (home / "facts.txt").read_bytes() == b"\xff"
