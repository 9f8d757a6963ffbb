"""Collects the calls of tools that a server streams in pieces, and writes them and their results as messages.

Servers differ: Mistral's API sends whole calls, all with the index 0; others leave out the index or the id, repeat the
name, or send arguments as an object. A call reaches the caller only when its response is complete.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from voxcli.core.protocols import PassReport
from voxcli.core.tools import ToolCall, ToolResult, ToolSpec
from voxcli.printable import printable
from voxcli.servers.errors import UnreadableError

ARGUMENT_CHARACTERS = 1 << 16  # longest arguments that are kept; about 16,000 tokens
NAME_CHARACTERS = 100  # longest name that is kept; a tool's has 64 at most
MOST_CALLS = 128  # Most calls in one response.
CUT = "…"  # ends arguments that were too long, and makes them invalid JSON
SENT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # mistral-common and OpenAI refuse others
KEPT_ID = re.compile(r"[!-~]{1,100}")
NO_ID = "null"  # mistral-common's id of a call without one
ID_CHARACTERS = 9  # mistral-common refuses other lengths


@dataclass(frozen=True)
class Round:
    """One request of a reply, and the results that the next request brings: what the model said, and its calls."""

    text: str
    results: tuple[ToolResult, ...]  # one for each call
    report: PassReport


@dataclass
class _PartialCall:
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    characters: int = 0

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        return bool(self.pieces) and _is_object(self.arguments)

    def add(self, name: str, arguments: str) -> None:
        """Add what a piece brings. A name may come in pieces, or again with each piece of the arguments."""
        if name != self.name and not self.pieces:
            self.name = (self.name + name)[: NAME_CHARACTERS + 1]
        room = ARGUMENT_CHARACTERS - self.characters
        if not arguments or room < 0:
            return
        self.characters += len(arguments)
        self.pieces.append(arguments if len(arguments) <= room else arguments[:room] + CUT)


class CallReader:
    """Reads the calls of one response."""

    def __init__(self) -> None:
        self.pieces = 0  # pieces read that brought something
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int | str, _PartialCall] = {}

    def read(self, deltas: Any) -> bool:
        """Read the calls in a chunk, or pieces of calls; return whether there are any.

        Raises:
            UnreadableError: the response has too many calls.
        """
        pieces = [delta for delta in deltas if isinstance(delta, dict)] if isinstance(deltas, list) else []
        read: list[_PartialCall] = []
        for delta in pieces:
            function = delta.get("function")
            function = function if isinstance(function, dict) else {}
            name, arguments = _text(function.get("name")), _arguments(function.get("arguments"))
            call = self._call(delta, name, arguments, read)
            call.add(name, arguments)
            read.append(call)
            self.pieces += bool(name or arguments)
        return bool(pieces)

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the calls of a complete response, each with an id of its own; entries without content are left out."""
        found: list[ToolCall] = []
        for call in self._calls:
            if not (call.name or call.pieces):
                continue
            is_kept = KEPT_ID.fullmatch(call.id) and call.id != NO_ID and call.id not in {each.id for each in found}
            name = printable(call.name.strip())[:NAME_CHARACTERS]
            found.append(ToolCall(call.id if is_kept else new_id(), name, call.arguments.strip() or "{}"))
        return tuple(found)

    def _call(self, delta: dict[str, Any], name: str, arguments: str, read: list[_PartialCall]) -> _PartialCall:
        """Return the call that a piece belongs to; a new one if it begins one."""
        given, index = delta.get("id"), delta.get("index")
        given = given if isinstance(given, str) else ""
        if isinstance(index, int | str):
            known = self._by_index.get(index)
        else:
            same = next((call for call in self._calls if given and call.id == given), None)
            known = same or (self._calls[-1] if self._calls and not (name or given) else None)
        if known is None or _begins_another(known, given, name, arguments, is_same_chunk=known in read):
            known = self._new()
        known.id = known.id or given
        if isinstance(index, int | str):
            self._by_index[index] = known
        return known

    def _new(self) -> _PartialCall:
        if len(self._calls) == MOST_CALLS:
            raise UnreadableError(f"it calls more than {MOST_CALLS} tools at once")
        self._calls.append(_PartialCall())
        return self._calls[-1]


def _begins_another(known: _PartialCall, given: str, name: str, arguments: str, *, is_same_chunk: bool) -> bool:
    """Return whether a piece with the index of a known call begins another call.

    Another id alone does not tell: vLLM gave each piece an id of its own until 2025.
    """
    if not (name and known.name):
        return False
    if given and known.id:
        return given != known.id
    return is_same_chunk or (bool(arguments) and known.is_whole)


def new_id() -> str:
    """Return an id that every server takes."""
    return secrets.token_hex(ID_CHARACTERS)[:ID_CHARACTERS]


def tools_of(specs: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Return the value of `tools` in a request."""
    return [
        {
            "type": "function",
            "function": {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)},
        }
        for spec in specs
    ]


def messages_of(rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Yield the messages that follow the utterance: in each round, the calls of the assistant and their results.

    They are what servers accept, whatever the model wrote: vLLM refuses arguments that are no JSON object, and
    mistral-common other names than those of tools.
    """
    for each in rounds:
        calls = [result.call for result in each.results]
        yield {"role": "assistant", "content": each.text, "tool_calls": [_written(call) for call in calls]}
        for result in each.results:
            content = _text(result.text) or result.status
            named = {"tool_call_id": result.call.id, "name": _sent_name(result.call)}
            yield {"role": "tool", **named, "content": content}


def _written(call: ToolCall) -> dict[str, Any]:
    is_object = _is_object(call.arguments)
    arguments = call.arguments if is_object else json.dumps({"invalid_json": call.arguments[:NAME_CHARACTERS]})
    return {"id": call.id, "type": "function", "function": {"name": _sent_name(call), "arguments": arguments}}


def _sent_name(call: ToolCall) -> str:
    return call.name if SENT_NAME.fullmatch(call.name) else "unknown"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _arguments(given: Any) -> str:
    if given is None or isinstance(given, str):
        return _text(given)
    return _text(json.dumps(given, ensure_ascii=False))


def _text(given: Any) -> str:
    # JSON can spell half of a surrogate pair, which is no text.
    return given.encode(errors="replace").decode() if isinstance(given, str) else ""
