"""The command line: parses flags, calls `voxcli.app`, maps errors to exit codes.

Commands import inside their functions, so that `--help` imports nothing heavy.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.exceptions import TyperException

from voxcli import __version__
from voxcli.cli import config, facts, models, personas, sessions, tools
from voxcli.cli.batch import batch
from voxcli.cli.chat import chat, control
from voxcli.cli.devices import devices
from voxcli.cli.doctor import doctor
from voxcli.cli.interface.common import INTERRUPTED, VerboseFlag, print_text, report
from voxcli.cli.interface.help import CommandGroup, HelpGroup, unknown_command, usage_error
from voxcli.cli.interface.log import logging_to_file
from voxcli.cli.once import once
from voxcli.cli.results import results
from voxcli.cli.stats import stats
from voxcli.cli.voices import voices
from voxcli.errors import ConfigError, VoxError
from voxcli.output import Output

log = logging.getLogger(__name__)


class _Root(HelpGroup):
    """Turns every error into a message and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _errors_reported(lambda: "--verbose" in args):  # --version and --help print here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _errors_reported(lambda: "verbose" in ctx.meta):
            _check_folder()
            ctx.with_resource(logging_to_file())
            return super().invoke(ctx)


@contextmanager
def _errors_reported(is_verbose: Callable[[], bool]) -> Iterator[None]:
    """Print an error and exit with its code; the only place that prints errors."""
    try:
        yield
    except typer.Abort as error:
        # Ctrl-C at a confirmation prompt; Typer handles it elsewhere.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        raise
    except typer.Exit:
        raise
    except TyperException as error:
        raise typer.Exit(report(usage_error(error), verbose=is_verbose())) from error
    except Exception as error:
        if isinstance(error, OSError) and (code := _code_of_output()) is not None:  # Typer prints help without Output
            raise typer.Exit(code) from error
        log.info("failed: %s", error.code if isinstance(error, VoxError) else type(error).__name__)
        raise typer.Exit(report(error, verbose=is_verbose())) from error


def _check_folder() -> None:
    """Raise ConfigError if the working directory was deleted: some libraries end the process then."""
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError("the working directory does not exist any more", hint="change to another: cd") from error


app = CommandGroup(
    "Talk with Voxtral from a terminal: one audio pass per turn, spoken replies.",
    cls=_Root,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(chat)
app.command()(control)
app.command()(once)
app.command()(batch)
app.command()(results)
app.add_typer(sessions.app, name="sessions")
app.add_typer(personas.app, name="personas")
app.add_typer(facts.app, name="facts")
app.command()(stats)
app.add_typer(models.app, name="models")
app.command()(voices)
app.add_typer(tools.app, name="tools")
app.command()(devices)
app.add_typer(config.app, name="config")
app.command()(doctor)


@app.command("help")
def _help(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="The command to explain.")] = None,
) -> None:
    """Show the help of voxcli, or of one command."""
    shown = context.find_root()
    for word in words or ():
        group = shown.command
        found = group.get_command(shown, word) if isinstance(group, HelpGroup) else None
        if found is None and isinstance(group, HelpGroup):
            raise unknown_command(group, shown, word)
        if found is None:
            raise ConfigError(f"{shown.command_path} has no commands", hint=f"voxcli help {' '.join(words or ())}")
        shown = typer.Context(found, info_name=word, parent=shown)
    print_text(shown.get_help())


@app.command("version")
def _version() -> None:
    """Print the version."""
    print_text(f"voxcli {__version__}")


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
    _open_closed_descriptors()
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    _keep_blas_to_one_thread()
    try:
        app(prog_name="voxcli")
    except SystemExit as ended:
        raise SystemExit(ended.code or _code_of_output() or 0) from None


def _keep_blas_to_one_thread() -> None:
    """Let numpy use one thread for products of matrices, unless the environment says otherwise.

    numpy reads the variable when it is imported. Its matrices are small here, and its threads wait busily for more
    work: on two cores, those that computed a mel spectrogram made Whisper's encoder take 0.19 s instead of 0.13 s.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _code_of_output() -> int | None:
    """Write what is left of the output, and report a failure; return the exit code, None if there was no failure."""
    out = Output(sys.stdout)
    out.write("")
    try:
        out.check("the output")
    except VoxError as error:
        return report(error, verbose=False)
    return 0 if out.is_closed else None


def _open_closed_descriptors() -> None:
    """Connect standard streams that were closed to nothing; otherwise the next files take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _nowhere() -> TextIO:
    """Return a stream that discards text, for a standard stream that was closed before the program started."""
    return Path(os.devnull).open("w", encoding="utf-8")
