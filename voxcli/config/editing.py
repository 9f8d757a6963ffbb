"""Changes the settings file: one setting or table, with comments and order kept, or the whole text in an editor."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from voxcli.config.loading import check_text, value_of
from voxcli.config.paths import replace_privately
from voxcli.config.toml_text import example
from voxcli.errors import ConfigError


def set_value(path: Path, name: str, text: str) -> Any:
    """Set one setting in a file, which is created if it is missing; return the value.

    Args:
        name: dotted, such as "live.barge_in".
        text: the value as a person types it: `false`, `0.5`, `@prompt.txt`.

    Raises:
        ConfigError: there is no such setting, the value is not allowed, the file is not TOML or can't be written.
            The file is unchanged.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    value = value_of(name, text)
    section, _, key = name.rpartition(".")
    try:
        document = tomlkit.parse(_text_of(path))
        table: Any = document
        sections = section.split(".") if section else []
        for count, part in enumerate(sections, 1):
            table = table.setdefault(part, tomlkit.table(is_super_table=count < len(sections)))
        table[key] = value
        changed = tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, AttributeError) as error:  # the last two: the section is a value
        raise ConfigError(f"{path} is not TOML: {error}", hint="correct it: voxcli config edit") from error
    check_text(changed, path)
    _replace(path, changed)
    return value


def add_table(path: Path, name: str, values: Mapping[str, Any], *, force: bool) -> None:
    """Add a table that the user names to a file, which is created if it is missing.

    Args:
        name: dotted, such as "personas.cook".
        values: by key, as they stand in the file.
        force: a table of that name is replaced.

    Raises:
        ConfigError: there is a table of that name, a value is not allowed, or the file can't be written. The file is
            unchanged.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    section, _, key = name.partition(".")
    table = tomlkit.table()
    for entry, value in values.items():
        is_long = isinstance(value, str) and "\n" in value
        table[entry] = tomlkit.string(value, multiline=True) if is_long else tomlkit.item(value)
    try:
        document = tomlkit.parse(_text_of(path))
        tables: Any = document.setdefault(section, tomlkit.table(is_super_table=True))
        if key in tables and not force:
            raise ConfigError(f"{path} has {name} already", hint="--force replaces it")
        tables[key] = table
        changed = tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="correct it: voxcli config edit") from error
    check_text(changed, path)
    _replace(path, changed)


def edit(path: Path, run_editor: Callable[[Path], None], edit_again: Callable[[ConfigError], bool]) -> bool:
    """Let the user edit a copy of a file, and put it in place if it is valid; return whether the file has changed.

    Args:
        run_editor: opens a file and returns when the user is done.
        edit_again: asked about a copy that is not valid.

    Raises:
        ConfigError: the copy is not valid and the user gave up, or it can't be written. The file is unchanged.
    """
    before = _text_of(path) or example()
    copy = path.with_name(f"{path.stem}.edited{path.suffix}")
    _replace(copy, before)
    try:
        while True:
            run_editor(copy)
            after = _text_of(copy)
            try:
                check_text(after, path)
                break
            except ConfigError as error:
                if not edit_again(error):
                    raise
        if after != before or not path.exists():
            _replace(path, after)
        return after != before
    finally:
        with suppress(OSError):
            copy.unlink()


def _text_of(path: Path) -> str:
    """Return the text of a file; empty if there is no such file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"can't read the settings file {path}: {reason}", hint="check that file") from error


def _replace(path: Path, text: str) -> None:
    """Write a file at once, readable by its owner alone; a link stays one."""
    try:
        replace_privately(path, text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="choose another --config FILE") from error
