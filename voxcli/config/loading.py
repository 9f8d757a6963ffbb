"""Loads the settings: flags before `VOXCLI_*` variables, a persona, the settings file and, last, the defaults.

`voxcli.config.schema` declares the settings and pydantic checks them. This module merges the sources, records where
each value came from, and raises errors that name the place and the nearest setting.
"""

import json
import os
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from voxcli.config.paths import config_file
from voxcli.config.personas import check_personas, chosen_persona, filled_instructions, persona_values
from voxcli.config.schema import (
    PREFIX,
    Settings,
    allowed,
    declaration,
    fields,
    is_list,
    is_named_table,
    is_table,
    is_table_name,
    named_tables,
    number_type,
    values,
    variable,
)
from voxcli.config.tables import TABLE_NAME_RULE
from voxcli.config.templates import Moment
from voxcli.config.text_files import read_text
from voxcli.config.values import INSTRUCTIONS_CHARACTERS
from voxcli.errors import ConfigError

__all__ = [
    "Given",
    "Origin",
    "Settings",
    "check_text",
    "explain",
    "fields",
    "load",
    "value_of",
    "values",
]

# Read by `voxcli.config.paths`, `voxcli.servers.server` and `voxcli.cli.interface.log`.
NOT_SETTINGS = frozenset({"VOXCLI_HOME", "VOXCLI_API_KEY", "VOXCLI_SPEECH_API_KEY", "VOXCLI_LOG"})
MCP_KEY = re.compile(r"VOXCLI_MCP_[A-Z0-9_]+_API_KEY")  # read by `voxcli.app.tools`
FILE_BYTES = 1 << 20  # a settings file has a few kilobytes; a larger one is something else
ENTRY_START = re.compile(r",(?=\s*[\w-]+\s*=)")  # Values may contain commas.
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Origin:
    """The source of a setting's value."""

    kind: Literal["default", "file", "persona", "environment", "session", "flag"]
    where: str = ""  # file and line, or name of the variable or persona

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".rstrip()


@dataclass(frozen=True)
class Given:
    """A value from one source, before it is checked."""

    value: Any
    origin: Origin
    folder: Path = Path()  # base of relative `@FILE` names


Layer = dict[str, Given]  # by dotted name


def load(
    path: Path | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    persona: str | None = None,
    moment: Moment | None = None,
) -> Settings:
    """Return the settings in force, with names in the instructions of a persona filled in.

    Args:
        path: the settings file, "-" for standard input; None for the default file, which need not exist.
        flags: by dotted name: `{"engine": "embedded", "reply.max_tokens": 64}`.
        environ: holds the `VOXCLI_*` variables; an empty variable counts as not set.
        persona: that of a session that goes on, in place of the setting; None: there is none.
        moment: what names in instructions stand for; None: those of now.

    Raises:
        ConfigError: a file can't be read or is not TOML, a setting is unknown, or a value is not allowed.
    """
    settings, origins = explain(path, flags, environ, persona)
    if origins["instructions"].kind != "persona":
        return settings
    chosen = chosen_persona(settings.persona, settings.personas)
    text = filled_instructions(*chosen, settings.language, moment or Moment.now(environ))
    return settings.model_copy(update={"instructions": text})


def explain(
    path: Path | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    persona: str | None = None,
) -> tuple[Settings, dict[str, Origin]]:
    """Return the settings in force, and the origin of each by dotted name. Names in instructions are not filled in."""
    file = _file_layer(path)
    tables = [name for name in file if is_named_table(name)]
    above = _environment_layer(environ, tables) | _flag_layer(flags, tables)
    if persona is not None:
        above["persona"] = Given(persona, Origin("session"))
    given = _with_texts_of_files(file | above)
    settings, default = _checked(given), Origin("default")
    if settings.persona:
        name, chosen = chosen_persona(settings.persona, settings.personas)
        engine = settings.engine if "engine" in above else chosen.engine or settings.engine
        own = persona_values(chosen, is_remote=engine == "remote")
        given |= {key: Given(own[key], Origin("persona", name)) for key in own if key not in above}
        settings = _checked(given)
    return settings, {name: given[name].origin if name in given else default for name in values(settings)}


def check_text(text: str, path: Path) -> None:
    """Check a text that is to become the settings file `path`; raise ConfigError if `load` would."""
    settings = _checked(_with_texts_of_files(_text_layer(text, path)))
    check_personas(settings.persona, settings.personas)


def value_of(name: str, text: str) -> Any:
    """Return the value of a setting that the command line gives as text.

    Raises:
        ConfigError: there is no such setting, or the value is not allowed.
    """
    field = declaration(name)
    if field is None:
        raise _unknown("setting", name, _known_near(name), "command line")
    given = Given(_from_text(field, text), Origin("file"), Path.cwd())
    _checked(_with_texts_of_files({name: given}), of=name)
    return given.value


def _flag_layer(flags: Mapping[str, Any], tables: Sequence[str]) -> Layer:
    known = _known(tables)
    for name in flags:
        if name not in known:
            raise _unknown("setting", name, known, "command line")
    return {
        name: Given(_from_text(known[name], value) if isinstance(value, str) else value, Origin("flag"))
        for name, value in flags.items()
    }


def _environment_layer(environ: Mapping[str, str], tables: Sequence[str]) -> Layer:
    known = _known(tables)
    names = {variable(name): name for name in known}
    layer: Layer = {}
    for key, text in environ.items():
        if not key.startswith(PREFIX) or key in NOT_SETTINGS or MCP_KEY.fullmatch(key) or not text:
            continue
        if key not in names:
            raise _unknown("variable", key, names, "environment")
        layer[names[key]] = Given(_from_text(known[names[key]], text), Origin("environment", key))
    return layer


def _known(tables: Iterable[str]) -> dict[str, FieldInfo]:
    """Return the declarations of all settings by dotted name, those of the given tables that users named too."""
    own = {
        f"{table}.{key}": field
        for table in tables
        for key, field in named_tables()[table.partition(".")[0]].model_fields.items()
    }
    return fields() | own


def _known_near(name: str) -> dict[str, FieldInfo]:
    """Return the declarations of all settings, and those of the table that users named where `name` is in one."""
    table = name.rpartition(".")[0]
    return _known([table] if is_named_table(table) else [])


def _from_text(field: FieldInfo, text: str) -> Any:
    """Convert a text to the number, boolean or table that a setting needs; return other text unchanged.

    The text of a table is "KEY=VALUE,KEY=VALUE", that of a list is JSON or "ITEM,ITEM".
    """
    if field.annotation is bool:
        return TRUTHS.get(text.lower(), text)
    if is_table(field):
        pairs = [pair.partition("=") for pair in ENTRY_START.split(text)]
        return {key.strip(): value.strip() for key, _, value in pairs}
    if is_list(field):
        return _list_from_text(text)
    kind = number_type(field)
    try:
        return kind(text) if kind else text
    except ValueError:
        return text


def _list_from_text(text: str) -> Any:
    if not text.startswith("["):
        return [item.strip() for item in text.split(",")]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _file_layer(path: Path | None) -> Layer:
    if path is None:
        path = config_file()
        try:
            text = read_text(path, FILE_BYTES, "the settings file")
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return {}
            raise
    else:
        text = read_text(path, FILE_BYTES, "the settings file")
    return _text_layer(text, path)


def _text_layer(text: str, path: Path) -> Layer:
    """Return the settings in the text of a file."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number with too many digits
        raise ConfigError(
            f"{path} is not TOML: {error}", hint="correct that line; config.example.toml is an example"
        ) from error
    layer: Layer = {}
    for name, value in _flat(tables).items():
        line = _line(text, name)
        where = f"{path}, line {line}" if line else str(path)
        _check_name(name, value, where)
        layer[name] = Given(value, Origin("file", where), path.parent)
    return layer


def _check_name(name: str, value: Any, where: str) -> None:
    """Raise ConfigError unless a settings file may hold `name`, which is that of a setting or of a table."""
    if declaration(name) is not None or (is_named_table(name) and isinstance(value, dict)):
        return
    if name in Settings.model_fields:
        raise ConfigError(f"{name} is a section, not a setting ({where})", hint=f"write [{name}] on its own line")
    section, _, table = name.partition(".")
    if section in named_tables() and isinstance(value, dict) and not is_table_name(table):
        raise ConfigError(f"{_shown(table)} can't be a name in [{section}] ({where})", hint=TABLE_NAME_RULE)
    if is_named_table(name) and is_table(Settings.model_fields[section]):
        raise ConfigError(f"{name} is a section, not a setting ({where})", hint=f"write [{name}] on its own line")
    known = {*_known_near(name)} if "." in name else {*fields(), *Settings.model_fields}
    if section not in Settings.model_fields:
        known |= {f"{right}.{table}" for right in named_tables()}
    raise _unknown("setting", name, known, where)


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a parsed file by dotted name; an empty known section adds none."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        is_section = name in Settings.model_fields and name not in fields()
        if isinstance(value, dict) and (is_section or (value and name not in fields())):
            for key, inner in value.items():
                flat[f"{name}.{key}"] = inner
                if name in named_tables() and isinstance(inner, dict) and f"{name}.{key}" not in fields():
                    flat[f"{name}.{key}"] = {}
                    flat |= {f"{name}.{key}.{last}": setting for last, setting in inner.items()}
        else:
            flat[name] = value
    return flat


def _line(text: str, name: str) -> int | None:
    """Return the line that sets `name` in TOML, counted from 1; None if the key is quoted or split."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([\w.-]+)\s*\]", line):
            section = f"{header[1]}."
            if name == header[1]:
                return number
        elif (key := re.match(r"\s*([\w.-]+)\s*=", line)) and f"{name}.".startswith(f"{section}{key[1]}."):
            return number
    return None


def _unknown(what: str, name: str, known: Iterable[str], where: str) -> ConfigError:
    nearest = get_close_matches(name, sorted(known), 1, cutoff=0.0)[0]
    return ConfigError(f"unknown {what} {_shown(name)[1:-1]} ({where})", hint=f"did you mean {nearest}?")


def _with_texts_of_files(layer: Layer) -> Layer:
    """Replace instructions of the form `@FILE` by the texts of the files."""
    is_text = {name: name.rpartition(".")[2] == "instructions" for name in layer}
    return {name: _with_text_of_file(given) if is_text[name] else given for name, given in layer.items()}


def _with_text_of_file(given: Given) -> Given:
    if not isinstance(given.value, str) or not given.value.startswith("@"):
        return given
    try:
        path = given.folder / Path(given.value[1:]).expanduser()
    except RuntimeError as error:  # "~name" of an unknown user
        raise ConfigError(f"can't read instructions from {given.value[1:]}: {error}") from error
    text = read_text(path, 4 * INSTRUCTIONS_CHARACTERS, "instructions from")  # a character takes at most 4 bytes
    return Given(text.strip(), Origin(given.origin.kind, f"{given.origin.where} @{path}".strip()))


def _checked(given: Layer, of: str = "") -> Settings:
    """Return settings from what was given; raise ConfigError for the first that is not allowed.

    Args:
        of: the only one to check, if there is one: the rest of its table may be missing.
    """
    try:
        return Settings.model_validate(_nested(given))
    except ValidationError as error:
        for problem in error.errors():
            place = [str(part) for part in problem["loc"]]
            name = next((name for count in (3, 2, 1) if (name := ".".join(place[:count])) in given), "")
            if name and declaration(name) is not None:
                raise _not_allowed(name, given[name]) from error
            if not of:
                raise _incomplete(".".join(place[:2]), place[2:], str(problem["msg"]), given) from error
        return Settings()


def _not_allowed(name: str, given: Given) -> ConfigError:
    field = declaration(name)
    must, hint = allowed(field) if field else "", ""
    where = given.origin.where or "command line"
    if given.origin.kind == "flag":
        name, hint = f"--{name.rpartition('.')[2].replace('_', '-')}", "-h lists the flags, after any command"
    return ConfigError(f"{name} is {_shown(given.value)} ({where}), but must be {must}", hint=hint)


def _incomplete(table: str, keys: Sequence[str], problem: str, given: Layer) -> ConfigError:
    """Return the error of a table that users named: without a key that it needs, or with keys that don't agree."""
    where = given[table].origin.where or "command line"
    if not keys:
        return ConfigError(f"{table} {problem.removeprefix('Value error, ')} ({where})", hint=f"look at [{table}]")
    field = declaration(f"{table}.{keys[0]}")
    return ConfigError(
        f"{table} has no {keys[0]} ({where})", hint=f"it is {allowed(field)}" if field else "config.example.toml"
    )


def _nested(layer: Layer) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, given in layer.items():
        table, (*sections, key) = nested, name.split(".")
        for section in sections:
            table = table.setdefault(section, {})
        if is_named_table(name):
            table.setdefault(key, {})
        else:
            table[key] = given.value
    return nested


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number with too many digits"
    return reprlib.repr(value)
