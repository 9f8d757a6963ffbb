"""Shared by the commands: flags, printing, errors, Ctrl-C."""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.log import StderrHandler, logging_to
from voxcli.errors import ConfigError, VoxError
from voxcli.output import Output
from voxcli.printable import printable

TEXT_BYTES = 1 << 16  # most that is read of a text on standard input; a prompt of that length fills the context
INTERRUPTED = 130  # exit code: 128 + SIGINT, by the convention of shells


def _be_verbose(context: typer.Context, value: bool) -> bool:
    root = context.find_root()
    if value and not root.meta.get("verbose"):
        root.meta["verbose"] = True
        root.with_resource(logging_to(StderrHandler()))
    return value


VerboseFlag = Annotated[
    bool,
    typer.Option(
        "--verbose",
        callback=_be_verbose,
        help="Log each stage to stderr, and show where an error came from.",
        show_default=False,
    ),
]
ConfigFlag = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file to read instead of the default one.")
]
SessionFlag = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", autocompletion=completion.sessions, help="Conversation to continue or begin."
    ),
]
ContinueFlag = Annotated[bool, typer.Option("--continue", "-c", help="Continue the conversation used last.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
EngineFlag = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="auto|voxtral|embedded|remote", autocompletion=completion.engines, help="What answers."
    ),
]
ModelFlag = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ID|PATH",
        autocompletion=completion.checkpoints,
        help="mini, small, a hub id or a folder; for a server, its name of the model.",
    ),
]
UrlFlag = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Server of the remote engine: http://HOST:8000/v1")
]
UrlsFlag = Annotated[
    list[str] | None,
    typer.Option("--url", metavar="URL", help="Server of the remote engine; repeat it to share the work."),
]
DeviceFlag = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="auto|cuda|cuda:N|mps|cpu",
        autocompletion=completion.compute_devices,
        help="What the voxtral engine runs on.",
    ),
]
QuantizeFlag = Annotated[
    str | None,
    typer.Option(
        "--quantize", metavar="auto|none|int8|int4|fp8", help="Format of the voxtral engine's large matrices."
    ),
]
TemperatureFlag = Annotated[
    str | None,
    typer.Option("--temperature", metavar="auto|N", help="Sampling temperature; 0 always takes the most likely token."),
]
InstructionsFlag = Annotated[
    str | None, typer.Option("--instructions", metavar="TEXT|@FILE", help="System prompt: how the model should answer.")
]
PersonaFlag = Annotated[
    str | None,
    typer.Option(
        "--persona",
        metavar="NAME",
        autocompletion=completion.personas,
        help="Way to answer, such as tutor or interpreter:target=French; `voxcli personas list` shows all.",
    ),
]
InputDeviceFlag = Annotated[
    str | None, typer.Option("--input-device", metavar="NAME|N", help="Microphone: part of its name, or number.")
]
OutputDeviceFlag = Annotated[
    str | None, typer.Option("--output-device", metavar="NAME|N", help="Loudspeaker: part of its name, or number.")
]
VoiceFlag = Annotated[
    str | None,
    typer.Option(
        "--voice",
        metavar="NAME",
        autocompletion=completion.voices,
        help="Voice for replies; `voxcli voices` lists them.",
    ),
]
LanguageFlag = Annotated[
    str | None,
    typer.Option("--language", "-l", metavar="auto|CODE", help="Language of the conversation, such as en or fr."),
]
UnderstoodFlag = Annotated[
    str | None,
    typer.Option(
        "--understood",
        metavar="off|show|remember",
        help="Ask the engine, after its reply, what it understood of the speech.",
    ),
]
AllowToolFlag = Annotated[
    list[str] | None,
    typer.Option("--allow-tool", metavar="NAME", help="Let the model call this tool; repeat it for more."),
]
ForceFlag = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]


def print_text(text: str, end: str = "\n") -> None:
    """Print text on stdout. Exit if its reader has closed the stream.

    Raises:
        VoxError: the text can't be written.
    """
    out = Output(sys.stdout)
    out.write(text + end)
    out.check("the output")
    if out.is_closed:
        raise typer.Exit


def print_json(value: Any) -> None:
    """Print a value on stdout as one line of JSON."""
    print_text(json.dumps(value))


def note(text: str) -> None:
    """Print a line on stderr; on a terminal dim, and wrapped between words."""
    out, shown = Output(sys.stderr), printable(text)
    indent = shown[: len(shown) - len(shown.lstrip(" "))]
    rows = wrap(shown, _columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    for row in rows or [""]:
        out.write_dim(row)


def note_command(what: str, command: str) -> None:
    """Print on stderr what a command is for, and the command in one piece, so that it can be copied."""
    line = printable(f"{what}: {command}")
    rows = [line] if len(line) <= _columns() else [printable(f"{what}:"), printable(f"  {command}")]
    for row in rows:
        Output(sys.stderr).write_dim(row)


def _columns() -> int:
    """Return how wide a line on stderr may be; where it is no terminal, as wide as it is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or sys.maxsize
    except (OSError, ValueError):
        return sys.maxsize


def given(**flags: Any) -> dict[str, Any]:
    """Return the flags that were given on the command line."""
    return {name: value for name, value in flags.items() if value is not None}


def files_read(config: Path | None, flags: Mapping[str, Any]) -> list[str]:
    """Return the files that are read for the settings: `config` or the default file, and that of `instructions`."""
    from voxcli.config.paths import config_file

    instructions = flags.get("instructions") or ""
    named = [str(Path(instructions[1:]).expanduser())] if instructions.startswith("@") else []
    return [str(config or config_file()), *named]


def check_stdin(*given: str | Path | None) -> None:
    """Raise ConfigError if more than one of the values is "-" or "@-", for standard input."""
    if sum(str(each) in ("-", "@-") for each in given) > 1:
        raise ConfigError("standard input can be read only once", hint="give - once, and files for the others")


def text_or_stdin(text: str) -> str:
    """Return a text from the command line; for "-", that of standard input. Raises ConfigError if there is none."""
    if text != "-":
        return text
    if sys.stdin.isatty():
        raise ConfigError("standard input is a terminal: no text comes from it", hint="give the text itself")
    return sys.stdin.buffer.read(TEXT_BYTES).decode(errors="replace")


def report(error: Exception, *, verbose: bool) -> int:
    """Print an error in one line and its hint in a second. Returns the exit code."""
    lines = [printable("".join(traceback.format_exception(error)).rstrip(), keep="\n")] if verbose else []
    message, hint = f"unexpected {type(error).__name__}: {error}", "please report it with what --verbose shows"
    if isinstance(error, VoxError):
        message, hint = str(error), error.hint
    elif isinstance(error, OSError) and error.filename is not None:  # a file that no part of voxcli expects to fail
        message = f"{os.fsdecode(error.filename)!s}: {error.strerror}"
        hint = "check that file and who may use it; --verbose shows where it is used"
    lines += [f"voxcli: {printable(message)}", *([f"  {printable(hint)}"] if hint else [])]
    Output(sys.stderr).write("".join(f"{line}\n" for line in lines))
    return error.exit_code if isinstance(error, VoxError) else VoxError.exit_code


def write_private(path: Path, text: str, *, force: bool, flag: str, inputs: Sequence[str] = ()) -> None:
    """Write a file that only its owner can read, and create missing folders that only their owner can enter.

    Args:
        path: "-" is standard output.
        flag: the flag that names the file.
        inputs: files that the command reads.

    Raises:
        ConfigError: the file is an input, exists and is not to be overwritten, or can't be written.
    """
    from voxcli.config.paths import owner_only
    from voxcli.output_files import STANDARD, OutputFiles

    if str(path) == STANDARD:
        print_text(text, end="")
        return
    files = OutputFiles(force=force)
    files.add_inputs(inputs)
    files.check(path, flag)
    try:
        for folder in reversed([folder for folder in path.parents if not folder.exists()]):
            folder.mkdir(mode=0o700)
        with open(path, "w", encoding="utf-8", newline="\n", opener=owner_only) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", hint=f"choose another {flag} FILE") from error


@contextmanager
def set_by_ctrl_c(event: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set an event. The second one ends the program at once."""

    def on_signal(_number: int, _frame: object) -> None:
        if event.is_set():
            os._exit(INTERRUPTED)
        event.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
