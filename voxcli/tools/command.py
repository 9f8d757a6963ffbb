"""A command of the settings as a tool: it reads the arguments as JSON, and prints the result."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from voxcli.core.tools import ToolSpec
from voxcli.errors import VoxError
from voxcli.printable import first_line
from voxcli.tools.arguments import ArgumentSchema
from voxcli.tools.process import ProgramOutput, run_program
from voxcli.tools.tool import Approval


class CommandTool:
    """Implements `Tool`: runs a program for each call."""

    def __init__(
        self,
        name: str,
        description: str,
        schema: ArgumentSchema,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        approval: Approval = "ask",
        timeout_seconds: float = 20.0,
    ) -> None:
        """Create a tool; nothing is run yet.

        Args:
            command: the program and its arguments; no shell reads them.
            environ: all variables that it gets.
        """
        self.approval: Approval = approval
        self.command = tuple(command)
        self._schema = schema
        self._environ = dict(environ)
        self._timeout_seconds = timeout_seconds
        self._spec = ToolSpec(name, description, schema.json)

    @property
    def spec(self) -> ToolSpec:
        return self._spec

    def problem(self, arguments: dict[str, Any]) -> str:
        return self._schema.problem(arguments)

    def call(self, arguments: dict[str, Any], interrupt: threading.Event) -> str:
        try:
            finished = run_program(
                self.command,
                f"{json.dumps(arguments)}\n",
                self._environ,
                timeout_seconds=self._timeout_seconds,
                interrupt=interrupt,
                what=f"tool {self._spec.name}",
            )
        except TimeoutError as error:
            raise TimeoutError(f"Its limit is {self._timeout_seconds:g} s.") from error
        if finished.exit_code:
            raise VoxError(_failure(finished))
        return finished.output


def _failure(finished: ProgramOutput) -> str:
    said = first_line(finished.errors) if finished.errors.strip() else ""
    code = finished.exit_code
    how = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
    return f"{how}: {said}" if said else how
