"""What every command shares: flags, and the one place where errors become a line and an exit code."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFlag = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file to read instead of the default one.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def note(text: str) -> None:
    """Say something beside the output: on stderr, dim where that is a terminal."""
    typer.secho(text, err=True, dim=True)


def report_error(error: Exception) -> int:
    """Print an error in one line, with its hint in a second; return the exit code."""
    from voxcli.errors import VoxError

    known = isinstance(error, VoxError)
    message = str(error) if known else f"unexpected {type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, VoxError) else "run again with --verbose to see where, and report it"
    typer.echo(f"voxcli: {_one_line(message)}", err=True)
    if hint:
        typer.echo(f"  {_one_line(hint)}", err=True)
    return error.exit_code if isinstance(error, VoxError) else 1


def _one_line(text: str) -> str:
    """Return text that can't move the cursor or break the line: it may hold a file's name."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.splitlines()))


def flags(**given: Any) -> dict[str, Any]:
    """Return the flags that were given on the command line, as settings."""
    return {name: value for name, value in given.items() if value is not None}
