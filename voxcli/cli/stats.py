"""`voxcli stats`: shows the latency of spoken turns over time."""

from pathlib import Path
from typing import Annotated

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import ForceFlag, JsonFlag, VerboseFlag, note, print_json, print_text, write_private


def stats(
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="SESSION", autocompletion=completion.sessions, help="Name of a session; all by default."
        ),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE.svg", help="Write a picture of the tables.")
    ] = None,
    force: ForceFlag = False,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Show how long you waited for replies in chats: each stage, its p50 and p95, per day."""
    from voxcli.app.stats import as_json, as_svg, as_tables
    from voxcli.cli.sessions import found, read_store

    with read_store() as store:
        name = None if session is None else found(store, session).name
        turns, place = store.spoken_turns(name), str(store.path)
    if svg:
        write_private(svg, as_svg(turns, name), force=force, flag="--svg", inputs=[place])
    if json:
        print_json(as_json(turns, name))
    elif not turns:
        note("no turn was spoken in a chat yet; typed turns don't count")
    elif not svg:
        print_text(as_tables(turns, name), end="")
