"""Where a key comes from, and that it comes out nowhere; addresses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from tests.engines.openai.test_engine import MISBEHAVING
from tests.support.openai_server import OpenAIServer
from voxcli.cli import app
from voxcli.config.proxies import is_loopback
from voxcli.errors import ConfigError
from voxcli.servers.server import ApiKey, Server, checked_url, find_key, from_keyring, warning

CANARY = "sk-canary-0123456789"  # what `MISBEHAVING` answers with
URL = "https://example.org:8000/v1"
QUESTION = Path(__file__).parent.parent.parent.parent / "examples" / "questions" / "capital-of-france.flac"


def nothing(_host: str) -> None:
    return None


# --- Where it comes from -------------------------------------------------------------------------


def test_the_variable_comes_first_and_the_keyring_last(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f" {CANARY}\n")
    hosts: list[str] = []

    def keyring(host: str) -> str:
        hosts.append(host)
        return "from-the-keyring"

    def secret(given: str) -> str:
        key = find_key(URL, {"VOXCLI_API_KEY": given}, keyring)
        return key.secret if key else ""

    assert secret(f" {CANARY}\n") == CANARY
    assert secret(f"@{file}") == CANARY
    assert hosts == []
    assert secret("") == secret("  ") == "from-the-keyring"
    assert set(hosts) == {"example.org:8000"}
    assert find_key(URL, {}, nothing) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe", "not plain text"), (b"", "is not a key"), (b"a b", "is not a key")],
)
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / CANARY  # a user may write the key in place of the name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        find_key(URL, {"VOXCLI_API_KEY": f"@{file}"}, nothing)
    assert CANARY not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


@pytest.mark.parametrize(
    "given", ["ümlaut-key", "two words", "a\x00b", "line\nbreak", "x" * 5000, "@\x00", "@~nobody/x"]
)
def test_what_can_not_be_a_key_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_key(URL, {"VOXCLI_API_KEY": given}, nothing)
    assert given.strip("@") not in f"{caught.value}{caught.value.hint}"


def test_a_key_shows_itself_to_nobody() -> None:
    key = ApiKey(CANARY, "the test")
    assert CANARY not in f"{key} {key!r} {Server(URL, key)!r}"
    assert key.hidden_in(f"Bearer {CANARY}.") == "Bearer [key]."


def test_the_keyring_may_be_missing_or_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    class LockedError(Exception):
        pass

    def locked(_service: str, _name: str) -> str:
        raise LockedError

    keyring, errors = ModuleType("keyring"), ModuleType("keyring.errors")
    keyring.__dict__["get_password"] = lambda service, name: f"{service} {name}"
    errors.__dict__["KeyringError"] = LockedError
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    assert from_keyring("host") == "voxcli host"
    keyring.__dict__["get_password"] = locked
    assert from_keyring("host") is None
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert from_keyring("host") is None


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"http://user:{CANARY}@host/v1", "carries a name or password"),
        (f"user:{CANARY}@host:8000/v1", "carries a name or password"),
        (f"http://host:{CANARY}@x:1/v1", "carries a name or password"),
        ("host:8000/v1", "neither http nor https"),
        ("localhost/v1", "neither http nor https"),
        ("ftp://host/v1", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://", "host and path alone"),
        ("http:///v1", "host and path alone"),
        ("http://host/v1?key=1", "host and path alone"),
        ("http://host/v1#x", "host and path alone"),
        ("http://host:port/v1", "can't be read"),
        ("http://host:99999/v1", "can't be read"),
        ("http://[::1/v1", "can't be read"),
        ("http://ho\x1b[31mst/v1", "URL is 'http://ho"),
        ("http://a b/v1", "URL is"),
        ("", "URL is ''"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        checked_url(url)
    assert CANARY not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"
    assert f"{caught.value}{caught.value.hint}".isprintable()


def test_addresses_that_are_taken() -> None:
    assert checked_url(" http://localhost:8000/v1/ ") == "http://localhost:8000/v1"
    assert checked_url("HTTPS://api.mistral.ai/v1") == "HTTPS://api.mistral.ai/v1"
    assert checked_url("http://[::1]:8000/v1") == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *(
            ("localhost", True),
            ("127.0.0.1:8000", True),
            ("127.8.8.8", True),
            ("[::1]:80", True),
            ("a.localhost", True),
        ),
        *(("localhost.example.org", False), ("10.0.0.1", False), ("gpu", False), ("[2001:db8::1]", False)),
    ],
)
def test_a_key_on_an_open_line_is_warned_of(host: str, here: bool) -> None:
    key = ApiKey(CANARY, "the test")
    assert is_loopback(f"http://{host}/v1") is here
    said = warning(Server(f"http://{host}/v1", key))
    assert bool(said) is not here
    assert CANARY not in said
    assert warning(Server(f"https://{host}/v1", key)) == warning(Server(f"HTTPS://{host}/v1", key)) == ""
    assert warning(Server(f"http://{host}/v1")) == ""


# --- That it comes out nowhere -------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_API_KEY", CANARY)
    monkeypatch.setenv("VOXCLI_REMOTE__RETRIES", "0")
    return tmp_path / "home"


@pytest.mark.parametrize("case", MISBEHAVING)
def test_no_output_of_a_failure_has_the_key_in_it(home: Path, case: str) -> None:
    pytest.importorskip("openai")
    with OpenAIServer() as server:
        server.always = MISBEHAVING[case][0]
        command = ["once", str(QUESTION), "--engine", "remote", "--url", server.url, "--session", "s", "--no-speak"]
        quiet = CliRunner().invoke(app, command)
        verbose = CliRunner().invoke(app, ["--verbose", *command])
    assert (quiet.exit_code, verbose.exit_code) == (6, 6)
    assert server.chats[0].headers["authorization"] == f"Bearer {CANARY}"
    assert "Traceback" not in quiet.output
    assert quiet.stderr.splitlines()[-2].startswith("voxcli: ") or quiet.stderr.splitlines()[-1].startswith("voxcli: ")
    assert "Traceback" in verbose.stderr
    assert CANARY not in quiet.output + verbose.output
    assert all(CANARY.encode() not in file.read_bytes() for file in home.iterdir())


def test_the_log_of_a_remote_turn_has_neither_the_key_nor_the_request(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("VOXCLI_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with OpenAIServer() as server:
        command = ["once", str(QUESTION), "--prompt", "be brief", "--engine", "remote", "--url", server.url, "--json"]
        done = CliRunner().invoke(app, ["--verbose", *command])
    assert done.exit_code == 0
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "voxcli.core.turn: turn over" in log
    assert "voxcli.core.turn: turn over" in done.stderr
    for secret in (CANARY, "be brief", json.loads(done.stdout)["reply"]):
        assert secret not in log + done.stderr


def test_no_record_and_no_log_has_the_key_in_it(home: Path) -> None:
    pytest.importorskip("openai")
    with OpenAIServer() as server:
        command = ["once", str(QUESTION), "--engine", "remote", "--url", server.url, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "voxcli", *command],
            env={**os.environ, "OPENAI_LOG": "debug", "HTTPX_LOG_LEVEL": "trace"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert '"engine": "remote"' in done.stdout
    assert "HTTP Response" in done.stderr, "the library's log was on"
    assert CANARY not in done.stdout + done.stderr
