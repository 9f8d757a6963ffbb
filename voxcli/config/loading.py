"""Loads the settings. Flags override `VOXCLI_*` variables, these the settings file, and this the defaults.

`voxcli.config.schema` declares the settings and pydantic checks them. This module merges the sources, records where
each value came from, and raises errors that name the place and the nearest setting.
"""

import os
import re
import reprlib
import sys
import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from voxcli.config.paths import config_file
from voxcli.config.schema import (
    DEFAULT_INSTRUCTIONS,
    PREFIX,
    Settings,
    allowed,
    fields,
    is_table,
    number_type,
    values,
    variable,
)
from voxcli.config.values import INSTRUCTIONS_CHARACTERS
from voxcli.errors import ConfigError

__all__ = [
    "DEFAULT_INSTRUCTIONS",
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
FILE_BYTES = 1 << 20  # a settings file has a few kilobytes; a larger one is something else
ENTRY_START = re.compile(r",(?=\s*\w+\s*=)")  # Values may contain commas.
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Origin:
    """The source of a setting's value."""

    kind: Literal["default", "file", "environment", "flag"]
    where: str = ""  # file and line, or name of the variable

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".rstrip()


@dataclass(frozen=True)
class Given:
    """A value from one source, before it is checked."""

    value: Any
    origin: Origin
    folder: Path = Path()  # base of relative `@FILE` names


Layer = dict[str, Given]  # by dotted name


def load(path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings in force.

    Args:
        path: the settings file, "-" for standard input; None for the default file, which need not exist.
        flags: by dotted name: `{"engine": "embedded", "reply.max_tokens": 64}`.
        environ: holds the `VOXCLI_*` variables; an empty variable counts as not set.

    Raises:
        ConfigError: a file can't be read or is not TOML, a setting is unknown, or a value is not allowed.
    """
    return explain(path, flags, environ)[0]


def explain(
    path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> tuple[Settings, dict[str, Origin]]:
    """Return the settings in force, like `load`, and the origin of each by dotted name."""
    given = _file_layer(path) | _environment_layer(environ) | _flag_layer(flags)
    if "instructions" in given:
        given["instructions"] = _with_file_read(given["instructions"])
    default = Origin("default")
    return _checked(given), {name: given[name].origin if name in given else default for name in fields()}


def check_text(text: str, path: Path) -> None:
    """Check a text that is to become the settings file `path`; raise ConfigError if `load` would."""
    layer = _text_layer(text, path)
    if "instructions" in layer:
        layer["instructions"] = _with_file_read(layer["instructions"])
    _checked(layer)


def value_of(name: str, text: str) -> Any:
    """Return the value of a setting that the command line gives as text.

    Raises:
        ConfigError: there is no such setting, or the value is not allowed.
    """
    known = fields()
    if name not in known:
        raise _unknown("setting", name, known, "command line")
    given = Given(_from_text(known[name], text), Origin("file"), Path.cwd())
    _checked({name: _with_file_read(given) if name == "instructions" else given})
    return given.value


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    known = fields()
    for name in flags:
        if name not in known:
            raise _unknown("setting", name, known, "command line")
    return {
        name: Given(_from_text(known[name], value) if isinstance(value, str) else value, Origin("flag"))
        for name, value in flags.items()
    }


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    known = {variable(name): name for name in fields()}
    layer: Layer = {}
    for key, text in environ.items():
        if not key.startswith(PREFIX) or key in NOT_SETTINGS or not text:
            continue
        if key not in known:
            raise _unknown("variable", key, known, "environment")
        value = _from_text(fields()[known[key]], text)
        layer[known[key]] = Given(value, Origin("environment", key))
    return layer


def _from_text(field: FieldInfo, text: str) -> Any:
    """Convert a text to the number, boolean or table that a setting needs; return other text unchanged.

    The text of a table is "KEY=VALUE,KEY=VALUE".
    """
    if field.annotation is bool:
        return TRUTHS.get(text.lower(), text)
    if is_table(field):
        pairs = [pair.partition("=") for pair in ENTRY_START.split(text)]
        return {key.strip(): value.strip() for key, _, value in pairs}
    kind = number_type(field)
    try:
        return kind(text) if kind else text
    except ValueError:
        return text


def _file_layer(path: Path | None) -> Layer:
    if path is None:
        path = config_file()
        try:
            text = _read(path, FILE_BYTES, "the settings file")
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return {}
            raise
    else:
        text = _read(path, FILE_BYTES, "the settings file")
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
        if name in Settings.model_fields and name not in fields():
            raise ConfigError(f"{name} is a section, not a setting ({where})", hint=f"write [{name}] on its own line")
        if name not in fields():
            raise _unknown("setting", name, fields() if "." in name else fields() | Settings.model_fields, where)
        layer[name] = Given(value, Origin("file", where), path.parent)
    return layer


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a parsed file by dotted name; an empty known section adds none."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        is_section = name in Settings.model_fields and name not in fields()
        if isinstance(value, dict) and (is_section or (value and name not in fields())):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
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


def _unknown(what: str, name: str, known: Mapping[str, Any], where: str) -> ConfigError:
    nearest = get_close_matches(name, known, 1, cutoff=0.0)[0]
    return ConfigError(f"unknown {what} {_shown(name)[1:-1]} ({where})", hint=f"did you mean {nearest}?")


def _with_file_read(given: Given) -> Given:
    """Replace instructions of the form `@FILE` by the text of the file."""
    if not isinstance(given.value, str) or not given.value.startswith("@"):
        return given
    try:
        path = given.folder / Path(given.value[1:]).expanduser()
    except RuntimeError as error:  # "~name" of an unknown user
        raise ConfigError(f"can't read instructions from {given.value[1:]}: {error}") from error
    text = _read(path, 4 * INSTRUCTIONS_CHARACTERS, "instructions from")  # a character takes at most 4 bytes
    return Given(text.strip(), Origin(given.origin.kind, f"{given.origin.where} @{path}".strip()))


def _read(path: Path, limit: int, what: str) -> str:
    """Return the text of a file of at most `limit` bytes; "-" is standard input."""
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"can't read {what} {path}: {reason}", hint=_reading_hint(error)) from error
    if len(content) > limit:
        raise ConfigError(f"can't read {what} {path}: more than {limit} bytes", hint="check that it is the right file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"can't read {what} {path}: not UTF-8 at byte {error.start}", hint="save it as UTF-8"
        ) from error


def _reading_hint(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "check the name; `voxcli config init` writes a settings file"
    return "give the name of a text file that you can read"


def _checked(given: Layer) -> Settings:
    try:
        return Settings.model_validate(_nested(given))
    except ValidationError as error:
        first, *rest = (str(part) for part in error.errors()[0]["loc"])
        name = first if first in fields() else f"{first}.{rest[0]}"
        value, origin = given[name].value, given[name].origin
        must, hint = allowed(fields()[name]), ""
        where = origin.where or "command line"
        if origin.kind == "flag":
            name, hint = f"--{name.rpartition('.')[2].replace('_', '-')}", "-h lists the flags, after any command"
        raise ConfigError(f"{name} is {_shown(value)} ({where}), but must be {must}", hint=hint) from error


def _nested(layer: Layer) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, given in layer.items():
        section, _, key = name.rpartition(".")
        (tables.setdefault(section, {}) if section else tables)[key] = given.value
    return tables


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number with too many digits"
    return reprlib.repr(value)
