"""Tools that a model may call: their descriptions, calls and results, and the loop that answers calls in a reply.

An engine yields `ToolCalls` in the middle of a reply, and is sent one `ToolResult` for each call. What runs a tool, and
who has to allow it, is decided by a `ToolRunner`.
"""

import json
import logging
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

log = logging.getLogger(__name__)

NOTE_CHARACTERS = 200  # longest note of a call in later prompts; about 50 tokens

T = TypeVar("T")
R = TypeVar("R")

ToolStatus = Literal["done", "failed", "refused", "malformed", "timed-out", "interrupted"]


@dataclass(frozen=True)
class ToolSpec:
    """What a model is told of a tool."""

    name: str  # 1 to 64 letters, digits, underscores and hyphens
    description: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})  # JSON schema


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made. Nothing in it can be trusted."""

    id: str
    name: str
    arguments: str  # JSON, if the model wrote it well


@dataclass(frozen=True)
class ToolResult:
    """What became of a call."""

    call: ToolCall
    status: ToolStatus
    text: str  # what the model is told; it comes from outside, and nothing in it can be trusted
    seconds: float = 0.0  # The time that the tool ran.

    @property
    def note(self) -> str:
        """One line that later prompts show instead of the call and its result."""
        words = " ".join(f"{self.call.name}({self.call.arguments}) {self.status}: {self.text}".split())
        return f"[Tool {words[: NOTE_CHARACTERS - 1]}…]" if len(words) > NOTE_CHARACTERS else f"[Tool {words}]"

    def as_record(self) -> dict[str, Any]:
        """Return the JSON object of records and of the store."""
        call = self.call
        named = {"id": call.id, "name": call.name, "arguments": call.arguments}
        return {**named, "status": self.status, "text": self.text, "seconds": round(self.seconds, 3)}


def results_from_json(text: str | None) -> tuple[ToolResult, ...]:
    """Return the results that `ToolResult.as_record` wrote as a JSON list; none where the text is no such list."""
    try:
        return tuple(
            ToolResult(
                ToolCall(each["id"], each["name"], each["arguments"]), each["status"], each["text"], each["seconds"]
            )
            for each in json.loads(text or "[]")
        )
    except (ValueError, TypeError, KeyError):
        return ()


@dataclass(frozen=True)
class ToolCalls:
    """Calls that a model makes at once. Its engine is then sent their results, or None if it has to end the reply."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True)
class ToolCalled:
    """A tool is about to be called."""

    call: ToolCall


@dataclass(frozen=True)
class ToolReturned:
    """A call has a result."""

    result: ToolResult


class ToolRunner(Protocol):
    """Runs tools for one conversation."""

    max_calls: int  # most calls in one turn

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the next turn may call."""
        ...

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        """Run a call, if it is allowed. Whatever fails, is refused or takes too long becomes a result.

        Returns soon once `interrupt` is set.
        """
        ...


def answer_calls(
    reply: Generator[T | ToolCalls, Sequence[ToolResult] | None, R],
    runner: ToolRunner | None,
    interrupt: threading.Event,
) -> Generator[T | ToolCalled | ToolReturned, None, R]:
    """Yield what a reply yields, and run the tools that it calls; return what it returns.

    The reply is told to end where there is nothing to run tools, the turn was interrupted, a second call was malformed,
    or the calls of the turn are used up.

    Args:
        runner: None if there are no tools.
    """
    results: list[ToolResult] | None = None
    count = malformed = 0
    with closing(reply):
        while True:
            try:
                item = reply.send(results)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            results = None
            if not isinstance(item, ToolCalls):
                yield item
                continue
            count += len(item.calls)
            if runner is None or interrupt.is_set() or malformed > 1 or count > runner.max_calls:
                log.info("tools: the reply has to end after %d calls", count)
                continue
            results = []
            for call in item.calls:
                yield ToolCalled(call)
                result = runner.run(call, interrupt)
                log.info("tool %s: %s after %.3f s", call.name, result.status, result.seconds)
                malformed += result.status == "malformed"
                results.append(result)
                yield ToolReturned(result)
            if malformed > 1 or interrupt.is_set():
                results = None
