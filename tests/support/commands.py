"""Runs voxcli as its users do: in this process, or as a program of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from typer.testing import CliRunner, Result

from voxcli.cli import app

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60  # longest run of a program; far more than it takes


def invoke(*arguments: str, typed: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, arguments, input=typed)


def run_program(*arguments: str, typed: str = "", environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a command as a program of its own, which shows no traceback, whatever happens.

    Args:
        typed: what comes from its standard input.
        environment: variables beside, or in place of, those of this process.
    """
    done = subprocess.run(
        [sys.executable, "-m", "voxcli", *arguments],
        check=False,
        input=typed,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr
    return done
