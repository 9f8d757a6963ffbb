"""`voxcli facts`: shows and changes what chats remember about the user."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import JsonFlag, note, print_json, print_text, text_or_stdin
from voxcli.cli.interface.editor import check_terminal, edit_again, run_editor
from voxcli.cli.interface.help import CommandGroup
from voxcli.errors import ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.core.storage.facts import FactFile

app = CommandGroup("Show and change what chats remember about you.")


@app.command("list")
def list_facts(json_: JsonFlag = False) -> None:
    """List the facts with their numbers, the oldest first."""
    file = _file()
    facts = file.read()
    if json_:
        print_json({"facts": _numbered(facts), "path": str(file.path)})
    elif facts:
        width = len(str(len(facts)))
        print_text("\n".join(f"{number:>{width}}  {printable(fact)}" for number, fact in enumerate(facts, 1)))
    else:
        note("no facts yet; `voxcli chat --facts` finds some, `voxcli facts add` adds one")


@app.command()
def add(
    words: Annotated[
        list[str], typer.Argument(metavar="TEXT|-", help="The fact; - reads facts from stdin, one a line.")
    ],
    json_: JsonFlag = False,
) -> None:
    """Add a fact."""
    text = text_or_stdin(" ".join(words))
    from_stdin = words == ["-"]
    facts = [line for line in text.split("\n") if line.strip()] if from_stdin else [text]
    file = _file()
    added = file.add(facts)
    if json_:
        kept = file.read()
        print_json({"added": [each for each in _numbered(kept) if each["text"] in added]})
        return
    for fact in added:
        note(f"added: {fact}")
    if not added:
        note("nothing was added: that is known already" if facts else "nothing was added: there was no text")


@app.command()
def edit() -> None:
    """Open the facts in $EDITOR; they are checked before they are put in place."""
    file = _file()
    check_terminal('voxcli facts add "name: Anna"')
    note(f"{'changed' if file.edit(run_editor, edit_again) else 'unchanged'}: {file.path}")


@app.command()
def delete(
    numbers: Annotated[
        list[int] | None,
        typer.Argument(metavar="NUMBER...", autocompletion=completion.facts, help="Numbers as `list` shows them."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete all facts.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete all without asking.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Delete facts permanently."""
    if bool(numbers) == all_:
        raise ConfigError("delete needs the numbers of facts, or --all", hint="voxcli facts list shows the numbers")
    file = _file()
    if all_:
        numbers = list(range(1, 1 + len(file.read())))
        if numbers and not yes and not typer.confirm(f"Delete all {len(numbers)} facts permanently?", err=True):
            note("nothing was deleted")
            raise typer.Exit(1)
    deleted = file.delete(numbers) if numbers else ()
    if json_:
        print_json({"deleted": list(deleted)})
        return
    for fact in deleted:
        note(f"deleted: {fact}")
    if not deleted:
        note("there are no facts")


@app.command()
def path() -> None:
    """Print the path of the file that the facts are in."""
    print_text(str(_file().path))


def _numbered(facts: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"number": number, "text": fact} for number, fact in enumerate(facts, 1)]


def _file() -> "FactFile":
    from voxcli.app.facts import fact_file

    return fact_file()
