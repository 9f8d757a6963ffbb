"""`voxcli personas` and `--persona`, through the whole command line, as users call them."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import invoke, run_program
from tests.support.openai_server import OpenAIServer
from voxcli.cli.interface import completion
from voxcli.config.personas import SHIPPED

pytest.importorskip("openai")

ROOT = Path(__file__).parent.parent.parent
QUESTION = ROOT / "examples" / "questions" / "capital-of-france.flac"
COMMENTED = '# mine\nvoice = "neural"  # the best\n\n[reply]\nmax_tokens = 7\n'


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    return tmp_path / "config" / "voxcli" / "config.toml"


run = partial(invoke, "personas")


def add(*arguments: str) -> None:
    result = run("add", *arguments)
    assert result.exit_code == 0, result.stderr


def test_shipped_personas_are_listed_and_shown() -> None:
    assert [line.split()[:2] for line in run("list").stdout.splitlines()] == [[name, "shipped"] for name in SHIPPED]
    shown = tomllib.loads(run("show", "interpreter:target=French").stdout)["personas"]["interpreter"]
    assert shown["instructions"] == SHIPPED["interpreter"].instructions
    assert (shown["tools"], shown["values"]) == ([], {"target": "French"})
    as_json = json.loads(run("show", "interpreter:target=French", "--json").stdout)
    assert "{" not in as_json["filled_instructions"]
    assert "French" in as_json["filled_instructions"]
    listed = json.loads(run("list", "--json").stdout)["personas"]
    assert {each["name"]: each["shipped"] for each in listed} == dict.fromkeys(SHIPPED, True)


def test_the_columns_of_the_list_stand_below_each_other(settings: Path) -> None:
    add("cook", "--instructions", "You are a cook.")
    lines = run("list").stdout.splitlines()
    assert len({line.index("You are") for line in lines}) == 1


def test_the_list_shows_what_can_be_chosen_in_place_of_a_persona_that_is_not_there(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXCLI_PERSONA", "xyzzyq")
    listed = run("list")
    assert listed.exit_code == 0
    assert "tutor" in listed.stdout
    assert "there is no persona 'xyzzyq'" in listed.stderr


def test_a_persona_is_added_with_comments_kept(settings: Path) -> None:
    settings.parent.mkdir(parents=True)
    settings.write_text(COMMENTED)
    add("cook", "--instructions", "You cook\nin {units}.", "--value", "units=g", "--voice", "neural:emma")
    add("tutor", "--tools", "", "--temperature", "0.5", "--max-tokens", "40", "--engine", "remote", "--model", "m")
    text = settings.read_text()
    assert text.startswith(COMMENTED.rstrip())
    assert tomllib.loads(text)["personas"] == {
        "cook": {"instructions": "You cook\nin {units}.", "voice": "neural:emma", "values": {"units": "g"}},
        "tutor": {"tools": [], "temperature": 0.5, "max_tokens": 40, "engine": "remote", "model": "m"},
    }
    kinds = [line.split()[:2] for line in run("list").stdout.splitlines()]
    assert kinds == [["plain", "shipped"], ["tutor", "changed"], ["interpreter", "shipped"], ["cook", "yours"]]
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600


def test_a_persona_is_replaced_only_when_forced(settings: Path) -> None:
    add("cook", "--voice", "neural")
    refused = run("add", "cook", "--voice", "pyttsx3")
    assert (refused.exit_code, refused.stderr.splitlines()[1]) == (2, "  --force replaces it")
    add("cook", "--language", "fr", "--force")
    assert tomllib.loads(settings.read_text())["personas"] == {"cook": {"language": "fr"}}


def test_instructions_come_from_a_file_or_from_stdin(tmp_path: Path, settings: Path) -> None:
    (tmp_path / "cook.txt").write_text("You cook.")
    add("cook", "--instructions", f"@{os.path.relpath(tmp_path / 'cook.txt')}")
    assert json.loads(run("show", "cook", "--json").stdout)["instructions"] == "You cook."
    assert run("add", "baker", "--instructions", "@-", typed="You bake.\n").exit_code == 0
    assert tomllib.loads(settings.read_text())["personas"]["baker"] == {"instructions": "You bake."}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "x"), "there is nothing to add"),
        (("add", "a b", "--voice", "neural"), "'a b' can't be the name of a persona"),
        (("add", "x", "--instructions", "Now {tme}"), "unknown name {tme} in the instructions of persona x"),
        (
            ("add", "x", "--instructions", "@/nowhere"),
            "can't read instructions from /nowhere: No such file or directory",
        ),
        (("add", "x", "--language", "xx"), "personas.x.language is 'xx'"),
        (("add", "x", "--temperature", "9"), "personas.x.temperature is 9"),
        (("add", "x", "--value", "units"), "--value units has no text"),
        (("add", "x", "--value", "a b=c"), "personas.x.values is {'a b': 'c'}"),
        (("show", "tutr"), "there is no persona 'tutr'"),
        (("show", "tutor:a=b"), "persona tutor has no value 'a=b'"),
        (("show", "interpreter:target="), "the value target of persona interpreter is empty"),
    ],
)
def test_what_is_not_allowed_is_told_and_changes_nothing(
    arguments: tuple[str, ...], message: str, settings: Path
) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"voxcli: {message}")
    assert len(refused.stderr.splitlines()) <= 2
    assert not settings.exists()


def test_the_settings_show_what_comes_from_a_persona() -> None:
    shown = invoke("config", "show", "--persona", "interpreter", "--json")
    found = json.loads(shown.stdout)
    assert found["reply.temperature"] == {"value": 0.0, "origin": "persona", "where": "interpreter"}
    assert found["persona"]["origin"] == "flag"


def test_names_are_completed() -> None:
    add("cook", "--voice", "neural")
    assert [name for name, _ in completion.personas("")] == [*SHIPPED, "cook"]


class TestRuns:
    """Runs of commands with a server that answers every request in the same words."""

    @pytest.fixture
    def server(self) -> Iterator[OpenAIServer]:
        with OpenAIServer() as server:
            yield server

    @pytest.fixture
    def run(self, server: OpenAIServer) -> Callable[..., "subprocess.CompletedProcess[str]"]:
        own = {"VOXCLI_ENGINE": "remote", "VOXCLI_REMOTE__URL": server.url}
        return partial(run_program, environment=own)

    def test_a_session_goes_on_as_its_persona(self, run: Callable[..., Any], server: OpenAIServer) -> None:
        chat = ("chat", "--text", "--no-speak")
        assert run(*chat, "--persona", "interpreter:target=Welsh", typed="Hi\n").returncode == 0
        for _ in range(2):
            assert run(*chat, "-c", typed="Hi\n").returncode == 0
            body = server.chats[-1].body
            assert "in Welsh, as if" in str(body["messages"][0])
            assert body["temperature"] == 0.0
        shown = json.loads(run("sessions", "show", "--last", "--json").stdout)
        assert (shown["persona"], len(shown["turns"])) == ("interpreter:target=Welsh", 3)
        assert run("once", "-c", "--prompt", "Hi", "--persona", "plain").returncode == 0
        assert "You are a voice assistant" in str(server.chats[-1].body["messages"][0])
        assert json.loads(run("sessions", "show", "--last", "--json").stdout)["persona"] == "plain"

    def test_a_session_keeps_to_itself_whatever_the_settings_choose_later(
        self, run: Callable[..., Any], server: OpenAIServer, settings: Path
    ) -> None:
        run("once", "--prompt", "Hi", "--session", "old")
        add("brief", "--instructions", "Be brief.", "--max-tokens", "9")
        settings.write_text(f'persona = "brief"\n{settings.read_text()}')
        run("once", "--prompt", "Hi", "--session", "old")
        body = server.chats[-1].body
        assert ("You are a voice assistant" in str(body["messages"][0]), body["max_tokens"]) == (True, 256)
        run("once", "--prompt", "Hi", "--session", "new")
        body = server.chats[-1].body
        assert ("Be brief." in str(body["messages"][0]), body["max_tokens"]) == (True, 9)

    def test_a_date_is_filled_in_anew_and_other_instructions_stay(
        self, run: Callable[..., Any], server: OpenAIServer, settings: Path
    ) -> None:
        add("clock", "--instructions", "It is {day}, says {user}.", "--value", "day=Monday")
        run("once", "--prompt", "Hi", "--session", "a", "--persona", "clock")
        assert "It is Monday, says" in str(server.chats[-1].body["messages"][0])
        add("clock", "--instructions", "It is {day}, says {user}.", "--value", "day=Tuesday", "--force")
        run("once", "--prompt", "Hi", "--session", "a")
        assert "It is Tuesday, says" in str(server.chats[-1].body["messages"][0])
        run("once", "--prompt", "Hi", "--session", "b", "--persona", "clock", "--instructions", "Mine.")
        run("once", "--prompt", "Hi", "--session", "b")
        assert "Mine." in str(server.chats[-1].body["messages"][0])
        settings.unlink()
        gone = run("once", "--prompt", "Hi", "--session", "a")
        assert gone.returncode == 0
        assert "there is no persona 'clock' any more" in gone.stderr
        assert "It is Monday, says" in str(server.chats[-1].body["messages"][0])

    def test_a_persona_changes_in_a_typed_chat_and_stays_with_the_session(
        self, run: Callable[..., Any], server: OpenAIServer
    ) -> None:
        typed = "Hi\n/persona\n/persona tutr\n/persona tutor\nHi\n"
        done = run("chat", "--text", "--no-speak", "--session", "k", typed=typed)
        assert "interpreter" in done.stderr
        assert "did you mean tutor?" in done.stderr
        assert "from now on as tutor" in done.stderr
        assert "language tutor" in str(server.chats[-1].body["messages"][0])
        run("chat", "--text", "--no-speak", "-c", typed="Hi\n")
        assert "language tutor" in str(server.chats[-1].body["messages"][0])

    @pytest.mark.parametrize("first", ["plain", "interpreter"])
    def test_a_persona_brings_its_tools_into_a_typed_chat(
        self, run: Callable[..., Any], server: OpenAIServer, settings: Path, first: str
    ) -> None:
        command = f"command = ['{sys.executable}', '-c', 'pass']"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            f"[tools]\nbuiltin = ['time']\n[tools.oven]\n{command}\n[personas.cook]\ntools = ['oven', 'ti*r']\n"
        )
        typed = "Hi\n/persona cook\nHi\n/persona interpreter\nHi\n/persona plain\nHi\n"
        assert run("chat", "--text", "--no-speak", "--persona", first, typed=typed).returncode == 0
        offered = [[tool["function"]["name"] for tool in chat.body.get("tools", ())] for chat in server.chats[-4:]]
        assert offered == [["time", "oven"] if first == "plain" else [], ["oven"], [], ["time", "oven"]]

    def test_a_batch_resumes_on_another_day(
        self, run: Callable[..., Any], server: OpenAIServer, tmp_path: Path
    ) -> None:
        add("clock", "--instructions", "It is {date}, {time}.")
        batch = ("batch", str(QUESTION), "--out", str(tmp_path / "out.jsonl"), "--persona", "clock")
        assert run(*batch).returncode == 0
        assert "It is " in str(server.chats[-1].body["messages"][0])
        record = json.loads((tmp_path / "out.jsonl").read_text())
        asked = len(server.chats)
        again = run(*batch, "--resume")
        assert again.returncode == 0, again.stderr
        assert len(server.chats) == asked
        add("clock", "--instructions", "Now it is {date}, {time}.", "--force")
        changed = run(*batch, "--resume")
        assert (changed.returncode, "instructions 1" in changed.stderr) == (2, True)
        assert record["fingerprint"]["instructions"]
