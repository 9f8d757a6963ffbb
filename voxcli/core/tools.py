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
from typing import Any, Literal, Protocol, TypeVar, get_args

from voxcli.printable import printable

log = logging.getLogger(__name__)

NOTE_CHARACTERS = 200  # longest note of a call in later prompts; about 50 tokens

T = TypeVar("T")
R = TypeVar("R")

ToolStatus = Literal["done", "failed", "refused", "malformed", "timed-out", "interrupted"]
# Who or what decided whether a tool may run; "": nobody had to, because the call was malformed or the turn was over.
Decider = Literal["", "settings", "flag", "key", "voice", "text", "speech", "timeout", "nobody"]
StopReason = Literal["malformed", "max_calls"]

_NOTE_MARKS = str.maketrans("[]<>", "()\u2039\u203a")  # A note can't be closed early, and names no control token.


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
    asked: bool = False  # A person was asked whether it may run.
    allowed: bool = False  # It was allowed to run.
    decided_by: Decider = ""

    @property
    def has_run(self) -> bool:
        """Whether the tool may have had an effect."""
        return self.status not in ("refused", "malformed")

    @property
    def note(self) -> str:
        """One line that later prompts show instead of the call and its result. Nothing in it ends the line early."""
        words = " ".join(f"{self.call.name}({self.call.arguments}) {self.status}: {self.text}".split())
        words = printable(words).translate(_NOTE_MARKS)
        return f"[Tool {words[: NOTE_CHARACTERS - 1]}…]" if len(words) > NOTE_CHARACTERS else f"[Tool {words}]"

    def as_record(self) -> dict[str, Any]:
        """Return the JSON object of records and of the store."""
        call = self.call
        named = {"id": call.id, "name": call.name, "arguments": call.arguments}
        decision = {"asked": self.asked, "allowed": self.allowed, "decided_by": self.decided_by}
        return {**named, "status": self.status, "text": self.text, "seconds": round(self.seconds, 3), **decision}


def results_from_json(text: str | None) -> tuple[ToolResult, ...]:
    """Return the results that `ToolResult.as_record` wrote as a JSON list; none where the text is no such list."""
    try:
        return results_from_records(json.loads(text or "[]"))
    except (ValueError, RecursionError):
        return ()


def results_from_records(records: Any) -> tuple[ToolResult, ...]:
    """Return the results that `ToolResult.as_record` wrote; none where the value is no list of such objects."""
    try:
        return tuple(map(_result_from_record, records))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()


def _result_from_record(record: Mapping[str, Any]) -> ToolResult:
    """Return a result of a record; those of older versions lack the decision. Raises what a broken one makes fail."""
    texts = [record[key] for key in ("id", "name", "arguments", "status", "text")]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("a tool's record is made of texts")
    id_, name, arguments, status, text = texts
    if status not in get_args(ToolStatus):
        raise ValueError(f"there is no status {status}")
    asked, allowed = bool(record.get("asked")), bool(record.get("allowed"))
    decided_by: Decider = next((each for each in get_args(Decider) if each == record.get("decided_by")), "")
    return ToolResult(
        ToolCall(id_, name, arguments), status, text, float(record["seconds"]), asked, allowed, decided_by
    )


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


@dataclass(frozen=True)
class ToolsStopped:
    """The reply was told to end, because the model may call no more tools in this turn."""

    reason: StopReason
    calls: int  # those of the turn, the last ones included

    @property
    def note(self) -> str:
        """One line that says so."""
        if self.reason == "malformed":
            return "the model called tools wrongly twice, so its reply ends here"
        return f"the model made {self.calls} tool calls, more than tools.max_calls, so its reply ends here"


class ToolRunner(Protocol):
    """Runs tools for one conversation."""

    @property
    def max_calls(self) -> int:
        """The most calls in one turn."""
        ...

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
) -> Generator[T | ToolCalled | ToolReturned | ToolsStopped, None, R]:
    """Yield what a reply yields, and run the tools that it calls; return what it returns.

    The reply is told to end where there is nothing to run tools, the turn was interrupted, calls were malformed a
    second time, or the calls of the turn are used up.

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
            if runner is None or interrupt.is_set() or malformed > 1:
                log.info("tools: the reply has to end after %d calls", count)
            elif count > runner.max_calls:
                yield ToolsStopped("max_calls", count)
            else:
                results = yield from _results(item.calls, runner, interrupt)
                malformed += any(result.status == "malformed" for result in results)
                if malformed > 1:
                    yield ToolsStopped("malformed", count)
                if malformed > 1 or interrupt.is_set():
                    results = None


def _results(
    calls: Sequence[ToolCall], runner: ToolRunner, interrupt: threading.Event
) -> Generator[ToolCalled | ToolReturned, None, list[ToolResult]]:
    """Run calls one after another, and return their results."""
    results = []
    for call in calls:
        yield ToolCalled(call)
        result = runner.run(call, interrupt)
        log.info("tool %s: %s after %.3f s", printable(call.name[:64]), result.status, result.seconds)
        results.append(result)
        yield ToolReturned(result)
    return results
