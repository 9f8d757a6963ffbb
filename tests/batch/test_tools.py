"""Tools in a batch: only allowed ones run, a record says which, and a finished item's tools never run again."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import Listed, answer
from tests.support.canary import Canary, calls, sing
from voxcli.batch.changes import Asked, compare
from voxcli.batch.item import Item
from voxcli.batch.plan import Plan, survey
from voxcli.batch.results import Results
from voxcli.core.protocols import Engine, PassReport, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.core.tools import ToolCall
from voxcli.errors import ModelError
from voxcli.tools.allowed import AllowedTools


@dataclass
class Singer(Engine):
    """An engine whose replies call the canary with the item's prompt as song; fails after it where that is `fail`."""

    name: str = "singer"
    model: str = "singer"
    supports_tools: bool = True
    call: str = "canary"
    seen: list[tuple[str, ...]] = field(default_factory=list)  # names of the tools of each session

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        self.seen.append(tuple(spec.name for spec in session.tools))
        calling = ToolCall("call00001", self.call, json.dumps({"song": utterance.prompt}))
        results = yield calls(calling)
        if utterance.prompt == "fail":
            raise ModelError("no reply to that")
        if results:
            yield f"It says {results[0].text}."
        return PassReport(1, 10, 0, 2, additional_generations=1)

    def close(self) -> None:
        pass


def allowed(*names: str, **options: Any) -> tuple[AllowedTools, Canary]:
    canary = Canary(lambda call, _interrupt: call.name in names, **options)
    return AllowedTools(canary, names), canary


def plan(*prompts: str, session: str | None = None) -> Plan:
    return survey([Listed([Item(prompt, f"{prompt}.wav", "here", prompt, session) for prompt in prompts])])


def test_an_allowed_tool_runs_and_the_record_says_so() -> None:
    tools, canary = allowed("canary")
    (record,) = answer(plan("a"), Singer(), tools=tools)
    assert canary.sung == ["a"]
    assert record["reply"] == "It says tweet."
    assert record["additional_generations"] == 1
    assert record["tools"] == [
        {
            "id": "call00001",
            "name": "canary",
            "arguments": '{"song": "a"}',
            "status": "done",
            "text": "tweet",
            "seconds": 0.5,
            "asked": False,
            "allowed": True,
            "decided_by": "flag",
        }
    ]


@pytest.mark.parametrize("approval", ["ask", "always", "never"])
def test_no_other_tool_runs_whatever_its_approval(approval: Any) -> None:
    tools, canary = allowed("another", approval=approval)
    (record,) = answer(plan("a"), Singer(), tools=tools)
    assert canary.sung == []
    assert [(each["status"], each["allowed"]) for each in record["tools"]] == [("refused", False)]
    assert tools.specs == ()


def test_without_allowed_tools_a_call_ends_the_reply() -> None:
    (record,) = answer(plan("a"), Singer())
    assert (record["reply"], record["tools"]) == ("", [])


def test_an_engine_that_can_not_call_tools_is_given_none() -> None:
    tools, canary = allowed("canary")
    engine = Singer(supports_tools=False)
    (record,) = answer(plan("a"), engine, tools=tools)
    assert (canary.sung, record["tools"], engine.seen) == ([], [], [()])


def test_hostile_calls_run_nothing() -> None:
    tools, canary = allowed("canary")
    for name in ("Canary", "canary ", "canary\x1b[2J", "", "c" * 10_000, "../canary"):
        assert tools.run(ToolCall("x", name, "{"), threading.Event()).status == "malformed"
    for arguments in ("", "null", "[]", '{"song"', "[" * 100_000, '{"other": 1}'):
        assert tools.run(ToolCall("x", "canary", arguments), threading.Event()).status == "malformed"
    assert canary.sung == []


def test_a_model_that_calls_what_is_not_there_is_told_of_allowed_tools_alone() -> None:
    tools, _canary = allowed("another")
    result = tools.run(ToolCall("x", "s" * 10_000, "{}"), threading.Event())
    assert result.text.endswith("There are none.")
    assert len(result.call.name) == 64


def test_an_item_that_fails_after_its_tool_says_what_ran() -> None:
    tools, canary = allowed("canary")
    (record,) = answer(plan("fail"), Singer(), tools=tools)
    assert record["error"]["message"] == "no reply to that"
    assert [each["status"] for each in record["tools"]] == ["done"]
    assert canary.sung == ["fail"]


def results(path: Path) -> Results:
    return Results(path, resume=True, count=lambda _record: None)


def test_a_finished_item_is_not_answered_again_and_its_session_remembers_its_tools(tmp_path: Path) -> None:
    tools, canary = allowed("canary")
    out, items = tmp_path / "out.jsonl", plan("a", "b", "c", session="s")
    with results(out) as first:
        seen = answer(items, Singer(), tools=tools, finished=first)
        for record in seen[:2]:  # it is killed before the third is written
            first.write(record)
    assert canary.sung == ["a", "b", "c"]
    with results(out) as second:
        assert compare(items, second, Asked("Be brief.", tools=("canary",))).ids == set()
        turns = second.turns("s")
        (third,) = answer(items, Singer(), tools=tools, finished=second)
    assert canary.sung == ["a", "b", "c", "c"]
    assert [turn.tools[0].call for turn in turns] == [sing("a"), sing("b")]
    assert third["fingerprint"] == seen[2]["fingerprint"], "its prompt had the same history"


def test_other_tools_are_another_question(tmp_path: Path) -> None:
    tools, _ = allowed("canary")
    with results(tmp_path / "out.jsonl") as opened:
        for record in answer(plan("a"), Singer(), tools=tools):
            opened.write(record)
    with results(tmp_path / "out.jsonl") as opened:
        changes = compare(plan("a"), opened, Asked("Be brief.", tools=()))
    assert changes.reasons == {"tools": (1, "a")}


@pytest.mark.parametrize("broken", [3, "x", [3], [{"id": 1}], {"a": 1}, [[]], [{"id": "1", "name": "n"}]])
def test_broken_tools_in_a_record_are_none(broken: object, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(
        json.dumps({"id": "a", "user": "u", "reply": "r", "session": "s", "turn": 1, "tools": broken}) + "\n"
    )
    with results(out) as opened:
        (turn,) = opened.turns("s")
    assert turn.tools == ()


def test_workers_share_the_tools() -> None:
    tools, canary = allowed("canary")
    songs = [f"s{number}" for number in range(30)]
    found = answer(plan(*songs), Singer(), workers=4, tools=tools)
    assert sorted(canary.sung) == sorted(songs)
    assert {record["id"]: json.loads(record["tools"][0]["arguments"])["song"] for record in found} == dict(
        zip(songs, songs, strict=True)
    )
