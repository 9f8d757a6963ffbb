"""`voxcli tools`: lists what a model may call, and tries one tool."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import (
    INTERRUPTED,
    ConfigFlag,
    JsonFlag,
    VerboseFlag,
    note,
    note_command,
    print_json,
    print_text,
    set_by_ctrl_c,
    text_or_stdin,
)
from voxcli.cli.interface.help import CommandGroup
from voxcli.errors import ConfigError, VoxError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.app.tools import ListedTool
    from voxcli.config.loading import Settings
    from voxcli.core.tools import ToolCall, ToolResult

DESCRIPTION_COLUMNS = 60

app = CommandGroup("List the tools that a model may call, and try one.")


@app.command("list")
def list_tools(config: ConfigFlag = None, json_: JsonFlag = False, _verbose: VerboseFlag = False) -> None:
    """List the tools in the settings: where they come from, and whether they ask first."""
    settings = _settings(config)
    from voxcli.app.tools import listed_tools

    with ExitStack() as stack:
        tools = listed_tools(settings, stack, note)
    if json_:
        print_json({"tools": [tool.as_json() for tool in tools]})
    elif tools:
        _print(tools)
    else:
        note_command("no tools; see docs/tools.md, or try", "voxcli config set tools.builtin time,timer")


@app.command("test")
def try_tool(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=completion.tools, help="Name of the tool.")],
    arguments: Annotated[
        str, typer.Option("--args", metavar="JSON", help="Arguments as a JSON object; - reads them from stdin.")
    ] = "{}",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run it without asking.")] = False,
    config: ConfigFlag = None,
    json_: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Run a tool as a model would, and print what the model would be told."""
    from voxcli.app.tools import toolbox_with
    from voxcli.core.tools import ToolCall

    settings, text, interrupt = _settings(config), text_or_stdin(arguments), threading.Event()
    can_ask = sys.stdin.isatty() and arguments != "-"

    answers: list[bool] = []

    def approve(call: "ToolCall", _interrupt: threading.Event) -> bool:
        if not (yes or can_ask):
            raise ConfigError(f"{name} asks before it runs, and there is no terminal to ask on", hint="add --yes")
        with _usual_ctrl_c():
            question = printable(f"Run {call.name} with {call.arguments}?")
            answers.append(yes or typer.confirm(question, err=True))
        return answers[-1]

    with ExitStack() as stack:
        toolbox = toolbox_with(settings, name, approve, stack, note)
        with set_by_ctrl_c(interrupt):
            result = toolbox.run(ToolCall("test", name, text), interrupt)
    _show(_with_decision(result, answers, yes=yes), as_json=json_)


def _with_decision(result: "ToolResult", answers: list[bool], *, yes: bool) -> "ToolResult":
    """Return a result with who decided whether the tool may run, if the call got that far."""
    if not answers:
        return result
    return replace(result, asked=not yes, allowed=answers[-1], decided_by="flag" if yes else "key")


def _settings(config: Path | None) -> "Settings":
    from voxcli.config.loading import load

    return load(config, {})


def _print(tools: "list[ListedTool]") -> None:
    names, sources = max(len(tool.name) for tool in tools), max(len(tool.source) for tool in tools)
    for tool in tools:
        words = " ".join(tool.description.split())
        short = words if len(words) <= DESCRIPTION_COLUMNS else f"{words[:DESCRIPTION_COLUMNS]}…"
        line = f"{tool.name.ljust(names)}  {tool.source.ljust(sources)}  {tool.approval.ljust(6)}  {short}"
        print_text(printable(line.rstrip()))


def _show(result: "ToolResult", *, as_json: bool) -> None:
    """Print a result; exit with an error's code unless the tool did what it should."""
    if as_json:
        print_json(result.as_record())
    elif result.status == "done":
        print_text(printable(result.text, keep="\n\t"))
        note(f"{result.seconds:.2f} s")
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.status == "done":
        return
    kind = ConfigError if result.status == "malformed" else VoxError
    if as_json:
        raise typer.Exit(kind.exit_code)
    raise kind(f"{result.call.name} {result.status}: {' '.join(result.text.split())}")


@contextmanager
def _usual_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end a question, as it does elsewhere."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
