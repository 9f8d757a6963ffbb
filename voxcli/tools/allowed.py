"""Runs the tools that `--allow-tool` names, and no others: where nobody can be asked, only these may be called."""

import threading
from collections.abc import Collection
from dataclasses import replace

from voxcli.core.tools import ToolCall, ToolResult, ToolRunner, ToolSpec
from voxcli.tools.toolbox import bounded_call, unknown_tool

REFUSED = "The user has not allowed this tool here. Don't repeat the call."


class AllowedTools:
    """Implements `ToolRunner`: a model is told of the allowed tools of another runner, and may call these."""

    def __init__(self, runner: ToolRunner, names: Collection[str]) -> None:
        """Allow the tools of these names, whatever their own approval is, but for those that may never run."""
        self._runner = runner
        self.names = frozenset(names)

    @property
    def max_calls(self) -> int:
        """The most calls in one turn."""
        return self._runner.max_calls

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The allowed tools."""
        return tuple(spec for spec in self._runner.specs if spec.name in self.names)

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        """Run a call of an allowed tool; refuse any other that there is."""
        offered = [spec.name for spec in self.specs]
        if call.name not in offered:
            if any(spec.name == call.name for spec in self._runner.specs):
                return ToolResult(bounded_call(call), "refused", REFUSED, decided_by="flag")
            return ToolResult(bounded_call(call), "malformed", unknown_tool(call.name, offered))
        result = self._runner.run(call, interrupt)
        if result.status == "malformed":
            return result
        return replace(result, allowed=result.status != "refused", decided_by="flag")
