"""The command line: read flags, build the parts, run, exit code; no logic.

Nothing heavy is imported before a command needs it: commands import inside their functions.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from voxcli import __version__
from voxcli.cli import config, models, sessions
from voxcli.cli.common import VerboseFlag, report
from voxcli.cli.doctor import doctor
from voxcli.cli.once import once
from voxcli.cli.voices import voices

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class _Root(TyperGroup):
    """Where every error becomes a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read the output has enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort, TyperException):  # exits and usage errors: Typer's to print
            raise
        except Exception as error:  # the one place that prints errors
            raise typer.Exit(report(error, verbose="verbose" in ctx.meta)) from error


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Talk with Voxtral from a terminal: one audio pass a turn, replies spoken aloud.",
)
app.command()(once)
app.add_typer(sessions.app, name="sessions")
app.add_typer(models.app, name="models")
app.command()(voices)
app.add_typer(config.app, name="config")
app.command()(doctor)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"voxcli {__version__}")
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
    app(prog_name="voxcli")
