"""Words for calls of tools and their results, for people. They are bounded and safe for a terminal."""

import json
from typing import Any

from voxcli.core.tools import Decider, ToolCall, ToolResult
from voxcli.printable import printable

NAME_CHARACTERS = 64  # longest name of a tool
SHOWN_CHARACTERS = 100  # most characters of the arguments or of a result in one line
ASKED_CHARACTERS = 600  # most characters of the arguments in a question, so that it fits a terminal
DECISIONS: dict[Decider, str] = {
    "": "",
    "settings": "by the settings",
    "flag": "by --allow-tool",
    "key": "by key",
    "voice": "by voice",
    "text": "by typing",
    "speech": "because something else was said",
    "timeout": "because nobody answered",
    "nobody": "because nobody could be asked",
}


def call_line(call: ToolCall, characters: int = SHOWN_CHARACTERS) -> str:
    """Return a call in one line: `weather (city: Rome)`."""
    words = argument_words(call, characters)
    return f"{tool_name(call)} ({words})" if words else tool_name(call)


def tool_name(call: ToolCall) -> str:
    """Return the name of the tool that is called."""
    return bounded(call.name, NAME_CHARACTERS)


def argument_words(call: ToolCall, characters: int = SHOWN_CHARACTERS) -> str:
    """Return the arguments in one line, `city: Rome, days: 3`; what is no JSON object as it is."""
    return bounded(", ".join(f"{name}: {value}" for name, value in argument_pairs(call)) or raw(call), characters)


def argument_pairs(call: ToolCall) -> list[tuple[str, str]]:
    """Return the names and values of a call's arguments; none if they are no JSON object."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return []
    return [(name, _value(value)) for name, value in arguments.items()] if isinstance(arguments, dict) else []


def raw(call: ToolCall) -> str:
    """Return the text of arguments that are no JSON object with anything in it; "" for an empty one."""
    text = call.arguments.strip()
    return "" if text in ("", "{}", "null") else text


def result_line(result: ToolResult) -> str:
    """Return a call and what became of it in one line: `weather (city: Rome): sunny (0.5 s)`."""
    return f"{call_line(result.call)}: {outcome_words(result)}"


def outcome_words(result: ToolResult) -> str:
    """Return what became of a call: its result, or why there is none, and how long it took."""
    text = bounded(result.text, SHOWN_CHARACTERS)
    seconds = f" ({result.seconds:.1f} s)" if result.seconds >= 0.05 else ""
    if result.status == "done":
        return f"{text or 'done'}{seconds}"
    if result.status == "refused":
        return " ".join(filter(None, ("refused", _decision(result))))
    words = {"timed-out": "took too long", "malformed": "called wrongly"}.get(result.status, result.status)
    return f"{words}{f', {text}' if text and result.status != 'interrupted' else ''}{seconds}"


def decision_words(result: ToolResult) -> str:
    """Return whether somebody was asked, and who allowed or refused it; "" if nobody was to."""
    if not result.decided_by:
        return "asked, not answered" if result.asked else ""
    asked = "asked, " if result.asked else ""
    return f"{asked}{'allowed' if result.allowed else 'refused'} {_decision(result)}"


def bounded(text: str, characters: int) -> str:
    """Return one line of untrusted text that a terminal can show; says how much of a long one is left out."""
    line = " ".join(text.split())
    if len(line) <= characters:
        return printable(line)
    return f"{printable(line[:characters])}… ({len(line) - characters:,} more characters)"


def _decision(result: ToolResult) -> str:
    if result.decided_by == "flag" and not result.allowed:
        return "without --allow-tool"
    return DECISIONS[result.decided_by]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
