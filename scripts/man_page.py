"""Writes the man page, `voxcli.1`, from the same source as `voxcli -h`.

python -m scripts.man_page            # writes voxcli.1
python -m scripts.man_page --check    # fails if voxcli.1 is out of date
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from typer.main import get_command

from voxcli.cli import app
from voxcli.cli.interface.help import HelpPage, help_page, subcommands

PAGE = Path(__file__).parent.parent / "voxcli.1"
EXIT_CODES = {
    "0": "done",
    "1": "failed",
    "2": "wrong usage or configuration",
    "3": "audio that can't be used",
    "4": "model not available",
    "5": "audio device",
    "6": "remote server",
    "130": "interrupted",
}
ENVIRONMENT = {
    "VOXCLI_SECTION__SETTING": "a setting, such as VOXCLI_LIVE__BARGE_IN=false; see voxcli config init",
    "VOXCLI_HOME": "folder of the conversations and voices",
    "VOXCLI_API_KEY": "key of the remote server",
    "VOXCLI_SPEECH_API_KEY": "key of the server of a voice",
    "VOXCLI_LOG": "file to which a log of each decision is appended",
    "NO_COLOR": "if set, no styles",
    "VISUAL, EDITOR": "editor of voxcli config edit",
}


def main() -> int:
    """Write the page, or check it; return the exit code."""
    text = man_page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8", newline="\n")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("voxcli.1 is out of date: python -m scripts.man_page", file=sys.stderr)
    return 1


def man_page() -> str:
    """Return the man page in roff."""
    root, *others = _pages()
    lines = ['.TH VOXCLI 1 "" "voxcli" "User Commands"', ".SH NAME", _safe(f"voxcli - {root.paragraphs[0]}")]
    lines += [".SH SYNOPSIS", *_bold(root.usage), ".SH DESCRIPTION", *_body(root)]
    lines.append(".SH COMMANDS")
    for page in others:
        lines += [f".SS {_safe(page.usage)}", *_body(page)]
    lines += [".SH EXIT STATUS", *_rows(EXIT_CODES.items()), ".SH ENVIRONMENT", *_rows(ENVIRONMENT.items())]
    return "\n".join(lines) + "\n"


def _pages() -> Iterator[HelpPage]:
    command = get_command(app)
    context = typer.Context(command, info_name="voxcli", help_option_names=["-h", "--help"])
    todo = [(command, context)]
    while todo:
        command, context = todo.pop(0)
        yield help_page(command, context)
        todo[:0] = subcommands(command, context)


def _body(page: HelpPage) -> Iterator[str]:
    for paragraph in page.paragraphs:
        yield from (".PP", _safe(paragraph))
    for section in page.sections:
        yield from (".PP", f"\\fI{_safe(section.title)}\\fR", *_rows(section.rows))
    if page.examples:
        yield from (".PP", "\\fIExamples\\fR", *_rows((line, does) for line, does in page.examples))


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for label, meaning in rows:
        yield from (".TP", *_bold(label), _safe(meaning))


def _bold(text: str) -> list[str]:
    return [f"\\fB{_safe(text)}\\fR"]


def _safe(text: str) -> str:
    """Return text that roff shows as it is: a hyphen as a hyphen, no line as a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    sys.exit(main())
