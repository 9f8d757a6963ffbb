"""The command line: parses flags, calls `voxcli.app`, maps errors to exit codes.

Commands import inside their functions, so that `--help` imports nothing heavy.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from voxcli import __version__
from voxcli.cli import config, models, sessions
from voxcli.cli.batch import batch
from voxcli.cli.chat import chat
from voxcli.cli.common import INTERRUPTED, VerboseFlag, print_text, report
from voxcli.cli.devices import devices
from voxcli.cli.doctor import doctor
from voxcli.cli.log import logging_to_file
from voxcli.cli.once import once
from voxcli.cli.results import results
from voxcli.cli.voices import voices
from voxcli.errors import VoxError

log = logging.getLogger(__name__)


class _Root(TyperGroup):
    """Turns every error into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            ctx.with_resource(logging_to_file())
            return super().invoke(ctx)
        except typer.Abort as error:
            if isinstance(
                error.__context__, KeyboardInterrupt
            ):  # Ctrl-C at a confirmation prompt; Typer handles it elsewhere
                raise typer.Exit(INTERRUPTED) from None
            raise
        except (typer.Exit, TyperException):  # Typer prints exits and usage errors
            raise
        except Exception as error:  # the only place that prints errors
            log.info("failed: %s", error.code if isinstance(error, VoxError) else type(error).__name__)
            raise typer.Exit(report(error, verbose="verbose" in ctx.meta)) from error


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Talk with Voxtral from a terminal: one audio pass per turn, spoken replies.",
)
app.command()(chat)
app.command()(once)
app.command()(batch)
app.command()(results)
app.add_typer(sessions.app, name="sessions")
app.add_typer(models.app, name="models")
app.command()(voices)
app.command()(devices)
app.add_typer(config.app, name="config")
app.command()(doctor)


def _show_version(value: bool) -> None:
    if value:
        print_text(f"voxcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    _verbose: VerboseFlag = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of the `voxcli` script."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    app(prog_name="voxcli")


def _nowhere() -> TextIO:
    """Return a stream that discards text, for a standard stream that was closed before the program started."""
    return Path(os.devnull).open("w", encoding="utf-8")
