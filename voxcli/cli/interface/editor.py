"""Lets the user edit a file in their editor."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import typer

from voxcli.cli.interface.common import note
from voxcli.errors import ConfigError


def check_terminal(instead: str) -> None:
    """Raise ConfigError if there is no terminal for an editor; `instead` is the command that needs none."""
    if not sys.stdin.isatty():
        raise ConfigError("an editor needs a terminal", hint=instead)


def run_editor(path: Path) -> None:
    """Open a file in the editor that `VISUAL` or `EDITOR` names; return when the user is done.

    Raises:
        ConfigError: there is no such editor, or it failed.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if os.name == "nt" else "vi")
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], check=False)
    except (OSError, ValueError) as error:  # ValueError: a quotation mark without its other half
        raise ConfigError(f"can't run the editor {editor!r}: {error}", hint="set EDITOR to another one") from error
    if done.returncode:
        raise ConfigError(f"the editor {editor!r} failed: exit code {done.returncode}", hint="nothing was changed")


def edit_again(error: ConfigError) -> bool:
    """Show what is wrong with the edited text, and ask whether the user wants to correct it."""
    note(error.message)
    return typer.confirm("Edit again?", default=True, err=True)
