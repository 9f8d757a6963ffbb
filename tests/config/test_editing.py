"""Changing the settings file: one setting, or in an editor."""

import os
import pty
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from voxcli.config.editing import edit, set_value
from voxcli.config.loading import load
from voxcli.config.toml_text import example
from voxcli.errors import ConfigError

HAND_WRITTEN = """\
# mine
voice = "piper:joe"   # a man

[live]
barge_in = true  # talk at any time
cues = false

[reply]
max_tokens = 64
"""


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(HAND_WRITTEN)
    return path


def test_one_setting_changes_and_comments_and_order_stay(file: Path) -> None:
    set_value(file, "live.barge_in", "no")
    assert file.read_text() == HAND_WRITTEN.replace("barge_in = true", "barge_in = false")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("engine", "remote", "remote"),
        ("reply.temperature", "0.5", 0.5),
        ("reply.temperature", "auto", "auto"),
        ("speech.words_per_minute", "200", 200),
        ("instructions", 'Say "hi" \\ ü\n[live]', 'Say "hi" \\ ü\n[live]'),
        ("live.input_device", "3", "3"),
        ("language", "fr", "fr"),
        ("voices", "fr=piper:siwis,de=pyttsx3:German", {"fr": "piper:siwis", "de": "pyttsx3:German"}),
    ],
)
@pytest.mark.parametrize("before", ["", HAND_WRITTEN, example()], ids=["new", "by hand", "example"])
def test_any_setting_can_be_set_in_any_file(tmp_path: Path, before: str, name: str, text: str, value: object) -> None:
    path = tmp_path / "private" / "config.toml"
    if before:
        path.parent.mkdir()
        path.write_text(before)
    assert set_value(path, name, text) == value
    section, _, key = name.rpartition(".")
    tables = tomllib.loads(path.read_text())
    assert (tables[section] if section else tables)[key] == value
    load(path, {}, {})
    assert [each.name for each in path.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("live.bargein", "no", "unknown setting live.bargein"),
        ("live", "no", "unknown setting live"),
        ("live.barge_in", "perhaps", "live.barge_in is 'perhaps'"),
        ("reply.temperature", "7", "must be auto, or a number from 0 to 2"),
        ("voice", "a\x1bb", "voice is"),
    ],
)
def test_what_is_not_allowed_changes_nothing(file: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_value(file, name, text)
    assert file.read_text() == HAND_WRITTEN


@pytest.mark.parametrize("content", ["voice = ", "[live\n", "live = 3\n", "wrong = 1\n"])
def test_a_file_that_is_broken_is_left_alone(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError):
        set_value(file, "live.barge_in", "no")
    assert file.read_text() == content


def test_a_wrong_value_in_the_file_can_be_mended(file: Path) -> None:
    file.write_text("[live]\nbarge_in = 3\n")
    set_value(file, "live.barge_in", "yes")
    assert load(file, {}, {}).live.barge_in is True


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    set_value(link, "engine", "embedded")
    assert link.is_symlink()
    assert load(file, {}, {}).engine == "embedded"


def test_an_edited_copy_replaces_the_file_only_if_it_is_valid(file: Path) -> None:
    texts = iter(["engine = 'nonsense'\n", "engine = 'embedded'\n"])
    asked: list[str] = []

    def again(error: ConfigError) -> bool:
        asked.append(error.message)
        assert file.read_text() == HAND_WRITTEN
        return True

    assert edit(file, lambda copy: write(copy, next(texts)), again)
    assert len(asked) == 1
    assert "engine is 'nonsense'" in asked[0]
    assert file.read_text() == "engine = 'embedded'\n"
    assert os.listdir(file.parent) == ["config.toml"]  # noqa: PTH208


def test_giving_up_leaves_the_file_as_it_was(file: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        edit(file, lambda copy: write(copy, "= ="), lambda _: False)
    assert file.read_text() == HAND_WRITTEN
    assert not edit(file, lambda _: None, lambda _: False)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_the_editor_of_the_environment_is_run(tmp_path: Path) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text("import sys; open(sys.argv[1], 'a').write('\\nengine = \"embedded\"\\n')")
    path = tmp_path / "config.toml"
    path.write_text("# mine\n")
    user, program = pty.openpty()
    environment = {**os.environ, "VISUAL": "", "EDITOR": f"{sys.executable} {editor}"}
    command = [sys.executable, "-m", "voxcli", "config", "edit", "--config", str(path)]
    try:
        done = subprocess.run(command, stdin=program, capture_output=True, env=environment, check=True, timeout=60)
    finally:
        os.close(user)
        os.close(program)
    assert b"changed: " in done.stderr
    assert path.read_text() == '# mine\n\nengine = "embedded"\n'
