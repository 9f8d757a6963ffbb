"""`voxcli config`: shows the settings and the path of their file, writes an example, changes settings."""

import os
from pathlib import Path
from typing import Annotated

import typer

from voxcli.cli.interface.common import (
    ConfigFlag,
    ForceFlag,
    JsonFlag,
    PersonaFlag,
    given,
    note,
    print_json,
    print_text,
    write_private,
)
from voxcli.cli.interface.editor import check_terminal, edit_again, run_editor
from voxcli.cli.interface.help import CommandGroup
from voxcli.errors import ConfigError

app = CommandGroup("Show and change the settings.")


@app.command()
def show(config: ConfigFlag = None, persona: PersonaFlag = None, json_: JsonFlag = False) -> None:
    """Show the settings in force and the origin of each."""
    from voxcli.config.loading import explain, values
    from voxcli.config.toml_text import as_toml

    settings, origins = explain(config, given(persona=persona))
    if not json_:
        print_text(as_toml(settings, origins), end="")
        return
    shown = {
        name: {"value": value, "origin": origins[name].kind, "where": origins[name].where}
        for name, value in values(settings).items()
    }
    print_json(shown)


@app.command()
def path() -> None:
    """Print the path of the settings file that is read without --config."""
    from voxcli.config.paths import config_file

    print_text(str(config_file()))


@app.command()
def init(config: ConfigFlag = None, force: ForceFlag = False) -> None:
    """Write a settings file that documents every setting and changes none."""
    from voxcli.config.paths import config_file
    from voxcli.config.toml_text import example

    target = config or config_file()
    write_private(target, example(), force=force, flag="--config")
    if target != Path("-"):
        note(f"wrote {target}")


@app.command("set")
def set_(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The setting, such as live.barge_in.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its value, such as false.")],
    config: ConfigFlag = None,
) -> None:
    """Change a setting in the settings file. Comments and order are kept; a value that is not allowed is refused."""
    from voxcli.config.editing import set_value
    from voxcli.config.schema import variable

    target = file_to_change(config)
    set_value(target, key, value)
    note(f"{key} is set in {target}")
    if os.environ.get(variable(key)):
        note(f"{variable(key)} in the environment overrides it")


@app.command()
def edit(config: ConfigFlag = None) -> None:
    """Open the settings file in $EDITOR; it is checked before it is put in place."""
    from voxcli.config.editing import edit as edit_file

    target = file_to_change(config)
    check_terminal("voxcli config set KEY VALUE")
    note(f"{'changed' if edit_file(target, run_editor, edit_again) else 'unchanged'}: {target}")


def file_to_change(config: Path | None) -> Path:
    """Return the settings file to change."""
    from voxcli.config.paths import config_file

    if config == Path("-"):
        raise ConfigError("--config needs a file here; - is standard input", hint="--config FILE")
    return (config or config_file()).expanduser()
