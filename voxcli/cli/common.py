"""What the commands share: flags, notes on stderr, Ctrl-C, and how an error is told."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from voxcli.errors import VoxError
from voxcli.printable import printable

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells count


def _be_verbose(context: typer.Context, value: bool) -> bool:
    if value:
        context.find_root().meta["verbose"] = True
    return value


VerboseFlag = Annotated[
    bool, typer.Option("--verbose", callback=_be_verbose, help="Show where an error came from.", show_default=False)
]
ConfigFlag = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file to read instead of the default one.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
EngineFlag = Annotated[
    str | None, typer.Option("--engine", metavar="auto|voxtral|embedded|remote", help="What answers.")
]
ModelFlag = Annotated[
    str | None,
    typer.Option("--model", metavar="ID|PATH", help="mini, small, a hub id or a folder; a server's own name for one."),
]
UrlFlag = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Server of the remote engine: http://HOST:8000/v1")
]
UrlsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--url", metavar="URL", help="Server of the remote engine; given more than once, they share the work."
    ),
]
DeviceFlag = Annotated[
    str | None, typer.Option("--device", metavar="auto|cuda|cuda:N|mps|cpu", help="What the voxtral engine runs on.")
]
QuantizeFlag = Annotated[
    str | None,
    typer.Option(
        "--quantize", metavar="auto|none|int8|int4|fp8", help="Format of the voxtral engine's large matrices."
    ),
]
TemperatureFlag = Annotated[
    str | None,
    typer.Option("--temperature", metavar="auto|N", help="How freely words are chosen; 0: the likeliest each time."),
]
InstructionsFlag = Annotated[
    str | None, typer.Option("--instructions", metavar="TEXT|@FILE", help="What the model is told about how to answer.")
]
VoiceFlag = Annotated[
    str | None, typer.Option("--voice", metavar="NAME", help="Voice that speaks; see `voxcli voices`.")
]


def note(text: str) -> None:
    """Say something beside the output: on stderr, dim where that is a terminal."""
    _tell(printable(text), dim=not os.environ.get("NO_COLOR"))


def _tell(text: str, *, dim: bool = False) -> None:
    """Print a line on stderr; that nobody can read it is no reason to stop, nor for another exit code."""
    try:
        typer.secho(text, err=True, dim=dim)
    except OSError:
        from voxcli.ui import discard

        discard(sys.stderr)


def given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given on the command line."""
    return {name: value for name, value in flags.items() if value is not None}


def report(error: Exception, *, verbose: bool) -> int:
    """Print an error in one line and its hint in a second; return the exit code."""
    if verbose:
        _tell(printable("".join(traceback.format_exception(error)).rstrip(), keep="\n"))
    known = isinstance(error, VoxError)
    message = str(error) if known else f"unexpected {type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, VoxError) else "please report it with what --verbose shows"
    _tell(f"voxcli: {printable(message)}")
    if hint:
        _tell(f"  {printable(hint)}")
    return error.exit_code if isinstance(error, VoxError) else VoxError.exit_code


@contextmanager
def set_by_ctrl_c(event: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set an event; the second ends the program, whatever it is busy with."""

    def on_signal(_number: int, _frame: object) -> None:
        if event.is_set():
            os._exit(INTERRUPTED)
        event.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
