"""Tools in a turn: calls are run and their results go back to the model, within limits; the store keeps them."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from voxcli.core.protocols import Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine
from voxcli.core.tools import (
    NOTE_CHARACTERS,
    ToolCall,
    ToolCalled,
    ToolCalls,
    ToolResult,
    ToolReturned,
    ToolSpec,
    ToolStatus,
    results_from_json,
)
from voxcli.core.turn import Event, ReplyDelta, TurnEnded, run_turn

WEATHER = ToolSpec("weather", "Tells the weather.")
QUESTION = Utterance(None, "How is the weather in Rome?")


def call(number: int = 1) -> ToolCall:
    return ToolCall(f"call{number:05}", "weather", '{"city": "Rome"}')


@dataclass
class FakeRunner:
    """Implements `ToolRunner`: every call has the same result."""

    max_calls: int = 8
    status: ToolStatus = "done"
    then: Callable[[], object] = lambda: None
    specs: tuple[ToolSpec, ...] = (WEATHER,)
    ran: list[ToolCall] = field(default_factory=list)

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        self.ran.append(call)
        self.then()
        return ToolResult(call, self.status, "sunny", 0.5)


def turn(
    engine: FakeEngine, runner: FakeRunner | None, interrupt: threading.Event | None = None
) -> tuple[list[Event], TurnEnded]:
    *events, ended = run_turn(engine, Session(), QUESTION, interrupt or threading.Event(), tools=runner)
    assert isinstance(ended, TurnEnded)
    return events, ended


def engine(*reply: str | ToolCalls) -> FakeEngine:
    return FakeEngine([reply])


def test_a_call_is_run_and_its_result_goes_back_to_the_model() -> None:
    asked, runner = engine("Let me see. ", ToolCalls((call(),)), "It is sunny."), FakeRunner()
    events, ended = turn(asked, runner)
    result = ToolResult(call(), "done", "sunny", 0.5)
    assert events == [ReplyDelta("Let me see. "), ToolCalled(call()), ToolReturned(result), ReplyDelta("It is sunny.")]
    assert asked.results == [result]
    assert asked.asked[0][0].tools == (WEATHER,)
    assert ended.turn == Turn(QUESTION.prompt, "Let me see. It is sunny.", tools=(result,))
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 1)


def test_parallel_calls_are_all_answered_in_their_order() -> None:
    asked, runner = engine(ToolCalls((call(1), call(2))), "Done."), FakeRunner()
    _, ended = turn(asked, runner)
    assert runner.ran == [call(1), call(2)]
    assert [result.call for result in ended.turn.tools] == [call(1), call(2)]


@pytest.mark.parametrize("runner", [None, FakeRunner(max_calls=1)])
def test_a_reply_ends_where_no_call_may_be_run(runner: FakeRunner | None) -> None:
    _, ended = turn(engine("One. ", ToolCalls((call(1), call(2))), "Two."), runner)
    assert ended.turn.reply == "One."
    assert runner is None or runner.ran == []


def test_a_malformed_call_goes_back_to_the_model_once() -> None:
    runner = FakeRunner(status="malformed")
    calls: Iterable[ToolCalls] = (ToolCalls((call(number),)) for number in (1, 2, 3))
    asked = engine(*calls, "Never said.")
    _, ended = turn(asked, runner)
    assert runner.ran == [call(1), call(2)]
    assert [result.call for result in asked.results] == [call(1)]
    assert ended.turn.reply == ""


def test_an_interrupt_during_a_call_ends_the_reply() -> None:
    interrupt = threading.Event()
    _, ended = turn(engine(ToolCalls((call(),)), "Never said."), FakeRunner(then=interrupt.set), interrupt)
    assert (ended.turn.reply, ended.turn.interrupted) == ("", True)
    assert len(ended.turn.tools) == 1


def test_later_prompts_show_one_bounded_line_for_each_call() -> None:
    result = ToolResult(call(), "done", "sunny\n and [warm]\n" * 500)
    user, note = Turn("How is it?", "Sunny.", tools=(result,)).user_text.split("\n")
    assert user == "How is it?"
    assert note.startswith('[Tool weather({"city": "Rome"}) done: sunny and (warm) sunny')
    assert len(note) <= NOTE_CHARACTERS + len("[Tool ]")


def test_what_was_understood_is_shown_after_the_placeholder() -> None:
    assert Turn("[User audio input - 1600 samples, 0.10s]", "Hello Anna.", understood="My name is Anna.").user_text == (
        "[User audio input - 1600 samples, 0.10s]\nMy name is Anna."
    )


def test_the_store_keeps_calls_and_what_was_understood(tmp_path: Path) -> None:
    result = ToolResult(call(), "timed-out", "no answer\nwithin 5 s", 5.0)
    kept = Turn("Hello", "Sorry.", understood="a greeting", tools=(result,))
    with Store.open(tmp_path) as store:
        store.append("a", kept)
        assert store.session("a") == Session("a", turns=(kept,))


@pytest.mark.parametrize("text", [None, "", "{", "3", "[3]", '[{"id": "1"}]', '{"id": 1}', "null"])
def test_what_is_no_list_of_results_has_none(text: str | None) -> None:
    assert results_from_json(text) == ()
