"""The command line: read flags, build the parts, run, exit code; no logic.

Nothing heavy is imported before a command needs it: the commands import inside their functions.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from voxcli import __version__
from voxcli.cli.common import report_error
