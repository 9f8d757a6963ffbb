"""Divides what the model generates into text and calls, and continues the prompt with the results of the calls."""

import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from voxcli.core.protocols import PassReport, Transcript
from voxcli.core.tools import ToolCall, ToolCalls, ToolResult
from voxcli.engines.voxtral.tokenizer import TextStream, Tokenizer
from voxcli.engines.voxtral.tool_layout import ToolLayout, json_of

_ID = re.compile(r"[a-zA-Z0-9]{9}")  # mistral-common takes no other
_NAME = re.compile(r'"name"\s*:\s*"([\w-]{1,64})"')
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

# Generates after the prompt and what was added to it; yields the ids in blocks.
Generate = Callable[[list[int]], Iterable[Sequence[int]]]


class ToolReply:
    """One reply: generated text and, where the session has tools, calls that are answered in the middle of it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: ToolLayout | None,
        writing: AbstractContextManager[object] = nullcontext(),  # noqa: B008 - has no state
    ) -> None:
        """Begin a reply.

        Args:
            layout: None if the session has no tools.
            writing: held while calls and results are encoded; a lock where other threads use the tokenizer too.
        """
        self._tokenizer = tokenizer
        self._layout = layout
        self._writing = writing
        self._added: list[int] = []  # what follows the prompt: calls and results
        self._call_ids: set[str] = set()
        self.tokens = 0  # generated
        self.additional_generations = 0

    def run(
        self, generate: Generate, room: Callable[[], int], is_interrupted: Callable[[], bool]
    ) -> Generator[str | Transcript | ToolCalls, Sequence[ToolResult] | None, bool]:
        """Yield the deltas and calls of the reply.

        Args:
            generate: called once for the prompt, and again after each exchange of calls and results.
            room: returns the most ids that may follow the prompt; called after the first generation.
            is_interrupted: asked after each generation. A reply that was interrupted calls nothing.

        Returns:
            Whether the reply ended because there was no room for results.
        """
        while True:
            before, reader = self.tokens, _GeneratedText(self._tokenizer, self._layout)
            for ids in generate(self._added):
                self.tokens += len(ids)
                if delta := "".join(reader.add(token_id) for token_id in ids):
                    yield delta
            if self._added and (self.tokens > before or not is_interrupted()):
                self.additional_generations += 1
            if self._layout is None or not reader.segments or is_interrupted():
                return False
            calls = self._calls(reader.segments)
            if reader.text and not reader.text[-1].isspace():
                yield "\n"  # What was said before the calls is complete, and can be spoken while they run.
            results = yield ToolCalls(calls)
            if not results:
                return False
            with self._writing:
                exchange = self._layout.exchange(reader.text, results, room() - len(self._added))
            if exchange is None:
                return True
            self._added = [*self._added, *exchange]

    def report(self, passes: int, prompt_tokens: int, cached_tokens: int, *, is_full: bool) -> PassReport:
        """Return the report of the finished reply, of which `run` returned `is_full`."""
        return PassReport(
            passes,
            prompt_tokens,
            cached_tokens,
            self.tokens,
            finish_reason="context" if is_full else None,
            additional_generations=self.additional_generations,
        )

    def _calls(self, segments: Sequence[Sequence[int]]) -> tuple[ToolCall, ...]:
        """Return the calls that the model wrote, each with an id of its own."""
        found = [call for segment in segments for call in self._read(segment)]
        seed = str((self._added, segments))
        return tuple(
            ToolCall(self._own_id(call.id, f"{number} {seed}"), call.name, call.arguments)
            for number, call in enumerate(found)
        )

    def _own_id(self, written: str, seed: str) -> str:
        """Return the id that the model gave to a call, or one that follows from what it wrote.

        The same conversation then has the same ids, and greedy replies stay the same.
        """
        number = 0
        while not _ID.fullmatch(written) or written in self._call_ids:
            digest = hashlib.sha256(f"{number} {seed}".encode()).digest()
            written = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])
            number += 1
        self._call_ids.add(written)
        return written

    def _read(self, segment: Sequence[int]) -> list[ToolCall]:
        """Return the calls after one `[TOOL_CALLS]`; what is malformed is one call with what the model wrote."""
        layout = self._layout
        if layout and layout.arguments in segment:
            place = segment.index(layout.arguments)
            named, arguments = segment[:place], self._text(segment[place + 1 :])
            ends = named.index(layout.call_id) if layout.call_id in named else len(named)
            return [ToolCall(self._text(named[ends + 1 :]), self._text(named[:ends]), arguments or "{}")]
        written = self._text(segment)
        if calls := _calls_in(written):
            return calls
        name = _NAME.search(written)
        return [ToolCall("", name[1] if name else "", written)]

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._tokenizer.token_bytes, ids)).decode("utf-8", "replace").strip()


class _GeneratedText:
    """Reads one generation: text, and what follows each `[TOOL_CALLS]`."""

    def __init__(self, tokenizer: Tokenizer, layout: ToolLayout | None) -> None:
        self._stream = TextStream(tokenizer)
        self._begins_call = layout.calls if layout else None
        self.text = ""  # What stands before the calls.
        self.segments: list[list[int]] = []

    def add(self, token_id: int) -> str:
        """Return the text that this token completes; nothing once a call has begun."""
        if token_id == self._begins_call:
            self.segments.append([])
        elif self.segments:
            self.segments[-1].append(token_id)
        else:
            delta = self._stream.add(token_id)
            self.text += delta
            return delta
        return ""


def _calls_in(text: str) -> list[ToolCall]:
    """Return the calls of a JSON list of calls, or the only one; none where any part of it is malformed."""
    try:
        value = json_of(text)
    except ValueError:
        return []
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in listed):
        return []
    return [_call(each) for each in listed]


def _call(described: dict[str, Any]) -> ToolCall:
    """Return the call that a JSON object describes."""
    arguments, written = described.get("arguments", {}), described.get("id")
    # Some models write the object of the arguments as a string.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(written if isinstance(written, str) else "", described["name"], text or "{}")
