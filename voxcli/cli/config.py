"""`voxcli config`: shows the settings, the path of their file, and writes an example."""

from pathlib import Path

from voxcli.cli.common import ConfigFlag, ForceFlag, JsonFlag, note, print_json, print_text, write_private
from voxcli.cli.help import CommandGroup

app = CommandGroup("Show the settings, find or create the settings file.")


@app.command()
def show(config: ConfigFlag = None, json_: JsonFlag = False) -> None:
    """Show the settings in force and the origin of each."""
    from voxcli.config.loading import explain, values
    from voxcli.config.toml_text import as_toml

    settings, origins = explain(config, {})
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
