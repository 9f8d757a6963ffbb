"""Writes tools, calls and their results as token ids, in the layout of the tokenizer's version.

    v7    [AVAILABLE_TOOLS]{tools}[/AVAILABLE_TOOLS][INST]...[/INST]{text}[TOOL_CALLS]{calls}</s>
          [TOOL_RESULTS]{id}[TOOL_CONTENT]{result}[/TOOL_RESULTS]{reply}</s>
    v11   as v7, but [TOOL_CALLS]{name}[CALL_ID]{id}[ARGS]{arguments} for each call
    v13   as v11 without ids: [TOOL_CALLS]{name}[ARGS]{arguments}, [TOOL_RESULTS]{result}[/TOOL_RESULTS]

The available tools stand before the last user message; in v13, before the first one. The ids are those of
mistral-common (`InstructTokenizerV7` and its heirs). Names, arguments and results are untrusted: no control token
comes of them.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from voxcli.core.tools import ToolCall, ToolResult, ToolSpec
from voxcli.engines.voxtral.tokenizer import Tokenizer, plain_ids, shortened

VERSIONS = ("v7", "v11", "v13")
BASIC = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
CONTROLS = {  # what each version needs
    "v7": (*BASIC, "[TOOL_CONTENT]"),
    "v11": (*BASIC, "[TOOL_CONTENT]", "[CALL_ID]", "[ARGS]"),
    "v13": (*BASIC, "[ARGS]"),
}
SETS_REMEMBERED = 8  # sets of tools whose ids are cached: those of the conversations that take turns
LEAST_RESULT_TOKENS = 16  # A result that is cut to fewer tells a model nothing.


def why_no_tools(tokenizer: Tokenizer) -> str:
    """Return why prompts of a tokenizer can have no tools; empty if they can."""
    version = tokenizer.version
    if version not in VERSIONS:
        known = f"is of version {version}" if version else "has no version"
        return f"the checkpoint's tokenizer {known}, tools need {', '.join(VERSIONS[:-1])} or {VERSIONS[-1]}"
    missing = [name for name in CONTROLS[version] if name not in tokenizer.controls]
    return f"the checkpoint's tokenizer has no {', '.join(missing)}, which tools need" if missing else ""


def json_of(text: str) -> Any:
    """Return the value that JSON stands for; it can be written as JSON again, within other values.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text)
        json.dumps([[[[value]]]])
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


class ToolLayout:
    """Writes the tool parts of prompts for a tokenizer of which `why_no_tools` says nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        controls = tokenizer.controls
        self._tokenizer = tokenizer
        self._version = tokenizer.version
        self._end = controls["</s>"]
        self._tools, self._tools_end, self.calls, self._results, self._results_end = map(controls.__getitem__, BASIC)
        self._content = controls.get("[TOOL_CONTENT]", -1)
        self.call_id, self.arguments = controls.get("[CALL_ID]", -1), controls.get("[ARGS]", -1)
        self._ids_of = lru_cache(SETS_REMEMBERED)(self._plain)

    @property
    def tools_stand_first(self) -> bool:
        """Whether the available tools stand before the first user message, not before the last."""
        return self._version == "v13"

    def available(self, tools: Sequence[ToolSpec]) -> list[int]:
        """Return the ids of the available tools; none without tools."""
        if not tools:
            return []
        functions = [
            {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)} for tool in tools
        ]
        described = [{"type": "function", "function": each} for each in functions]
        written = json.dumps(described, ensure_ascii=False, default=str)  # a date in TOML is no JSON
        return [self._tools, *self._ids_of(written), self._tools_end]

    def exchange(self, text: str, results: Sequence[ToolResult], most: int) -> list[int] | None:
        """Return the ids of calls and their results, from the text before the calls to the last result.

        Args:
            text: what the model said before the calls.
            most: most ids. Results that do not fit are cut; half of what is left after the calls stays free for
                further calls.

        Returns:
            None if there is no room even for results that are cut.
        """
        called = [*self._plain(text.rstrip(" ")), *self._called([result.call for result in results]), self._end]
        around = [self._result(result.call, []) for result in results]
        each = ((most - len(called)) // 2 - sum(map(len, around))) // len(results)
        if each < LEAST_RESULT_TOKENS:
            return None
        texts = [shortened(self._tokenizer, result.text, each) for result in results]
        returned = [self._result(result.call, self._plain(text)) for result, text in zip(results, texts, strict=True)]
        return [*called, *(token_id for ids in returned for token_id in ids)]

    def _called(self, calls: Sequence[ToolCall]) -> list[int]:
        if self._version == "v7":
            listed = [{"name": call.name, "arguments": _arguments(call), "id": call.id} for call in calls]
            return [self.calls, *self._plain(json.dumps(listed, ensure_ascii=False))]
        ids: list[int] = []
        for call in calls:
            named = [self.call_id, *self._plain(call.id)] if self._version == "v11" else []
            arguments = self._plain(json.dumps(_arguments(call), ensure_ascii=False))
            ids += [self.calls, *self._plain(call.name), *named, self.arguments, *arguments]
        return ids

    def _result(self, call: ToolCall, text: list[int]) -> list[int]:
        named = [] if self._version == "v13" else [*self._plain(call.id), self._content]
        return [self._results, *named, *text, self._results_end]

    def _plain(self, text: str) -> list[int]:
        return plain_ids(self._tokenizer, text)


def _arguments(call: ToolCall) -> Any:
    """Return the arguments as JSON has them: a value, or the text that the model wrote if that is no JSON."""
    try:
        return json_of(call.arguments) if call.arguments else {}
    except ValueError:
        return call.arguments
