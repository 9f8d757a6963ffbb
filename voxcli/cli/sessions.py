"""`voxcli sessions`: lists, shows, exports and deletes conversations."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli import completion
from voxcli.cli.common import ForceFlag, JsonFlag, note, print_json, print_text, write_private
from voxcli.cli.help import CommandGroup
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.core.store import Store, StoredSession

app = CommandGroup("List, show, export and delete conversations.")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=completion.sessions, help="Name of the session.")
]


class ExportFormat(StrEnum):
    MD = "md"
    JSON = "json"


@app.command("list")
def list_sessions(json_: JsonFlag = False) -> None:
    """List the sessions, most recently used first."""
    from voxcli.core import export

    with _store() as store:
        summaries = store.summaries()
    if json_:
        print_json({"sessions": [export.summary_as_json(each) for each in summaries]})
    elif summaries:
        print_text(export.as_list(summaries))
    else:
        note("no sessions yet; `voxcli once FILE --session NAME` begins one")


@app.command()
def show(name: NameArgument, json_: JsonFlag = False) -> None:
    """Show the turns of a session."""
    from voxcli.core import export

    with _store() as store:
        stored = _found(store, name)
    if json_:
        print_json(export.as_json(stored))
    else:
        print_text(export.as_text(stored))


@app.command()
def export(
    name: NameArgument,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="md: Markdown; json: one JSON object.")
    ] = ExportFormat.MD,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE instead of stdout.")
    ] = None,
    force: ForceFlag = False,
) -> None:
    """Export a session as Markdown or JSON."""
    from voxcli.core import export

    with _store() as store:
        stored, place = _found(store, name), str(store.path)
    if format_ is ExportFormat.MD:
        text = export.as_markdown(stored)
    else:
        text = json.dumps(export.as_json(stored), indent=2) + "\n"
    write_private(output or Path("-"), text, force=force, flag="--output", inputs=[place])


@app.command()
def delete(
    name: NameArgument, yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False
) -> None:
    """Delete a session permanently."""
    from voxcli.config.paths import data_folder
    from voxcli.core.export import turn_count
    from voxcli.core.store import Store

    with _store() as store:
        stored = _found(store, name)
    what = f"session {printable(stored.name)} ({turn_count(len(stored.turns))})"
    if not yes and not typer.confirm(f"Delete {what} permanently?", err=True):
        note("nothing was deleted")
        raise typer.Exit(1)
    with Store.open(data_folder(), notice=note) as store:
        store.delete(stored.name)
    note(f"deleted {what}")


def _store() -> "Store":
    """Return a copy of the stored sessions."""
    from voxcli.config.paths import data_folder
    from voxcli.core.store import Store

    return Store.read(data_folder(), notice=note)


def _found(store: "Store", name: str) -> "StoredSession":
    """Return a stored session. If there is none, the ConfigError suggests similar names."""
    from difflib import get_close_matches

    from voxcli.core.session import session_name
    from voxcli.errors import ConfigError

    name = session_name(name)
    stored = store.stored(name)
    if stored is None:
        nearest = get_close_matches(name, [each.name for each in store.summaries()], cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else "voxcli sessions list shows them all"
        raise ConfigError(f"there is no session named {name!r}", hint=hint)
    return stored
