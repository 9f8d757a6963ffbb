"""Help pages and usage errors of all commands: flags by subject, examples, and one form for every mistake.

The pages are plain text, and the source of the man page too (`scripts/man_page.py`).
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from textwrap import fill
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from voxcli.cli.interface.examples import EXAMPLES
from voxcli.errors import ConfigError
from voxcli.printable import printable

MOST_COLUMNS = 100
LABEL_COLUMNS = 26  # a longer label has a line of its own
BOLD, NOT_BOLD = "\x1b[1m", "\x1b[22m"
EXTRA = re.compile(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", re.DOTALL)
MANUAL = "`man voxcli`, and the pages in the folder docs of the source"

SUBJECTS = {  # the flags of each, without dashes; flags that stand in none are of the command itself
    "Conversation": (
        *("session", "continue", "no-save", "prompt", "text", "max-turns", "record"),
        *("persona", "instructions", "language", "understood", "facts", "no-facts"),
    ),
    "Engine": ("engine", "url", "model", "device", "quantize", "temperature", "concurrency", "batch-size"),
    "Cluster": ("ray", "workers", "gpus-per-worker"),
    "Voice and devices": (
        *("voice", "speak", "no-speak", "save-reply", "save-replies", "input-device", "output-device"),
        *("push-to-talk", "wake-word", "control", "no-barge-in", "raw-rate"),
    ),
    "Output": ("out", "output", "format", "plain", "json", "force", "max-p95"),
    "General": ("config", "verbose", "version", "install-completion", "show-completion", "help"),
}


@dataclass(frozen=True)
class HelpSection:
    """Rows of a help page, with a title: a label, such as a flag, and what it means."""

    title: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class HelpPage:
    """The help of one command."""

    path: str  # the whole command, such as "voxcli sessions show"
    usage: str
    paragraphs: list[str]
    sections: list[HelpSection]
    examples: tuple[tuple[str, str], ...]  # a command line, and what it does

    def text(self, columns: int, *, bold: bool = False) -> str:
        """Return the page in lines of at most `columns`, where words allow it."""
        begin, end = (BOLD, NOT_BOLD) if bold else ("", "")
        parts = [f"{begin}Usage:{end} {self.usage}"]
        parts += [fill(paragraph, columns) for paragraph in self.paragraphs]
        labels = [len(label) for section in self.sections for label, _ in section.rows]
        width = max((length for length in labels if length <= LABEL_COLUMNS), default=LABEL_COLUMNS)
        for section in self.sections:
            parts.append("\n".join([f"{begin}{section.title}{end}", *_columns(section.rows, width, columns)]))
        parts.append("\n".join([f"{begin}Examples{end}", *_commented(self.examples, columns)]))
        parts.append(fill(f"More: {MANUAL}.", columns))
        return "\n\n".join(parts) + "\n"


def help_page(command: Any, context: typer.Context) -> HelpPage:
    """Return the help of a command."""
    path = context.command_path
    name = path.partition(" ")[2]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    pieces = [_label(param) for param in command.params if param.param_type_name == "option" and param.required]
    pieces += [label if param.required else f"[{label}]" for param in arguments if (label := param.metavar)]
    if isinstance(command, TyperGroup):
        pieces.append("COMMAND ...")
    sections = [
        HelpSection("Arguments", [(param.metavar, _meaning(param)) for param in arguments]),
        *(HelpSection(title, rows) for title, rows in _commands(command)),
        *_flags(command, context),
    ]
    if name == "chat":
        sections.append(_keys())
    paragraphs = [" ".join(each.split()) for each in (command.help or "").split("\n\n")]
    shown = [section for section in sections if section.rows]
    return HelpPage(path, " ".join([path, "[FLAGS]", *pieces]), paragraphs, shown, EXAMPLES.get(name, ()))


def subcommands(command: Any, context: typer.Context) -> Iterator[tuple[Any, typer.Context]]:
    """Yield the commands of a group, each with its context."""
    for name in command.list_commands(context) if isinstance(command, TyperGroup) else ():
        found = command.get_command(context, name)
        if found and not found.hidden:
            yield found, found.context_class(found, info_name=name, parent=context)


def _commands(command: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if isinstance(command, TyperGroup):
        shown = [(name, each) for name, each in command.commands.items() if not each.hidden]
        shown.sort(key=lambda named: named[0] in ("help", "version"))  # last
        yield "Commands", [(name, (each.help or "").partition("\n\n")[0]) for name, each in shown]


def _flags(command: Any, context: typer.Context) -> Iterator[HelpSection]:
    """Yield the flags by subject; first those of the command itself."""
    flags = [param for param in command.get_params(context) if param.param_type_name == "option" and not param.hidden]
    subject_of = {f"--{name}": subject for subject, names in SUBJECTS.items() for name in names}
    for title in ("Flags", *SUBJECTS):
        of_subject = [param for param in flags if _subject(param, subject_of) == title]
        yield HelpSection(title, [(_label(param), _meaning(param)) for param in of_subject])


def _subject(param: Any, subject_of: dict[str, str]) -> str:
    return next((subject_of[name] for name in param.opts if name in subject_of), "Flags")


def _keys() -> HelpSection:
    from voxcli.chat.keyboard.bindings import OTHER_KEYS, SPACE_KEY

    talk = f"with --push-to-talk toggle: {SPACE_KEY['toggle']}; hold: {SPACE_KEY['hold']}"
    return HelpSection("Keys", [("space", f"{SPACE_KEY['off']}; {talk}"), *OTHER_KEYS.items()])


def _label(param: Any) -> str:
    names = sorted([*param.opts, *param.secondary_opts], key=lambda name: (name.startswith("--"), "no-" in name))
    choices = "|".join(choice.value if isinstance(choice, Enum) else str(choice) for choice in _choices(param))
    value = "" if param.is_flag else f" {param.metavar or choices}".rstrip()
    return ", ".join(names) + value


def _meaning(param: Any) -> str:
    default = param.show_default if isinstance(param.show_default, str) else ""
    if isinstance(param.default, Enum):
        default = param.default.value
    return (param.help or "") + (f" Default: {default}." if default else "")


def _choices(param: Any) -> tuple[Any, ...]:
    descriptor = getattr(param, "type_descriptor", None)
    return (descriptor.choices or ()) if descriptor else ()


def _commented(examples: Sequence[tuple[str, str]], columns: int) -> Iterator[str]:
    """Yield command lines, each with a comment after it, or above it where a row has no room."""
    width = max((len(line) for line, _ in examples), default=0)
    fits = all(width + len(does) + 6 <= columns for _, does in examples)
    for line, does in examples:
        yield f"  {line.ljust(width)}  # {does}" if fits else f"  # {does}\n  {line}"


def _columns(rows: Sequence[tuple[str, str]], width: int, columns: int) -> Iterator[str]:
    for label, meaning in rows:
        indent = " " * (width + 4)
        text = fill(meaning, columns, initial_indent=indent, subsequent_indent=indent)
        if len(label) > width:
            yield f"  {label}"
            yield text
        else:
            yield f"  {label.ljust(width)}  {text.lstrip()}"


def _rendered(command: Any, context: typer.Context) -> str:
    columns = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return help_page(command, context).text(columns, bold=bold)


class HelpCommand(TyperCommand):
    """A command whose help is a `HelpPage`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_rendered(self, ctx))


class HelpGroup(TyperGroup):
    """A group of commands whose help is a `HelpPage`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_rendered(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help if there are no arguments."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; raise ConfigError if there is none of that name."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown_command(self, ctx, args[0])
        return super().resolve_command(ctx, args)


class CommandGroup(typer.Typer):
    """A Typer program whose commands and groups have the help of this module."""

    def __init__(self, about: str, **settings: Any) -> None:
        """Begin without commands; `about` is the first line of the help."""
        super().__init__(**{"cls": HelpGroup, "no_args_is_help": True, "help": about, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Add a function as a command."""
        return super().command(name, **{"cls": HelpCommand, **settings})


def unknown_command(group: TyperGroup, context: Any, name: str) -> ConfigError:
    """Return the error for a command that a group does not have."""
    near = get_close_matches(name, group.commands, 1, cutoff=0.5)
    path = context.command_path
    hint = f"did you mean {path} {near[0]}?" if near else f"{path} -h lists the commands"
    return ConfigError(f"there is no command {path} {printable(name)}", hint=hint)


def usage_error(error: TyperException) -> ConfigError:
    """Return a usage error that Typer has found in the form of voxcli's own."""
    context: Any = getattr(error, "ctx", None)
    param: Any = getattr(error, "param", None)
    path = context.command_path if context else "voxcli"
    hint = f"{path} -h lists the flags"
    name = printable(str(getattr(error, "option_name", "")))
    if hasattr(error, "possibilities"):
        message, hint = f"there is no flag {name}", _nearest_flag(name, context) or hint
    elif hasattr(error, "param_type") and param:
        message, hint = f"{_name(param)} is missing", f"usage: {help_page(context.command, context).usage}"
    elif param:
        message = _wrong_value(error, param)
    elif name:
        message = f"{name} {'takes no value' if 'does not take' in error.message else 'needs a value'}"
    elif extra := EXTRA.match(error.message):
        message = f"{path} does not take {printable(extra[1])}"
    elif error.message.startswith("Missing command"):
        message, hint = f"{path} needs a command", f"{path} -h lists the commands"
    else:
        message = printable(error.format_message().rstrip("."))
    return ConfigError(message, hint=hint)


def _nearest_flag(name: str, context: Any) -> str:
    """Return a hint that names the flag most like `name`; empty if none is."""
    known = [each for param in context.command.get_params(context) for each in (*param.opts, *param.secondary_opts)]
    near = get_close_matches(name, known, 1, cutoff=0.5) if name.startswith("--") else []
    return f"did you mean {near[0]}?" if near else ""


def _name(param: Any) -> str:
    """Return the name of a flag or an argument as help shows it."""
    return next((str(name) for name in param.opts if name.startswith("--")), str(param.metavar or param.name))


def _wrong_value(error: TyperException, param: Any) -> str:
    cause: Any = error.__cause__ or error.__context__
    given = repr(cause.errors()[0]["input"]) if hasattr(cause, "errors") else "not allowed"
    return f"{_name(param)} is {given} (command line), but must be {_allowed(param)}"


def _allowed(param: Any) -> str:
    """Describe the allowed values of a flag, in the words of `voxcli.config.schema.allowed`."""
    if choices := _choices(param):
        return "one of " + ", ".join(choice.value if isinstance(choice, Enum) else str(choice) for choice in choices)
    descriptor = param.type_descriptor
    kind = "a whole number" if descriptor.annotation is int else "a number"
    least, most = descriptor.parameter_info.min, descriptor.parameter_info.max
    if most is not None:
        return f"{kind} from {least} to {most}"
    return kind if least is None else f"{kind}, at least {least}"
