"""Servers that differ from the protocol, each as a public report of its users shows it."""

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.engines.openai.test_engine import OPTIONS, SPOKEN, ask, engine_for, failure
from tests.support.openai_server import Answer, Exchange, OpenAIServer, refuses, sends, streams, writes
from voxcli.cli import app
from voxcli.core.protocols import PassReport
from voxcli.core.session import Session
from voxcli.core.storage.store import Store

pytest.importorskip("openai")

from voxcli.engines.openai.engine import RemoteEngine, list_models
from voxcli.errors import RemoteError
from voxcli.servers.errors import NoModelListError, RequestRefusedError
from voxcli.servers.server import Server


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def chunk(content: Any = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content} | delta, "finish_reason": finish}]}


def sse(*events: Any, end: str = "\n\n") -> bytes:
    texts = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return "".join(f"{text}{end}" for text in texts).encode()


QUESTION = Path(__file__).parents[3] / "examples" / "questions" / "capital-of-france.flac"
PARIS, IT_IS, END, DONE = chunk("Paris"), chunk("It is "), chunk(finish="stop"), "data: [DONE]"
WHOLE = sse(IT_IS, PARIS, END, DONE)
MESSAGE = {"role": "assistant", "content": "It is Paris", "reasoning_content": "hm"}
OBJECT = {"object": "chat.completion", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
PING = {"id": "", "created": 0, "model": "", "object": "", "choices": []}
FILTERED = {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {"hate": {"filtered": False}}}]}
THINKING_PART = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
UTF8 = sse(chunk("It is "), chunk("Paris"), END)

REPLIES: dict[str, Answer] = {
    "the documented form": writes(WHOLE),
    "usage without choices": streams(IT_IS, PARIS, END, {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
    "usage with choices null": streams(IT_IS, PARIS, END, {"choices": None, "usage": {"prompt_tokens": 3}}),
    "a chunk of prompt filters first, as Azure sends": streams(
        PING | {"prompt_filter_results": [{}]}, IT_IS, PARIS, END
    ),
    "a choice without delta, as Azure's filter sends": streams(IT_IS, PARIS, END, FILTERED),
    "delta null": streams({"choices": [{"delta": None, "finish_reason": None}]}, IT_IS, PARIS, END),
    "content null at first, as llama.cpp sends": streams(chunk(role="assistant"), IT_IS, PARIS, END),
    "comments with nothing in them": writes(sse(":", ":", IT_IS, ":", PARIS, END, DONE)),
    "OpenRouter's comments": writes(sse(": OPENROUTER PROCESSING", IT_IS, ": OPENROUTER PROCESSING", PARIS, END)),
    "comments after an id": writes(sse(f"id: 1\ndata: {json.dumps(IT_IS)}", ": ping", PARIS, END, ": ping", DONE)),
    "events called ping": writes(
        sse("event: ping\ndata: now", IT_IS, 'event: ping\ndata: {"type": "ping"}', PARIS, END)
    ),
    "an object of type ping": streams({"type": "ping"}, IT_IS, PARIS, END),
    "data that is empty": writes(sse("data:", IT_IS, "data: ", PARIS, END, DONE)),
    "retry and id fields": writes(sse("retry: 3000", f"id: 7\ndata: {json.dumps(IT_IS)}", PARIS, END)),
    "named events": writes(sse(*(f"event: chunk\ndata: {json.dumps(each)}" for each in (IT_IS, PARIS, END)))),
    "CRLF": writes(sse(IT_IS, PARIS, END, DONE, end="\r\n\r\n")),
    "CR alone": writes(sse(IT_IS, PARIS, END, DONE, end="\r\r")),
    "no space after data": writes(WHOLE.replace(b"data: ", b"data:")),
    "an object over several lines": writes(b"data: {\ndata: " + WHOLE.removeprefix(b"data: {")),
    "no blank line at the end": writes(WHOLE.rstrip(b"\n")),
    "no blank line and no DONE": writes(sse(IT_IS, PARIS, END).rstrip(b"\n")),
    "no finish reason, but DONE": streams(IT_IS, PARIS, "[DONE]"),
    "an empty finish reason in each chunk, as Ollama had it": streams(chunk("It is ", ""), chunk("Paris", ""), END),
    "a finish reason beside the last text": streams(IT_IS, chunk("Paris", "stop")),
    "the text and the end in one": streams(chunk("It is Paris", "stop"), "[DONE]"),
    "a byte-order mark": writes(b"\xef\xbb\xbf" + WHOLE),
    "the header in another case": writes(WHOLE, "Text/Event-Stream; Charset=UTF-8"),
    "a charset that is wrong": writes(WHOLE, "text/event-stream; charset=ascii"),
    "text/plain": writes(WHOLE, "text/plain"),
    "no type": writes(WHOLE, ""),
    "gzip": writes(gzip.compress(WHOLE), content_encoding="gzip"),
    "GZIP": writes(gzip.compress(WHOLE), content_encoding="GZIP"),
    "one object, not streamed": refuses(200, OBJECT),
    "one object in UTF-8 with a mark": writes(b"\xef\xbb\xbf" + json.dumps(OBJECT).encode(), "Application/JSON"),
    "one object, compressed": writes(gzip.compress(json.dumps(OBJECT).encode()), "text/json", content_encoding="gzip"),
    "message in place of delta": streams(
        {"choices": [{"message": {"content": "It is Paris"}, "finish_reason": "stop"}]}
    ),
    "content in parts": streams(chunk([{"type": "text", "text": "It is "}]), chunk([{"text": "Paris"}]), END),
    "strings as parts": streams(chunk(["It ", "is "]), PARIS, END),
    "Magistral's thinking parts": streams(
        chunk([THINKING_PART]), chunk([{"type": "text", "text": "It is "}]), PARIS, END
    ),
    "reasoning_content": streams(
        chunk(None, reasoning_content="hm"), chunk("It is ", reasoning_content=None), PARIS, END
    ),
    "reasoning, as OpenRouter and vLLM call it": streams(
        chunk("", reasoning="hm", reasoning_details=[{}]), IT_IS, PARIS, END
    ),
    "a think tag": streams(chunk("<think>"), chunk("hm"), chunk("</think>\n\n"), IT_IS, PARIS, END),
    "two choices": streams({"choices": [*IT_IS["choices"], {"index": 1, "delta": {"content": "no"}}]}, PARIS, END),
    "an only choice that is not the first": streams(
        {"choices": [{"index": 1, "delta": {"content": "It is Paris"}, "finish_reason": "stop"}]}
    ),
    "error null in each chunk": streams(*({"error": None} | each for each in (IT_IS, PARIS, END))),
    "text beside a call of a tool": streams(
        IT_IS, chunk("Paris", tool_calls=[{"index": 0}]), chunk(finish="tool_calls")
    ),
    "chunks after DONE": writes(WHOLE + sse({"choices": [{"delta": {"content": "!"}}]})),
    "a status of 201": lambda exchange: exchange.send(201, WHOLE, "text/event-stream"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_what_is_harmless_is_accepted(server: OpenAIServer, case: str) -> None:
    server.always = REPLIES[case]
    assert "".join(ask(engine_for(server, retries=0))[0]) == "It is Paris"


ERROR = {"message": "the GPU is on fire", "type": "server_error", "code": 500}
FAILURES: dict[str, tuple[Answer, str]] = {
    "an error object": (streams({"error": ERROR}, "[DONE]"), "GPU is on fire"),
    "an error that is a string": (streams({"error": "the GPU is on fire"}), "GPU is on fire"),
    "an event called error": (
        writes(sse(f"event: error\ndata: {json.dumps({'error': ERROR, 'message': '?'})}")),
        "on fire",
    ),
    "an event called error without an object": (
        writes(sse("event: error\ndata: the GPU is on fire")),
        "GPU is on fire",
    ),
    "an event called error with a bare message": (writes(sse(f"event: error\ndata: {json.dumps(ERROR)}")), "on fire"),
    "a field called error, as llama.cpp had it": (writes(sse(f"error: {json.dumps(ERROR)}", DONE)), "GPU is on fire"),
    "the same after text": (writes(sse(IT_IS, f"error: {json.dumps(ERROR)}", DONE)), "GPU is on fire"),
    "an object that is an error, as vLLM had it": (streams(ERROR | {"object": "error"}), "GPU is on fire"),
    "an error in a chunk with choices": (streams(chunk("") | {"error": ERROR}), "GPU is on fire"),
    "an error in a choice": (streams({"choices": [{"error": ERROR, "finish_reason": "error"}]}), "GPU is on fire"),
    "an error beside empty choices, as OpenRouter sends": (streams({"choices": [], "error": ERROR}), "GPU is on fire"),
    "finish reason error": (streams(IT_IS, chunk(finish="error")), "failed"),
    "an error in place of the object": (refuses(200, {"error": ERROR}), "GPU is on fire"),
    "a connection cut in a chunk": (sends("It is ", then=Exchange.drop), "dropped the connection"),
    "half an object": (writes(WHOLE[:60]), "protocol documents"),
    "no end": (streams(IT_IS), "broke off before the reply was over"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_keeps_its_message(server: OpenAIServer, case: str) -> None:
    server.always, message = FAILURES[case]
    assert message in failure(engine_for(server, retries=0)).message


NO_TEXT: dict[str, tuple[Answer, str, str]] = {
    "nothing": (streams(chunk(""), END, "[DONE]"), "sent an empty reply", "--model"),
    "spaces": (streams(chunk(" \n"), END), "sent an empty reply", "--model"),
    "usage alone": (
        streams({"choices": [], "usage": {"prompt_tokens": 3}}, "[DONE]"),
        "sent an empty reply",
        "--model",
    ),
    "reasoning alone": (streams(chunk(reasoning_content="hm"), END), "reasoning, but no reply", "turn reasoning off"),
    "reasoning that used up the tokens": (
        streams(chunk(reasoning="hm"), chunk(finish="length")),
        "reply.max_tokens was reached",
        "raise reply.max_tokens",
    ),
    "a think tag alone": (streams(chunk("<think>hm</think>"), END), "reasoning, but no reply", ""),
    "a think tag that is not closed": (streams(chunk("<think>hm"), END), "reasoning, but no reply", ""),
    "thinking parts alone": (streams(chunk([THINKING_PART]), END), "reasoning, but no reply", ""),
    "a call of a tool": (streams(chunk(tool_calls=[{"index": 0}]), chunk(finish="tool_calls")), "called a tool", ""),
    "a filter": (streams(chunk(finish="content_filter")), "withheld the reply", "other words"),
    "an object without text": (refuses(200, {"choices": [{"message": {"content": None}}]}), "empty reply", ""),
    "an unknown part": (streams(chunk([{"type": "image", "text": "no"}]), END), "sent an empty reply", ""),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_a_reply_without_text_is_an_error_and_not_asked_for_again(server: OpenAIServer, case: str) -> None:
    server.always, message, hint = NO_TEXT[case]
    error = failure(engine_for(server))
    assert isinstance(error, RequestRefusedError), "another server would do the same"
    assert message in error.message
    assert hint in error.hint
    assert len(server.chats) == 1


@pytest.mark.parametrize("reason", ["length", "content_filter", "stop"])
def test_why_a_reply_ended_is_reported(server: OpenAIServer, reason: str) -> None:
    server.always = streams(chunk("It is"), chunk(finish=reason))
    report = ask(engine_for(server))[1]
    assert report.finish_reason == reason
    assert bool(report.cut_note) is (reason != "stop")


def test_a_finish_reason_can_not_drive_a_terminal(server: OpenAIServer) -> None:
    server.always = streams(chunk("a", "\x1b[31m" + "x" * 500))
    reason = ask(engine_for(server))[1].finish_reason
    assert reason
    assert reason.isprintable()
    assert len(reason) <= 100


def test_the_last_usage_counts(server: OpenAIServer) -> None:
    nothing = {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    server.always = streams(chunk("a") | nothing, END | {"usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    assert ask(engine_for(server))[1] == PassReport(1, 5, 0, 2, finish_reason="stop")


def test_text_that_is_held_back_is_given_before_the_error(server: OpenAIServer) -> None:
    server.always = streams(chunk("Write <think> "), chunk("and then"))
    reply = engine_for(server).reply(Session(), SPOKEN, threading.Event())
    assert next(reply) == "Write "
    assert next(reply) == "", "what follows may be reasoning"
    assert next(reply) == "<think> and then"
    with pytest.raises(RemoteError, match="broke off"):
        next(reply)


# --- Lists of models -----------------------------------------------------------------------------

LISTS: dict[str, tuple[Answer, list[str]]] = {
    "a bare list, as Together's": (refuses(200, [{"id": "a"}, {"id": "b"}]), ["a", "b"]),
    "null, as Ollama's without models": (refuses(200, {"object": "list", "data": None}), []),
    "a type in another case": (writes(b'{"data": [{"id": "a"}]}', "Application/JSON; Charset=utf-8"), ["a"]),
    "compressed": (
        writes(gzip.compress(b'{"data": [{"id": "a"}]}'), "application/json", content_encoding="gzip"),
        ["a"],
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_models_differ(server: OpenAIServer, case: str) -> None:
    server.list_of_models, names = LISTS[case]
    assert list_models(Server(server.url)).names == names


@pytest.mark.parametrize(
    "answer",
    [
        refuses(404),
        refuses(405),
        refuses(501),
        refuses(200, {"models": 7}),
        writes(b"<html>", "text/html"),
        writes(b"{", "a/json"),
    ],
)
def test_a_model_is_to_be_named_where_none_is_listed(server: OpenAIServer, answer: Answer) -> None:
    server.list_of_models = answer
    unnamed = RemoteEngine.open(Server(server.url), OPTIONS)
    assert "".join(ask(unnamed)[0]), "a named model needs no list"
    with pytest.raises(NoModelListError) as caught:
        list_models(Server(server.url))
    assert "--model NAME" in caught.value.hint
    assert "/chat/completions" not in caught.value.message


# --- What people see -----------------------------------------------------------------------------


def test_a_reply_that_is_cut_off_says_so_in_a_line_and_in_the_record(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    server.always = streams(chunk("It is"), chunk(finish="length"))
    command = ["once", str(QUESTION), "--engine", "remote", "--url", server.url, "--session", "s", "--no-speak"]
    shown, recorded = CliRunner().invoke(app, command), CliRunner().invoke(app, [*command, "--json"])
    assert shown.stdout == "It is\n"
    assert len([line for line in shown.stderr.splitlines() if "cut off" in line]) == 1
    assert json.loads(recorded.stdout)["finish_reason"] == "length"


def test_reasoning_is_neither_printed_nor_remembered(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    server.always = streams(
        chunk("<think>the secret"), chunk(" plan</think>"), chunk("It is Paris", reasoning="plan"), END
    )
    command = ["once", str(QUESTION), "--engine", "remote", "--url", server.url, "--session", "s", "--json"]
    first, second = CliRunner().invoke(app, command), CliRunner().invoke(app, command)
    assert json.loads(first.stdout)["reply"] == json.loads(second.stdout)["reply"] == "It is Paris"
    assert "plan" not in first.output + second.output
    assert server.chats[1].body["messages"][1]["content"] == "It is Paris"
    with Store.open(tmp_path) as store:
        session = store.session("s")
    assert session
    assert "plan" not in str(session.turns)
