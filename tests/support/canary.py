"""A tool that leaves a mark when it runs, so that a test can tell whether anything ran."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from voxcli.core.tools import Decider, ToolCall, ToolCalls, ToolResult, ToolSpec, ToolStatus
from voxcli.tools.tool import Approval, Approve

CANARY = ToolSpec("canary", "Sings.", {"type": "object", "properties": {"song": {"type": "string"}}})


def sing(song: str = "la", number: int = 1) -> ToolCall:
    return ToolCall(f"call{number:05}", "canary", json.dumps({"song": song}))


def calls(*each: ToolCall) -> ToolCalls:
    return ToolCalls(each or (sing(),))


@dataclass
class Canary:
    """Implements `ToolRunner` as the toolbox does: a call is checked, then approved, then run."""

    approve: Approve
    approval: Approval = "ask"
    max_calls: int = 8
    text: str = "tweet"
    while_running: Callable[[threading.Event], object] = lambda _interrupt: None
    specs: tuple[ToolSpec, ...] = (CANARY,)
    sung: list[str] = field(default_factory=list)  # the songs of all calls that ran

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        try:
            song = json.loads(call.arguments)["song"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return ToolResult(call, "malformed", "song is missing")
        allowed = self.approval == "always" or (self.approval == "ask" and self.approve(call, interrupt))
        if interrupt.is_set():
            return ToolResult(call, "interrupted", "The user interrupted before it ran.")
        decided_by: Decider = "" if self.approval == "ask" else "settings"
        if not allowed:
            return ToolResult(call, "refused", "The user did not allow it.", decided_by=decided_by)
        self.sung.append(song)
        self.while_running(interrupt)
        status: ToolStatus = "interrupted" if interrupt.is_set() else "done"
        return ToolResult(call, status, self.text, 0.5, allowed=self.approval == "always", decided_by=decided_by)
