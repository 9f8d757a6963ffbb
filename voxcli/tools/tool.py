"""Defines what a tool is: its description, whether it needs approval, and how it is called."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from voxcli.core.tools import ToolCall, ToolSpec

Approval = Literal["ask", "always", "never"]  # Asks before each call, runs without asking, or never runs.

# Asks whether a call may run; blocks until there is an answer. Returns False soon once the interrupt is set.
Approve = Callable[[ToolCall, threading.Event], bool]


class Tool(Protocol):
    """Something that a model may call by name."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told of it."""
        ...

    @property
    def approval(self) -> Approval:
        """Whether it may run without being asked for."""
        ...

    def problem(self, arguments: dict[str, Any]) -> str:
        """Return what is wrong with arguments, for the model; an empty string if they fit the schema."""
        ...

    def call(self, arguments: dict[str, Any], interrupt: threading.Event) -> str:
        """Run it and return its result as text; end soon once `interrupt` is set.

        Args:
            arguments: a JSON object that fits the schema of `spec.parameters`.

        Raises:
            VoxError: it failed, or was stopped by the interrupt; the model is told the message.
            TimeoutError: it took too long and was stopped.
        """
        ...


class ToolSource(Protocol):
    """Where tools come from. They may change at any time."""

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools that it has now."""
        ...
