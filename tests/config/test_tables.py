"""Tables that users name: read, checked, shown and changed like every other setting."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from voxcli.config.editing import set_value
from voxcli.config.loading import Settings, check_text, explain, load, value_of, values
from voxcli.config.schema import declaration, named_tables, variable
from voxcli.config.toml_text import as_toml, example
from voxcli.errors import ConfigError

TABLES = """\
[tools]
max_calls = 4

[tools.weather]
description = "Tells the weather."
command = ["weather", "--short"]
parameters = {type = "object", properties = {city = {type = "string"}}, "$defs" = {}}

[tools.wind-speed]
command = ["wind"]
timeout_seconds = 3

[mcp.files]
command = ["files"]
"""


@pytest.fixture(autouse=True)
def no_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(TABLES)
    return path


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_text(text, Path("my.toml"))
    return caught.value


def test_tables_are_read_by_name(file: Path) -> None:
    settings, origins = explain(file, {}, {})
    assert settings.tools.max_calls == 4
    assert list(settings.tools.commands) == ["weather", "wind-speed"]
    assert settings.tools.commands["weather"].command == ["weather", "--short"]
    assert settings.tools.commands["weather"].approval == "ask"
    assert settings.tools.commands["wind-speed"].timeout_seconds == 3
    assert settings.mcp["files"].command == ["files"]
    assert str(origins["tools.weather.command"]) == f"file {file}, line 6"
    assert str(origins["tools.weather.approval"]) == "default"


def test_what_is_shown_reads_back_as_the_same_tables(file: Path) -> None:
    settings, origins = explain(file, {}, {})
    assert Settings.model_validate(tomllib.loads(as_toml(settings, origins))) == settings


def test_a_variable_and_a_flag_change_a_table_of_the_file(file: Path) -> None:
    environ = {"VOXCLI_TOOLS__WIND_SPEED__APPROVAL": "never", "VOXCLI_TOOLS__WEATHER__COMMAND": '["rain", "a b"]'}
    settings, origins = explain(file, {"mcp.files.approval": "always"}, environ)
    assert settings.tools.commands["wind-speed"].approval == "never"
    assert settings.tools.commands["weather"].command == ["rain", "a b"]
    assert settings.mcp["files"].approval == "always"
    assert str(origins["tools.wind-speed.approval"]) == "environment VOXCLI_TOOLS__WIND_SPEED__APPROVAL"


def test_a_variable_of_a_table_that_the_file_lacks_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {"VOXCLI_TOOLS__WETHER__APPROVAL": "never"})
    assert caught.value.hint == "did you mean VOXCLI_TOOLS__WEATHER__APPROVAL?"


def test_the_key_of_a_server_is_no_setting(file: Path) -> None:
    assert load(file, {}, {"VOXCLI_MCP_FILES_API_KEY": "k"}) == load(file, {}, {})


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[tools.a]", "tools.a has no command (my.toml, line 1)", "it is a program"),
        ("[tools.a]\ncomand = ['x']", "unknown setting tools.a.comand (my.toml, line 2)", "tools.a.command?"),
        ("[tools]\nmax_cals = 3", "unknown setting tools.max_cals (my.toml, line 2)", "tools.max_calls?"),
        ("[tool.a]\ncommand = ['x']", "unknown setting tool.a (my.toml, line 1)", "tools.a?"),
        ("[tools.'a b']\ncommand = ['x']", "'a b' can't be a name in [tools]", "letters"),
        ("[tools.'a.b']\ncommand = ['x']", "'a.b' can't be a name in [tools]", "letters"),
        ("[mcp.\"\\u001b[2J\"]\ncommand = ['x']", "'\\x1b[2J' can't be a name in [mcp]", "letters"),
        ("[mcp]\nfiles = 3", "mcp.files is a section, not a setting", "write [mcp.files]"),
        ("mcp = 3", "mcp is a section, not a setting", "write [mcp]"),
        ("[mcp.files]", "mcp.files needs either a command or a url (my.toml, line 1)", "[mcp.files]"),
        ("[mcp.files]\ncommand = ['x']\nurl = 'http://x'", "mcp.files needs either a command or a url", ""),
        ("[tools.max_calls]\ncommand = ['x']", "tools.max_calls is {'command': ['x']}", ""),
        ("[tools.a]\ncommand = 'ls'", "tools.a.command is 'ls' (my.toml, line 2), but must be a program", ""),
        ("[tools.a]\ncommand = []", "tools.a.command is []", ""),
        ("[tools.a]\ncommand = ['']", "tools.a.command is ['']", ""),
        ("[mcp.a]\ncommand = [' ']", "mcp.a.command is [' ']", ""),
        ("[tools.a]\ncommand = ['x', 3]", "tools.a.command is ['x', 3]", ""),
        ("[tools.a]\ncommand = ['x\\u0000']".replace("'", '"'), "tools.a.command is ['x\\x00']", ""),
        ("[tools.a]\ncommand = ['x']\nparameters = {a = 2020-01-01}", "tools.a.parameters is {'a': datetime", ""),
        ("[tools.a]\ncommand = ['x']\nparameters = '[]'", "tools.a.parameters is '[]'", ""),
        ("[tools.a]\ncommand = ['x']\nparameters = {a = nan}", "tools.a.parameters is {'a': nan}", ""),
        ("[tools.a]\ncommand = ['x']\nenvironment = ['a b']", "tools.a.environment is ['a b']", ""),
        ("[tools.a]\ncommand = ['x']\ntimeout_seconds = 0", "tools.a.timeout_seconds is 0", ""),
        ("[tools.a]\ncommand = ['x']\n[tools.a.x.y]\nb = 3", "'a.x' can't be a name in [tools]", ""),
        ("[tools]\nbuiltin = ['tme']", "tools.builtin is ['tme']", ""),
        ("[tools]\napprovals = {a = 'perhaps'}", "tools.approvals is {'a': 'perhaps'}", ""),
    ],
)
def test_a_mistake_names_key_file_and_what_is_nearest(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert error.message.startswith(message)
    assert hint in error.hint
    assert error.exit_code == 2


def test_a_schema_nested_without_end_is_refused() -> None:
    assert "tools.a.parameters is" in refusal(f"[tools.a]\ncommand = ['x']\nparameters = '{'[' * 100_000}'").message


def test_a_key_of_a_table_can_be_set_and_others_stay(file: Path) -> None:
    set_value(file, "tools.weather.approval", "always")
    set_value(file, "tools.rain.command", '["rain"]')
    set_value(file, "mcp.house.url", "http://localhost:8123/mcp")
    settings = load(file, {}, {})
    assert settings.tools.commands["weather"].approval == "always"
    assert settings.tools.commands["rain"].command == ["rain"]
    assert settings.tools.commands["wind-speed"].command == ["wind"]
    assert settings.mcp["house"].url == "http://localhost:8123/mcp"


def test_a_table_is_not_begun_without_what_it_needs(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"tools\.snow has no command"):
        set_value(file, "tools.snow.approval", "always")
    assert file.read_text() == TABLES


def test_a_value_alone_is_checked() -> None:
    assert value_of("tools.any.approval", "never") == "never"
    with pytest.raises(ConfigError, match=r"tools\.any\.approval is 'no'"):
        value_of("tools.any.approval", "no")
    with pytest.raises(ConfigError, match=r"unknown setting tools\.any\.aproval"):
        value_of("tools.any.aproval", "no")


def test_the_example_of_each_kind_is_one_that_works(tmp_path: Path) -> None:
    tables = re.findall(r"(?m)^#   (\[\w+\.\w+\]|[\w.]+ = .*)$", example())
    path = tmp_path / "uncommented.toml"
    path.write_text("\n".join(tables))
    settings = load(path, {}, {})
    assert [section for section in named_tables() if not getattr(settings, section)] == []
    assert settings.tools.commands["weather"].parameters == {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }


def test_every_key_is_documented(file: Path) -> None:
    settings = load(file, {}, {})
    for name in values(settings):
        field = declaration(name)
        assert field is not None
        assert field.description, name
    text = (Path(__file__).parent.parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    for section, kind in named_tables().items():
        for key, field in kind.model_fields.items():
            assert f"| `{section}.NAME.{key}` |" in text
            assert (field.description or "-") in text


def test_shown_values_are_json(file: Path) -> None:
    assert json.loads(json.dumps(values(load(file, {}, {}))))["tools.weather.timeout_seconds"] is None
    assert variable("tools.wind-speed.approval") == "VOXCLI_TOOLS__WIND_SPEED__APPROVAL"
