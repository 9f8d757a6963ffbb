"""What the model generates, divided into text and calls. No model here: the ids are given."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tests.engines.voxtral.test_prompt import CONTROLS, OFFSET, Letters
from voxcli.core.tools import ToolCall, ToolCalls, ToolResult
from voxcli.engines.voxtral.tool_layout import ToolLayout
from voxcli.engines.voxtral.tool_reply import ToolReply

TOOL_CONTROLS = {
    **CONTROLS,
    "[AVAILABLE_TOOLS]": 5,
    "[/AVAILABLE_TOOLS]": 6,
    "[TOOL_RESULTS]": 7,
    "[/TOOL_RESULTS]": 8,
    "[TOOL_CALLS]": 9,
    "[TOOL_CONTENT]": 19,
    "[ARGS]": 32,
    "[CALL_ID]": 33,
}
CALL, ARGS, CALL_ID = TOOL_CONTROLS["[TOOL_CALLS]"], TOOL_CONTROLS["[ARGS]"], TOOL_CONTROLS["[CALL_ID]"]
ROOM = 5000
Part = str | int


def ids(*parts: Part) -> list[int]:
    """Return the ids of texts and control tokens."""
    found: list[int] = []
    for part in parts:
        found += [part] if isinstance(part, int) else [OFFSET + byte for byte in part.encode()]
    return found


def run(
    *generations: Sequence[Part],
    version: str = "v7",
    tools: bool = True,
    results: Any = "sunny",
    interrupted: bool = False,
    room: int = ROOM,
) -> tuple[list[str | ToolCalls], list[list[int]], ToolReply]:
    """Return what a reply yields, text joined, what was fed after the prompt each time, and the reply.

    Args:
        results: text of all results; None to end the reply.
    """
    tokenizer = Letters(controls=TOOL_CONTROLS, version=version)
    reply = ToolReply(tokenizer, ToolLayout(tokenizer) if tools else None)
    scripted, fed = iter(generations), []

    def generate(added: list[int]) -> Iterable[Sequence[int]]:
        fed.append(added)
        return [[token_id] for token_id in ids(*next(scripted))]

    items, found, sent = reply.run(generate, lambda: room, lambda: interrupted), list[str | ToolCalls](), None
    while True:
        try:
            item = items.send(sent)
        except StopIteration:
            return found, fed, reply
        sent = None
        if isinstance(item, ToolCalls):
            found.append(item)
            sent = None if results is None else [ToolResult(call, "done", results) for call in item.calls]
        elif found and isinstance(found[-1], str):
            found[-1] += str(item)
        else:
            found.append(str(item))


def calls_of(*parts: Part, version: str = "v7") -> list[tuple[str, Any]]:
    """Return names and arguments of the calls in one generation, without the text before them."""
    found, _, _ = run(parts, version=version, results=None)
    return [(call.name, call.arguments) for item in found if isinstance(item, ToolCalls) for call in item.calls]


LISTED = '[{"name": "weather", "arguments": {"town": "Köln"}}, {"name": "clock", "arguments": {}}]'


def test_text_before_a_call_is_given_out_and_the_call_is_not_text() -> None:
    found, _, _ = run(["Let me see.", CALL, LISTED], ["Sunny."])
    assert found[0] == "Let me see.\n", "a line that is complete can be spoken while the tools run"
    assert found[2:] == ["Sunny."]


@pytest.mark.parametrize("version", ["v7", "v11", "v13"])
def test_parallel_calls_in_each_layout(version: str) -> None:
    named: list[Part] = [CALL, "weather", ARGS, '{"town": "Köln"}', CALL, "clock", ARGS, "{}"]
    written: list[Part] = [CALL, LISTED] if version == "v7" else named
    assert calls_of(*written, version=version) == [("weather", '{"town": "Köln"}'), ("clock", "{}")]


def test_the_results_of_a_call_are_fed_and_the_reply_goes_on() -> None:
    found, fed, reply = run(
        ["One", CALL, "a", ARGS, '{"b":1}'], [CALL, "c", ARGS, "{}"], ["Two"], version="v13", results="r"
    )
    calls = [call.name for item in found if isinstance(item, ToolCalls) for call in item.calls]
    assert (calls, found[-1]) == (["a", "c"], "Two")
    first = ids("One", CALL, "a", ARGS, '{"b": 1}', 2, 7, "r", 8)
    assert fed == [[], first, [*first, *ids(CALL, "c", ARGS, "{}", 2, 7, "r", 8)]]
    assert reply.additional_generations == 2
    assert reply.tokens == len(ids("One", CALL, "a", ARGS, '{"b":1}', CALL, "c", ARGS, "{}", "Two"))


@pytest.mark.parametrize(
    "written",
    [
        '[{"name": "weather", "arguments": {"town": ',  # cut off at the longest reply
        '{"name": "weather"} and more',
        "[]",
        "",
        "3",
        '["weather"]',
        '[{"name": "weather"}, 3]',
        '[{"name": 3, "arguments": {}}]',
        '[{"arguments": {}}]',
        "[" * 5000,
        '[{"name": "weather", "arguments": ' + "[" * 2000 + "]" * 2000 + "}]",
        '[{"name": "weather", "arguments": ' + "9" * 5000 + "}]",
    ],
)
def test_a_malformed_call_has_what_the_model_wrote(written: str) -> None:
    ((name, arguments),) = calls_of(CALL, written)
    assert arguments == written.strip()
    assert name == ("weather" if '"weather",' in written or '"weather"}' in written else "")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"name": "weather", "arguments": {"a": 1}}', ("weather", '{"a": 1}')),
        ('[{"name": "weather"}]', ("weather", "{}")),
        ('[{"name": "weather", "arguments": ""}]', ("weather", "{}")),
        ('[{"name": "weather", "arguments": "{\\"a\\": 1}"}]', ("weather", '{"a": 1}')),
        ('[{"name": "weather", "arguments": null}]', ("weather", "null")),
        ('\n [{"name": "weather", "arguments": {}}]\n', ("weather", "{}")),
        ('[{"name": "rm -rf /", "arguments": {}}]', ("rm -rf /", "{}")),
    ],
)
def test_calls_of_other_forms_are_read(written: str, expected: tuple[str, str]) -> None:
    assert calls_of(CALL, written) == [expected]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([CALL, "weather", ARGS], ("weather", "{}")),
        ([CALL, " weather ", ARGS, '{"town": '], ("weather", '{"town":')),
        ([CALL, ARGS, "{}"], ("", "{}")),
        ([CALL, "weather", ARGS, "{", ARGS, "}"], ("weather", "{}")),
        ([CALL, "weather"], ("", "weather")),
        ([CALL], ("", "")),
        ([CALL, "weather", CALL_ID, "abcDEF123", ARGS, "{}"], ("weather", "{}")),
    ],
)
def test_calls_with_arguments_of_their_own(parts: list[Part], expected: tuple[str, str]) -> None:
    assert calls_of(*parts, version="v11") == [expected]


def test_an_id_that_the_model_gave_is_kept_if_it_is_one() -> None:
    listed = [{"name": "a", "id": given} for given in ("abcDEF123", "abcDEF123", "</s>", 3, None)]
    found, _, _ = run([CALL, json.dumps(listed)], results=None)
    assert isinstance(found[0], ToolCalls)
    called = [call.id for call in found[0].calls]
    assert called[0] == "abcDEF123"
    assert len(set(called)) == 5
    assert all(len(each) == 9 and each.isalnum() for each in called)


def test_ids_differ_within_a_reply_and_are_the_same_for_the_same_reply() -> None:
    def called() -> list[str]:
        twice: list[Part] = [CALL, "a", ARGS, "{}", CALL, "a", ARGS, "{}"]
        found, _, _ = run(twice, twice, twice, ["."], version="v11")
        return [call.id for item in found if isinstance(item, ToolCalls) for call in item.calls]

    assert len(set(called())) == 6
    assert called() == called()


def test_a_reply_ends_where_it_is_sent_none() -> None:
    found, fed, reply = run(["One.", CALL, "a", ARGS, "{}"], version="v13", results=None)
    assert [type(item) for item in found] == [str, ToolCalls]
    assert (fed, reply.additional_generations) == ([[]], 0)


def test_a_reply_that_was_interrupted_calls_nothing() -> None:
    assert run(["One.", CALL, LISTED], interrupted=True)[0] == ["One."]


def test_without_room_for_results_the_reply_ends_and_says_so() -> None:
    found, fed, reply = run([CALL, "a", ARGS, "{}"], version="v13", room=20)
    assert found == [ToolCalls((ToolCall(found[0].calls[0].id, "a", "{}"),))]  # type: ignore[union-attr]
    assert len(fed) == 1
    assert "no room for more results of tools" in reply.report(1, 5, 0, is_full=True).cut_note
    assert reply.report(1, 5, 0, is_full=False).cut_note == ""


def test_control_tokens_never_become_text() -> None:
    """Wherever they come, with tools or without."""
    strange: list[Part] = ["One", ARGS, " two", 7, 19, 8, " three", CALL_ID, 5, 6, 3, 4, "."]
    assert run(strange)[0] == run(strange, tools=False)[0] == ["One two three."]
    assert run(["One", CALL, " two"], tools=False)[0] == ["One two"]


def test_a_character_that_a_call_cuts_off_is_dropped() -> None:
    cut = OFFSET + "é".encode()[0]
    assert run(["One", cut, CALL, "a", ARGS, "{}"], version="v13", results=None)[0][0] == "One\n"
