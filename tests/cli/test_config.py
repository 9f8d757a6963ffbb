"""`voxcli config`: through the whole command line, as users call it."""

import json
import stat
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from voxcli.cli import app
from voxcli.config.loading import Settings, fields


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "not" / "there yet"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


def test_path_is_where_init_writes(config_home: Path) -> None:
    path = config_home / "voxcli" / "config.toml"
    assert run("path").stdout == f"{path}\n"
    assert run("init").exit_code == 0
    sections = ("audio", "session", "reply", "speech", "live", "voxtral", "embedded", "remote", "tools")
    assert tomllib.loads(path.read_text()) == {name: {} for name in sections}


def test_init_makes_file_and_folders_private(config_home: Path) -> None:
    run("init")
    path = config_home / "voxcli" / "config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, config_home, config_home.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_init_overwrites_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('engine = "embedded"\n')
    refused = run("init", "--config", str(path))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert path.read_text() == 'engine = "embedded"\n'
    assert run("init", "--config", str(path), "--force").exit_code == 0
    assert "# engine =" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("init", "--config", str(tmp_path / "file" / "config.toml"))
    assert result.exit_code == 2
    assert "can't write" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_show_prints_settings_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[reply]\nmax_tokens = 7\n")
    monkeypatch.setenv("VOXCLI_ENGINE", "embedded")
    result = run("show", "--config", str(path))
    assert tomllib.loads(result.stdout)["reply"]["max_tokens"] == 7
    assert f"max_tokens = 7  # file {path}, line 2\n" in result.stdout
    assert 'engine = "embedded"  # environment VOXCLI_ENGINE\n' in result.stdout
    assert 'temperature = "auto"  # default\n' in result.stdout
    assert result.stderr == ""


def test_show_as_json_has_every_setting() -> None:
    shown = json.loads(run("show", "--json").stdout)
    assert list(shown) == list(fields())
    assert shown["audio.max_seconds"] == {"value": Settings().audio.max_seconds, "origin": "default", "where": ""}


def test_a_wrong_file_ends_in_two_lines_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[audio]\nmax_secnds = 7\n")
    result = run("show", "--config", str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"voxcli: unknown setting audio.max_secnds ({path}, line 2)",
        "  did you mean audio.max_seconds?",
    ]
