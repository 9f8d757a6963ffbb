"""Tools called in replies that are decoded together; a script replaces the model's logits, as in `test_tool_turns`."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.voxtral.test_tool_layout import HOSTILE, Exchange, expected
from tests.engines.voxtral.test_tool_turns import END, SESSION, SPOKEN, TOOLS, ScriptedRunner, Tools, sound
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.core.tools import ToolReturned
from voxcli.core.turn import Event, ReplyDelta, TurnEnded, run_turn
from voxcli.core.understanding import INSTRUCTION
from voxcli.engines.voxtral.tokenizer import TextStream
from voxcli.errors import ModelError

SPOKEN_WINDOWS = 2


class BatchTools(Tools):
    """A batch engine with a scripted model; notes how many tokens are fed at once."""

    def __init__(self, folder: Path, version: str, slots: int) -> None:
        super().__init__(folder, version)
        self.engine = self.single.for_many(slots, understood=True)
        self.fed: list[int] = []
        self.model.get_input_embeddings().register_forward_hook(self._note_fed)

    def _note_fed(self, _module: Any, args: Any, _embeddings: Any) -> None:
        self.fed.append(args[0].numel())

    def text(self, ids: list[int]) -> str:
        stream = TextStream(self.tokenizer)
        return "".join(map(stream.add, ids))

    def last_reply(self, session: Session, utterance: Utterance, exchanges: list[Exchange]) -> str:
        """Return the text after the last results, as a fresh decoder gives it."""
        return self.text(self.fresh(session, utterance, exchanges))


@pytest.fixture(scope="module", params=[("v7", 2), ("v11", 1), ("v13", 2)], ids=["v7", "v11-one slot", "v13"])
def tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchTools]:
    version, slots = request.param
    tools = BatchTools(tmp_path_factory.mktemp("checkpoints"), version, slots)
    yield tools
    tools.engine.close()


def results_of(events: list[Event]) -> list[Any]:
    return [event.result for event in events if isinstance(event, ToolReturned)]


def text_after_results(events: list[Event]) -> str:
    last = max(place for place, event in enumerate(events) if isinstance(event, ToolReturned))
    return "".join(event.text for event in events[last:] if isinstance(event, ReplyDelta))


def test_a_call_is_answered_and_its_clip_is_encoded_once(tools: BatchTools) -> None:
    before, call = tools.encoded, [*tools.called(("weather", '{"town": "Rome"}')), END]
    tools.fed.clear()
    events, ended = tools.take([[*tools.ids("Let me see."), *call], call], ScriptedRunner(specs=TOOLS))
    encoded, prefills = tools.encoded - before, [count for count in tools.fed if count > 4]
    first, second = results_of(events)
    exchanges = [Exchange("Let me see.", (first,)), Exchange("", (second,))]
    session = replace(SESSION, tools=TOOLS)
    assert text_after_results(events) == tools.last_reply(session, SPOKEN, exchanges)
    assert (encoded, ended.report.model_passes, ended.report.additional_generations) == (SPOKEN_WINDOWS, 1, 2)
    assert ended.turn.reply.startswith("Let me see.\n")
    assert len(prefills) == 3
    assert max(prefills[1:]) < 80, "the slot still holds the prompt and its audio"


def test_parallel_malformed_and_hostile_calls(tools: BatchTools) -> None:
    runner = ScriptedRunner(specs=TOOLS, answer=lambda _: HOSTILE, status="malformed")
    call = [*tools.called(("weather", '{"town": "Rome"}'), ("evil", '{"a": '))[:-1], END]
    events, ended = tools.take([call, [], []], runner)
    if tools.version == "v7":
        assert [result.call.name for result in results_of(events)] == ["weather"], "the list as a whole is malformed"
        exchange = Exchange("", tuple(results_of(events)))
        assert text_after_results(events) == tools.last_reply(replace(SESSION, tools=TOOLS), SPOKEN, [exchange])
    else:
        assert [result.call.name for result in results_of(events)] == ["weather", "evil"]
        assert ended.report.additional_generations == 1, "malformed calls of one round go back once"


def test_while_a_tool_runs_others_may_take_the_slots(tools: BatchTools) -> None:
    others = [Utterance(sound(2, seed)) for seed in (7, 8, 9)]
    replies: list[str] = []

    def reply_to_others() -> None:
        tools.script.left = []
        with ThreadPoolExecutor(3) as callers:
            replies.extend(
                callers.map(lambda each: "".join(tools.engine.reply(SESSION, each, threading.Event())), others)
            )

    before = tools.encoded
    runner = ScriptedRunner(specs=TOOLS, then=reply_to_others)
    events, ended = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner)
    encoded = tools.encoded - before
    exchange = Exchange("", tuple(results_of(events)))
    assert text_after_results(events) == tools.last_reply(replace(SESSION, tools=TOOLS), SPOKEN, [exchange])
    assert replies == [tools.last_reply(SESSION, each, []) for each in others]
    assert (encoded, ended.report.model_passes) == (SPOKEN_WINDOWS + len(others), 1)


def test_an_interrupt_while_a_tool_runs_ends_the_reply(tools: BatchTools) -> None:
    interrupt = threading.Event()
    runner = ScriptedRunner(specs=TOOLS, then=interrupt.set)
    script = tools.ids("Let me see.", *tools.called(("weather", '{"town": "Rome"}')), END)
    _, ended = tools.take([script], runner, interrupt=interrupt)
    assert (ended.turn.reply, ended.turn.interrupted) == ("Let me see.", True)
    assert ended.report.additional_generations == 0


def test_what_was_understood_is_asked_after_a_reply_with_tools(tools: BatchTools) -> None:
    before, runner = tools.encoded, ScriptedRunner(specs=TOOLS)
    events, ended = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner)
    line = "".join(tools.engine.understand(SPOKEN))
    assert tools.encoded - before == SPOKEN_WINDOWS
    session, exchange = replace(SESSION, tools=TOOLS), Exchange("", tuple(results_of(events)))
    prompt = expected(tools.theirs, session, SPOKEN, [exchange])
    asked = [*prompt, *tools.fresh(session, SPOKEN, [exchange]), END, *tools.ids(3, INSTRUCTION, 4)]
    assert tools.text(tools.continued(asked, SPOKEN)).startswith(line)
    assert line
    assert ended.report.additional_generations == 1


def test_an_oversized_result_is_cut(tools: BatchTools) -> None:
    call = [*tools.called(("weather", '{"town": "Rome"}')), END]
    runner = ScriptedRunner(specs=TOOLS, answer=lambda _: "wind from the west, 東京 " * 50_000)
    events, ended = tools.take([call, call], runner)
    assert len(runner.ran) == 2
    assert text_after_results(events)
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 2)


def test_a_closed_engine_ends_a_reply_whose_tool_runs(tmp_path: Path) -> None:
    tools = BatchTools(tmp_path, "v7", 1)
    tools.script.left = [*tools.called(("weather", "{}")), END]
    runner = ScriptedRunner(specs=TOOLS, then=tools.engine.close)
    *_, ended = run_turn(tools.engine, SESSION, SPOKEN, threading.Event(), tools=runner)
    assert isinstance(ended, TurnEnded)
    assert isinstance(ended.error, ModelError)
    assert ended.error.message == "the engine is closed"
    assert len(runner.ran) == len(ended.turn.tools) == 1
