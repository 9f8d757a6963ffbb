"""What the command lines of the benchmarks share: errors in one line, a table on stdout, all figures in a file."""

import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import Figure, as_json, machine, markdown
from voxcli.cli.interface.common import ForceFlag, note, report
from voxcli.errors import ConfigError, VoxError
from voxcli.output_files import OutputFiles

__all__ = [
    "DeviceFlag",
    "ForceFlag",
    "JsonFlag",
    "ModelFlag",
    "command_line",
    "note",
    "publish",
    "require_writable",
    "write_json",
]

JsonFlag = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a file.")]
ModelFlag = Annotated[
    str, typer.Option("--model", metavar="random:SHAPE|ID", help="SHAPE: mini, small, 150m, 200m, tiny.")
]
DeviceFlag = Annotated[str, typer.Option("--device", metavar="auto|cuda|mps|cpu", help="Device to measure.")]


def command_line(measure: Callable[..., None]) -> typer.Typer:
    """Return the command line of a benchmark; a VoxError becomes one line, a hint and an exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    @wraps(measure)
    def run(*arguments: Any, **flags: Any) -> None:
        try:
            measure(*arguments, **flags)
        except VoxError as error:
            raise typer.Exit(report(error, verbose=False)) from error

    return app


def require_writable(path: Path | None, *, force: bool, inputs: Sequence[str] = ()) -> None:
    """Raise ConfigError before anything is measured if the figures can't be written.

    Args:
        force: an existing file is overwritten.
        inputs: files that the benchmark reads.
    """
    if path:
        files = OutputFiles(force=force)
        files.add_inputs(inputs)
        files.check(path, "--json")
        _write(path, "a", "")


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write a record as JSON, if there is a file for it; raises ConfigError."""
    if path:
        _write(path, "w", json.dumps(record, indent=1) + "\n")


def publish(figures: Sequence[Figure], path: Path | None) -> None:
    """Print figures as a Markdown table, and write them as JSON if there is a file for it."""
    about = machine()
    write_json(path, as_json(figures, about))
    typer.echo(markdown(figures, about))


def _write(path: Path, mode: str, text: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="choose another file for --json") from error
