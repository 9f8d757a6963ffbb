"""Runs the tools of a conversation: finds the tool, reads the arguments, asks for approval, bounds the result."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Self

from voxcli.core.tools import ToolCall, ToolResult, ToolSpec, ToolStatus
from voxcli.errors import VoxError
from voxcli.printable import printable
from voxcli.tools.arguments import ARGUMENT_CHARACTERS, WrongArguments, WrongSchema, read_arguments
from voxcli.tools.results import cleaned
from voxcli.tools.tool import Approval, Approve, Tool, ToolSource

log = logging.getLogger(__name__)

NAME_CHARACTERS = 64
NAMES_SHOWN = 20  # tools that a model is told of when it calls one that is not there
NOTHING = "(it returned no text)"


@dataclass(frozen=True)
class FixedTools:
    """Implements `ToolSource`: tools that never change."""

    tools: tuple[Tool, ...]


class NotRun(Exception):  # noqa: N818 - ends in a result
    """A call is not run; holds what its result says."""

    def __init__(self, status: ToolStatus, text: str) -> None:
        super().__init__(text)
        self.status: ToolStatus = status
        self.text = text


class Toolbox:
    """Implements `ToolRunner` over any number of sources of tools."""

    def __init__(
        self,
        sources: Sequence[ToolSource],
        approve: Approve,
        *,
        max_calls: int = 8,
        output_characters: int = 4000,
        approvals: Mapping[str, Approval] | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a toolbox. Where two sources have tools of one name, the first one's counts.

        Args:
            approve: asked before each call of a tool whose approval is "ask".
            output_characters: longest result.
            approvals: by names of tools, in place of the tools' own.
        """
        self._sources = tuple(sources)
        self._approve = approve
        self.max_calls = max_calls
        self._output_characters = output_characters
        self._approvals = dict(approvals or {})
        self._seconds = seconds
        self.patterns: tuple[str, ...] = ("*",)  # What the names of tools match; * stands for any characters.

    def limited_to(self, patterns: Sequence[str]) -> Self:
        """Return a toolbox of those tools of the same sources that a persona may call.

        Args:
            patterns: names, in which * stands for any characters; they take the place of an earlier limit.
        """
        limited = copy(self)
        limited.patterns = tuple(patterns)
        return limited

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the next turn may call: all but those that are never approved."""
        return tuple(tool.spec for tool in self.tools.values() if self.approval(tool) != "never")

    @property
    def tools(self) -> dict[str, Tool]:
        """All tools that it is limited to, by name, those that are never approved among them."""
        found: dict[str, Tool] = {}
        for source in self._sources:
            for tool in source.tools:
                found.setdefault(tool.spec.name, tool)
        return {
            name: tool for name, tool in found.items() if any(fnmatchcase(name, pattern) for pattern in self.patterns)
        }

    def approval(self, tool: Tool) -> Approval:
        """Return whether a tool may run without asking."""
        return self._approvals.get(tool.spec.name, tool.approval)

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        """Run a call, if it is allowed. Whatever fails, is refused or takes too long becomes a result.

        The result says who decided where the settings did; whoever approves calls knows the rest.
        """
        try:
            tool, arguments = self._understood(call)
            self._check_allowed(tool, call, arguments, interrupt)
        except NotRun as reason:
            return self._result(call, reason.status, reason.text)
        result = self._ran(tool, call, arguments, interrupt)
        if self.approval(tool) == "always":
            return replace(result, allowed=True, decided_by="settings")
        return result

    def _understood(self, call: ToolCall) -> tuple[Tool, dict[str, Any]]:
        """Return the tool that a call names and its arguments. Raises NotRun."""
        tools = {name: tool for name, tool in self.tools.items() if self.approval(tool) != "never"}
        tool = tools.get(call.name)
        if tool is None:
            raise NotRun("malformed", unknown_tool(call.name, list(tools)))
        try:
            arguments = read_arguments(call.arguments)
            problem = tool.problem(arguments)
        except WrongArguments as error:
            raise NotRun("malformed", f"The arguments can't be read: {error}.") from error
        except WrongSchema as error:
            log.warning("tool %s: its schema can't be used: %s", call.name, error)
            raise NotRun("failed", "The tool can't be used: its schema is broken.") from error
        if problem:
            raise NotRun("malformed", f"The arguments don't fit: {problem}")
        return tool, arguments

    def _check_allowed(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], interrupt: threading.Event) -> None:
        """Raise NotRun unless a call may run now. What is shown is what would run: the arguments that were read."""
        allowed = self.approval(tool) == "always"
        if not allowed and not interrupt.is_set():
            allowed = self._approve(replace(call, arguments=json.dumps(arguments, ensure_ascii=False)), interrupt)
        if interrupt.is_set():
            raise NotRun("interrupted", "The user interrupted before it ran.")
        if not allowed:
            raise NotRun("refused", "The user did not allow this call. Don't repeat it.")

    def _ran(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], interrupt: threading.Event) -> ToolResult:
        began = self._seconds()
        status: ToolStatus = "done"
        try:
            text = tool.call(arguments, interrupt) or NOTHING
        except TimeoutError as error:
            status, text = "timed-out", f"The call took too long and was stopped. {error}"
        except VoxError as error:
            status = "interrupted" if interrupt.is_set() else "failed"
            text = error.message
        return self._result(call, status, text, self._seconds() - began)

    def _result(self, call: ToolCall, status: ToolStatus, text: str, seconds: float = 0.0) -> ToolResult:
        """Return a result. Text that a model wrote without end is cut in it."""
        return ToolResult(bounded_call(call), status, cleaned(text, self._output_characters) or NOTHING, seconds)


def bounded_call(call: ToolCall) -> ToolCall:
    """Return a call without what a model wrote beyond the longest name and arguments."""
    return replace(call, name=call.name[:NAME_CHARACTERS], arguments=call.arguments[:ARGUMENT_CHARACTERS])


def unknown_tool(name: str, names: Sequence[str]) -> str:
    """Return what a model is told that called a tool of a name that none has; it is told of the tools of `names`."""
    shown = printable(name[:NAME_CHARACTERS])
    more = "" if len(names) <= NAMES_SHOWN else f" and {len(names) - NAMES_SHOWN} more"
    there_are = f"There are: {', '.join(names[:NAMES_SHOWN])}{more}." if names else "There are none."
    return f"There is no tool {shown!r}. {there_are}"
