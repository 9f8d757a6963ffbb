"""`voxcli sessions`: finds, shows, exports, changes and deletes conversations."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import ForceFlag, JsonFlag, note, print_json, print_text, write_private
from voxcli.cli.interface.help import CommandGroup
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.core.storage.store import Store
    from voxcli.core.storage.stored import StoredSession
    from voxcli.errors import ConfigError

app = CommandGroup("Find, show, export, change and delete conversations.")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=completion.sessions, help="Name of the session.")
]


class ExportFormat(StrEnum):
    MD = "md"
    HTML = "html"
    JSON = "json"


@app.command("list")
def list_sessions(json_: JsonFlag = False) -> None:
    """List the sessions, most recently used first."""
    from voxcli.core.storage import export

    with read_store() as store:
        summaries = store.summaries()
    if json_:
        print_json({"sessions": [export.summary_as_json(each) for each in summaries]})
    elif summaries:
        print_text(export.as_list(summaries))
    else:
        note("no sessions yet; `voxcli chat` begins one")


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Words of a turn, in any order.")],
    most: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Turns to show, the newest first.")] = 20,
    json_: JsonFlag = False,
) -> None:
    """Search what was said, typed and replied for words."""
    from voxcli.core.storage import export

    text = " ".join(words)
    with read_store() as store:
        hits = store.search(text)
    if json_:
        print_json({"hits": [export.hit_as_json(hit) for hit in hits[:most]]})
    elif hits:
        print_text(export.as_hits(hits[:most], text))
    else:
        note("no turn has all of these words")
    if len(hits) > most and not json_:
        note(f"{len(hits) - most} more; -n {len(hits)} shows all")


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the session.", show_default=False)] = None,
    last: Annotated[bool, typer.Option("--last", help="Show the session that was used last.")] = False,
    most: Annotated[
        int | None, typer.Option("-n", metavar="N", min=1, help="Show only the newest N turns.", show_default=False)
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Show the turns of a session."""
    from voxcli.core.storage import export
    from voxcli.errors import ConfigError

    if (name is None) != last:
        raise ConfigError("show needs the name of a session, or --last", hint="voxcli sessions list shows all names")
    with read_store() as store:
        stored = _last(store) if name is None else found(store, name)
    if most is not None:
        stored = stored.last(most)
    if json_:
        print_json(export.as_json(stored))
    else:
        print_text(export.as_text(stored))


@app.command()
def export(
    name: NameArgument,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="md: Markdown; html: one page; json: one JSON object.")
    ] = ExportFormat.MD,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE instead of stdout.")
    ] = None,
    recordings: Annotated[
        Path | None,
        typer.Option("--recordings", metavar="DIR", help="Folder of `chat --record`, for the audio of an HTML page."),
    ] = None,
    force: ForceFlag = False,
) -> None:
    """Export a session as Markdown, HTML or JSON."""
    from voxcli.core.storage import export
    from voxcli.errors import ConfigError

    if recordings and format_ is not ExportFormat.HTML:
        raise ConfigError("--recordings needs --format html", hint="only a page plays audio")
    with read_store() as store:
        stored, place = found(store, name), str(store.path)
    if format_ is ExportFormat.MD:
        text = export.as_markdown(stored)
    elif format_ is ExportFormat.HTML:
        text = _page(stored, recordings)
    else:
        text = json.dumps(export.as_json(stored), indent=2) + "\n"
    write_private(output or Path("-"), text, force=force, flag="--output", inputs=[place])


def _page(stored: "StoredSession", recordings: Path | None) -> str:
    from voxcli.core.storage.html_page import as_html

    if recordings is None:
        return as_html(stored, {})
    from voxcli.chat.recording import recorded_utterances

    found = recorded_utterances(recordings, stored)
    if not found:
        note(f"no turn of this session was recorded in {recordings}")
    return as_html(stored, found)


@app.command()
def rename(
    name: Annotated[str, typer.Argument(metavar="OLD", help="Name of the session.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
) -> None:
    """Give a session another name."""
    from voxcli.core.session import session_name

    with read_store() as store:
        stored = found(store, name)
    new = session_name(new)
    with _changed() as store:
        if not store.rename(stored.name, new):
            raise _taken(new)
    note(f"{stored.name} is now {new}")


@app.command()
def fork(
    name: NameArgument,
    at: Annotated[int | None, typer.Option("--at", metavar="N", min=1, help="Last turn to copy.")] = None,
    new: Annotated[str | None, typer.Option("--as", metavar="NEW", help="Name of the copy.")] = None,
) -> None:
    """Copy a session, all of it or up to a turn, to go on from there."""
    from voxcli.core.session import session_name
    from voxcli.errors import ConfigError

    with read_store() as store:
        stored = found(store, name)
        if new is not None and store.stored(new := session_name(new)):
            raise _taken(new)
    numbers = [each.number for each in stored.turns]
    if at is not None and at not in numbers:
        raise ConfigError(f"there is no turn {at} in {stored.name!r}", hint=f"its last one is {numbers[-1]}")
    with _changed() as store:
        print_text(printable(store.fork(stored.name, new or stored.name, at=at)))


@app.command()
def undo(name: NameArgument) -> None:
    """Undo the last turn of a session: later prompts leave it out."""
    with read_store() as store:
        stored = found(store, name)
    with _changed() as store:
        number = store.undo(stored.name)
    note(f"turn {number} of {stored.name} is undone; `voxcli sessions redo` takes that back until the next turn")


@app.command()
def redo(name: NameArgument) -> None:
    """Take back the last undo of a session, if no turn came after it."""
    from voxcli.core.session import session_name
    from voxcli.errors import ConfigError

    name = session_name(name)
    with _changed() as store:
        number = store.redo(name)
    if number is None:
        raise ConfigError(f"nothing is undone in {name!r}", hint="voxcli sessions list shows all sessions")
    note(f"turn {number} of {name} is back")


@app.command()
def delete(
    name: NameArgument, yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False
) -> None:
    """Delete a session permanently."""
    from voxcli.core.session import session_name
    from voxcli.core.storage.export import turn_count

    name = session_name(name)
    with read_store() as store:
        is_undone = store.stored(name) is None and store.exists(name)  # all its turns are
        turns = 0 if is_undone else len(found(store, name).turns)
    what = f"session {printable(name)} ({turn_count(turns)})"
    if not yes and not typer.confirm(f"Delete {what} permanently?", err=True):
        note("nothing was deleted")
        raise typer.Exit(1)
    with _changed() as store:
        store.delete(name)
    note(f"deleted {what}")


def read_store() -> "Store":
    """Return a copy of the stored sessions."""
    from voxcli.config.paths import data_folder
    from voxcli.core.storage.store import Store

    return Store.read(data_folder(), notice=note)


def _changed() -> "Store":
    """Return the stored sessions, to change them."""
    from voxcli.config.paths import data_folder
    from voxcli.core.storage.store import Store

    return Store.open(data_folder(), notice=note)


def _taken(name: str) -> "ConfigError":
    from voxcli.errors import ConfigError

    return ConfigError(f"there is a session named {name!r} already", hint="choose another name")


def _last(store: "Store") -> "StoredSession":
    """Return the session that was used last."""
    from voxcli.errors import ConfigError

    summaries = store.summaries()
    stored = store.stored(summaries[0].name) if summaries else None
    if stored is None:
        raise ConfigError("no sessions yet", hint="`voxcli chat` begins one")
    return stored


def found(store: "Store", name: str) -> "StoredSession":
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
