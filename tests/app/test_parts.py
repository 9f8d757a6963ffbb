"""The parts as the settings say: the session of a conversation, the language, the voices."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from voxcli.app.parts import SessionChoice, engine_options, load_settings, open_memory, open_reply_voices
from voxcli.cli import app
from voxcli.core.memory import Memory
from voxcli.core.session import Turn
from voxcli.core.storage.store import Store
from voxcli.errors import ConfigError, StoreError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "home"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def notices() -> list[str]:
    return []


def opened(choice: SessionChoice, stack: ExitStack, notices: list[str]) -> Memory:
    return open_memory(choice, load_settings(None, {"instructions": "Be short."}), stack, notices.append)


def tell(home: Path, *names: str) -> None:
    with Store.open(home) as store:
        for name in names:
            store.append(name, Turn("hello", f"I am {name}."), instructions="Be kind.")


def test_continuing_takes_the_session_that_was_used_last(home: Path, stack: ExitStack, notices: list[str]) -> None:
    tell(home, "kitchen", "attic", "kitchen")
    memory = opened(SessionChoice(continues=True), stack, notices)
    assert (memory.session.name, memory.session.instructions, memory.turn_number) == ("kitchen", "Be kind.", 2)
    assert memory.is_kept


def test_continuing_needs_a_session(home: Path, stack: ExitStack, notices: list[str]) -> None:
    with pytest.raises(ConfigError, match="no session to continue"):
        opened(SessionChoice(continues=True), stack, notices)
    tell(home, "kitchen")
    with pytest.raises(ConfigError, match="both"):
        opened(SessionChoice("kitchen", continues=True), stack, notices)


def test_instructions_that_were_given_hold_for_the_last_session_too(
    home: Path, stack: ExitStack, notices: list[str]
) -> None:
    tell(home, "kitchen")
    memory = opened(SessionChoice(continues=True, new_instructions=True), stack, notices)
    assert memory.session.instructions == "Be short."


def test_without_a_wish_nothing_is_stored(home: Path, stack: ExitStack, notices: list[str]) -> None:
    memory = opened(SessionChoice(), stack, notices)
    assert not memory.is_kept
    assert not home.exists()


def test_a_kept_conversation_needs_no_name(stack: ExitStack, notices: list[str]) -> None:
    memory = opened(SessionChoice(kept=True), stack, notices)
    assert (memory.is_kept, memory.session.name, memory.place) == (True, None, None)
    assert memory.session.instructions == "Be short."


def test_where_nothing_can_be_stored_a_chat_without_a_name_goes_on(
    home: Path, stack: ExitStack, notices: list[str]
) -> None:
    home.write_text("a file, where a folder should be")
    memory = opened(SessionChoice(kept=True), stack, notices)
    assert not memory.is_kept
    assert len(notices) == 1
    assert notices[0].startswith("this conversation is not kept: ")
    with pytest.raises(StoreError):
        opened(SessionChoice("kitchen", kept=True), stack, notices)


def test_the_language_reaches_the_engine() -> None:
    assert engine_options(load_settings(None, {})).language == "auto"
    assert engine_options(load_settings(None, {"language": "fr"})).language == "fr"


@pytest.mark.parametrize(("setting", "language"), [("fr", "fr"), ("nn", "no")])  # Norwegian has one voice for both.
def test_the_voice_of_the_language_is_opened_at_once(setting: str, language: str, notices: list[str]) -> None:
    settings = load_settings(None, {"language": setting, "voices": f"{setting}=piper:nobody"})
    with open_reply_voices(settings, notices.append) as voices:
        voices.wait_until_ready()
        assert list(voices.synthesize("Bonjour à tous.")), "the default voice says it"
    assert len(notices) == 1
    assert notices[0].startswith(
        f"the default voice speaks the language {language}: the piper voice nobody is not there"
    )


@pytest.mark.parametrize("command", ["chat", "once", "batch"])
def test_a_language_that_is_none_is_refused(command: str) -> None:
    more = {"once": ["--prompt", "Hello."], "batch": ["x.wav", "--out", "-"]}.get(command, [])
    result = CliRunner().invoke(app, [command, "-l", "french", *more])
    assert result.exit_code == 2
    assert "--language is 'french' (command line), but must be auto, or the two letters" in result.stderr
