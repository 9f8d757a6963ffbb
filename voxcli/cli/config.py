"""`voxcli config`: what the settings are, where they stand, and a file to begin with."""

import json
from pathlib import Path
from typing import Annotated

import typer

from voxcli.cli.common import ConfigFlag, JsonFlag, note

app = typer.Typer(no_args_is_help=True, help="Show the settings, find their file, begin one.")


@app.command()
def show(config: ConfigFlag = None, json_: JsonFlag = False) -> None:
    """Show the settings in force, and where each comes from."""
    from voxcli.config import explain, values
    from voxcli.config_text import as_toml

    settings, origins = explain(config, {})
    if not json_:
        typer.echo(as_toml(settings, origins), nl=False)
        return
    shown = {
        name: {"value": value, "origin": origins[name].kind, "where": origins[name].where}
        for name, value in values(settings).items()
    }
    typer.echo(json.dumps(shown))


@app.command()
def path() -> None:
    """Print the path of the settings file that is read where `--config` names none."""
    from voxcli.paths import config_file

    typer.echo(str(config_file()))


@app.command()
def init(
    config: ConfigFlag = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write a settings file that documents every setting and changes none."""
    from voxcli.config_text import example
    from voxcli.paths import config_file

    target = config or config_file()
    _write_private(target, example(), overwrite=force)
    note(f"wrote {target}")


def _write_private(target: Path, text: str, *, overwrite: bool) -> None:
    """Write a file that only its owner can read, in folders that only their owner can enter.

    Raises:
        ConfigError: it exists and is not to be overwritten, or can't be written.
    """
    from voxcli.errors import ConfigError
    from voxcli.paths import owner_only

    try:
        for folder in reversed([folder for folder in target.parents if not folder.exists()]):
            folder.mkdir(mode=0o700)
        with open(target, "w" if overwrite else "x", encoding="utf-8", newline="\n", opener=owner_only) as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target} exists", hint="add --force to write over it") from error
    except OSError as error:
        raise ConfigError(f"can't write {target}: {error.strerror}", hint="choose another --config FILE") from error
