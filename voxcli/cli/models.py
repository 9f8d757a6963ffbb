"""`voxcli models`: lists models and fetches them."""

from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import JsonFlag, note, print_json, print_text
from voxcli.cli.interface.help import CommandGroup
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.engines.voxtral.checkpoint.catalog import Listed

app = CommandGroup("List and fetch models.")
EMBEDDED = "embedded"


class Row(TypedDict):
    """A model as `models list --json` shows it."""

    name: str  # What `models pull` takes.
    id: str
    bytes: int | None  # size on disk; None for an unfinished download without a short name
    cached: bool
    path: str | None
    fetched_bytes: int  # Size so far of an incomplete model.
    get: str | None  # command that fetches what is missing


@app.command("list")
def list_models(json_output: JsonFlag = False) -> None:
    """List the models with a short name and all other Voxtral models on this machine."""
    from voxcli.engines.voxtral.checkpoint import catalog

    rows = [_embedded_row(), *(_checkpoint_row(model) for model in catalog.listed()), _turn_model_row()]
    if json_output:
        print_json({"models": rows})
        return
    table = [("NAME", "ID", "SIZE", "WHERE"), *((row["name"], row["id"], _size(row), _where(row)) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print_text(printable("  ".join([*cells, line[3]])))


@app.command("pull")
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=completion.models,
            help="Short name, or id on the hub; for the embedded engine a GGUF file or a size of Whisper.",
        ),
    ],
) -> None:
    """Fetch a model and print where it is. An interrupted download is continued."""
    from voxcli.app.views import download_progress
    from voxcli.chat.speech import turn_model
    from voxcli.config import paths
    from voxcli.engines.embedded import chosen, weights
    from voxcli.engines.voxtral.checkpoint import catalog

    if model == EMBEDDED:
        folder = weights.prepare(paths.cache_folder(), notice=note)
    elif model == turn_model.NAME:
        folder = turn_model.fetch(paths.cache_folder(), notice=note).parent
    elif wanted := chosen.hub_model(model):
        note(f"fetching {printable(model)}")
        with download_progress() as show:
            folder = chosen.pull(wanted, show, lambda line: note(printable(line)))
    elif here := catalog.locate(model):
        note(f"{model} is already here")
        folder = here
    else:
        note(f"fetching {printable(str(catalog.resolve(model)))}")
        with download_progress() as show:
            folder = catalog.fetch(model, show)
    print_text(str(folder))


def _embedded_row() -> Row:
    from voxcli.config import paths
    from voxcli.engines.embedded import weights

    folder = weights.prepared(paths.cache_folder())
    return {
        "name": EMBEDDED,
        "id": "Whisper base + SmolLM2-135M-Instruct",
        "bytes": weights.TOTAL_BYTES,
        "cached": folder is not None,
        "path": str(folder) if folder else None,
        "fetched_bytes": 0,
        "get": weights.INSTALL if not folder and weights.missing_packages() else None,
    }


def _turn_model_row() -> Row:
    from voxcli.chat.speech import turn_model
    from voxcli.config import paths

    path = turn_model.fetched(paths.cache_folder())
    return {
        "name": turn_model.NAME,
        "id": turn_model.SMART_TURN.repo_id,
        "bytes": turn_model.SMART_TURN.bytes,
        "cached": path is not None,
        "path": str(path.parent) if path else None,
        "fetched_bytes": 0,
        "get": None if path else turn_model.PULL,
    }


def _checkpoint_row(model: "Listed") -> Row:
    return {
        "name": model.name,
        "id": model.repo_id,
        "bytes": model.bytes,
        "cached": model.folder is not None,
        "path": str(model.folder) if model.folder else None,
        "fetched_bytes": 0 if model.folder else model.fetched_bytes,
        "get": None if model.folder else f"voxcli models pull {model.name}",
    }


def _size(row: Row) -> str:
    return f"{row['bytes'] / 1e9:.2f} GB" if row["bytes"] is not None else "?"


def _where(row: Row) -> str:
    if row["path"]:
        return row["path"]
    if row["get"] is None:
        return "in its Python packages"
    here = f"{row['fetched_bytes'] / 1e9:.2f} GB here" if row["fetched_bytes"] else "not here"
    return f"{here}: {row['get']}"
