"""The editor and the clipboard of a conversation: real programs, and texts that can do no harm."""

import base64
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.tools import copy, edit, user_tools
from voxcli.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the programs are scripts of a POSIX shell")


class LentKeys:
    """Keys of a terminal; records whether another program has it."""

    supports_release = False

    def __init__(self) -> None:
        self.is_released = False
        self.times_released = 0

    def read(self, timeout: float) -> Key | None:
        return None

    def read_line(self, prompt: str, *, erase: bool = False) -> str:
        return "typed"

    @contextmanager
    def released(self) -> Iterator[None]:
        self.is_released = True
        self.times_released += 1
        try:
            yield
        finally:
            self.is_released = False


def program(folder: Path, name: str, script: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o700)
    return file


def test_the_editor_has_the_terminal_and_gives_a_line(tmp_path: Path) -> None:
    editor = program(
        tmp_path, "my editor", f'ls -l "$2" >{tmp_path}/mode; printf "%s\\n\\033[2J more \\r\\n\\n" "$1" >"$2"'
    )
    keys = LentKeys()
    text = edit(keys, {"EDITOR": f"{shlex.quote(str(editor))} --wait", "VISUAL": ""})
    assert text == "--wait\n\\x1b[2J more"
    assert (keys.times_released, keys.is_released) == (1, False)
    assert (tmp_path / "mode").read_text().startswith("-rw-------")


def test_a_file_that_is_left_empty_asks_nothing() -> None:
    assert edit(LentKeys(), {"VISUAL": "true", "EDITOR": "false"}) == ""


@pytest.mark.parametrize("command", ["false", "no-such-editor-here", '"', "rm"])
def test_an_editor_that_fails_is_named(command: str) -> None:
    keys = LentKeys()
    with pytest.raises(ConfigError) as raised:
        edit(keys, {"EDITOR": command})
    assert "EDITOR" in raised.value.hint
    assert not keys.is_released


def test_without_an_editor_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no editor"):
        edit(LentKeys(), {})


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def osc_52(sequences: list[str]) -> str:
    """Return the text that one escape sequence copies."""
    (sequence,) = sequences
    assert sequence.startswith("\x1b]52;c;")
    assert sequence.endswith("\x07")
    return base64.b64decode(sequence[7:-1]).decode()


def test_a_reply_goes_to_the_program_of_the_platform(path: Path, tmp_path: Path) -> None:
    program(path, "wl-copy", "exit 1")  # no server answers
    program(path, "xclip", f'cat >{tmp_path}/copied; echo "$@" >>{tmp_path}/copied')
    sequences: list[str] = []
    assert (
        copy("Grüße\x1b[2J\n ", sequences.append, {"DISPLAY": ":0", "WAYLAND_DISPLAY": "w"}) == "copied the last reply"
    )
    assert (tmp_path / "copied").read_text("utf-8") == "Grüße\\x1b[2J-selection clipboard\n"
    assert sequences == []


@pytest.mark.parametrize(
    "environment", [{}, {"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1"}], ids=["no display", "ssh"]
)
def test_a_reply_goes_to_the_terminal_where_it_is_another_machine(path: Path, environment: dict[str, str]) -> None:
    program(path, "xclip", "cat >/dev/null")
    sequences: list[str] = []
    assert "if this terminal allows it" in copy("Grüße\x07", sequences.append, environment)
    assert osc_52(sequences) == "Grüße\\x07"


def test_without_a_keyboard_nothing_is_typed() -> None:
    tools = user_tools(None, lambda _: None)
    assert (tools.read_line(), tools.edit_line()) == ("", "")
    assert user_tools(LentKeys(), lambda _: None).read_line() == "typed"


def test_a_terminal_is_given_back_to_the_keys_after_the_editor() -> None:
    from voxcli.chat.keyboard.opening import open_keys

    user, theirs = os.openpty()
    with open(theirs, encoding="utf-8") as stream, open_keys(stdin=stream) as keys:  # noqa: PTH123 - a descriptor
        assert keys
        assert edit(keys, {"EDITOR": "sh -c 'echo hello >$0'"}) == "hello"
        os.write(user, b"R")
        assert keys.read(5) == Key("r", shift=True)
    os.close(user)
