"""Formats settings as TOML: the example file, and the settings in force."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from voxcli.config.loading import Origin
from voxcli.config.schema import Settings, allowed, fields, named_tables, values
from voxcli.config.tables import Table

INTRODUCTION = """\
# Settings of voxcli. What stands here are the defaults: take away the `#` before a setting to change it.
# Flags come before the VOXCLI_* variables of the environment, and these before this file.
"""


def as_toml(settings: Settings, origins: Mapping[str, Origin]) -> str:
    """Return the settings in force as TOML, each with its origin in a comment."""
    return _tables(
        {
            name: f"{_assignment(name, value)}  # {_comment(origins[name])}\n"
            for name, value in values(settings).items()
            if value is not None
        }
    )


def example() -> str:
    """Return the settings file that documents every setting and changes none."""
    documented = INTRODUCTION + _tables({name: _documented(name, field) for name, field in fields().items()})
    return documented + "".join(_documented_table(section, kind) for section, kind in named_tables().items())


def table_as_toml(name: str, table: Table) -> str:
    """Return a table that the user names as TOML, without keys that have no value."""
    values = {key: value for key in type(table).model_fields if (value := getattr(table, key)) not in (None, {})}
    return _tables({f"{name}.{key}": f"{_assignment(key, value)}\n" for key, value in values.items()}).lstrip()


def _tables(entries: Mapping[str, str]) -> str:
    """Join entries by dotted name, with a header before the first entry of each table."""
    text = current = ""
    for name, entry in entries.items():
        table = name.rpartition(".")[0]
        if table != current:
            current = table
            text += f"\n[{table}]\n"
        text += entry
    return text


def _documented(name: str, field: FieldInfo) -> str:
    return f"\n# {field.description}\n# Allowed: {allowed(field)}.\n# {_assignment(name, field.default)}\n"


def _documented_table(section: str, kind: type[Table]) -> str:
    """Return the description of the tables that users name in a section, all of it in comments."""
    keys = [f"#   {key}: {field.description}\n#     {allowed(field)}\n" for key, field in kind.model_fields.items()]
    lines = "".join(f"#   {line}".rstrip() + "\n" for line in kind.example.splitlines())
    title = f"Tables [{section}.NAME], with names of your own: {kind.__doc__}"
    return f"\n# {title}\n{''.join(keys)}#\n{lines}"


def _assignment(name: str, value: Any) -> str:
    """Return `key = value` in TOML."""
    return f"{name.rpartition('.')[2]} = {_value(value)}"


def _value(value: Any) -> str:
    """Return a value in TOML. Its strings are those of JSON, except for one control character."""
    if isinstance(value, dict):
        entries = ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items())
        return f"{{{entries}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _comment(origin: Origin) -> str:
    """Return an origin that fits in a comment: a file name may contain a line break."""
    return "".join(char if char.isprintable() else "?" for char in str(origin))
