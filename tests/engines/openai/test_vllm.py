"""Against a real vLLM with a tiny model: `make test-vllm`. Its replies are noise; its protocol is the true one."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tiny_mistral import make as make_tiny
from voxcli.audio.clip import read_audio
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.tools import ToolCall, ToolResult, ToolSpec
from voxcli.errors import RemoteError

pytest.importorskip("openai")

from voxcli.engines.openai.engine import RemoteEngine
from voxcli.engines.openai.request import RequestOptions
from voxcli.engines.openai.tool_calls import Round, new_id
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.tokenizer import wrap
from voxcli.servers.errors import RequestRefusedError
from voxcli.servers.server import Server

URL = os.environ.get("VOXCLI_VLLM_URL", "")
pytestmark = pytest.mark.skipif(not URL, reason="make test-vllm runs it; VOXCLI_VLLM_URL names a server")

ROOT = Path(__file__).parent.parent.parent.parent
QUESTIONS = sorted((ROOT / "examples" / "questions").glob("*.flac"))
OPTIONS = RequestOptions("tiny", max_reply_tokens=48, temperature=0, top_p=1, context_tokens=3000)
LONG = replace(OPTIONS, max_reply_tokens=3000)  # takes this server some seconds
EARLIER = Turn("[User audio input - 33948 samples, 2.12s]", "Paris.")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VOXCLI_VLLM_URL")  # no setting
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VOXCLI_REPLY__MAX_TOKENS", "48")
    return tmp_path


def voxcli(*arguments: str | Path) -> str:
    """Run voxcli with this server; return what it printed."""
    command = [sys.executable, "-m", "voxcli", *map(str, arguments), "--engine", "remote", "--url", URL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def spoken(number: int = 0) -> Utterance:
    return Utterance(read_audio(QUESTIONS[number % len(QUESTIONS)]))


def report_of(
    engine: RemoteEngine, session: Session, utterance: Utterance, rounds: list[Round] | None = None
) -> PassReport:
    """Return what the server counted in a turn."""
    reply = engine.reply(session, utterance, threading.Event(), rounds)
    while True:
        try:
            next(reply)
        except StopIteration as over:
            report: PassReport = over.value
            return report


def metric(name: str) -> float:
    """Return the sum of one of the server's metrics."""
    with urllib.request.urlopen(f"{URL.removesuffix('/v1')}/metrics") as answer:  # noqa: S310 - http, ours
        text = answer.read().decode()
    return sum(float(line.split()[-1]) for line in re.findall(rf"^{name}(?:{{.*)? .*$", text, re.MULTILINE))


def eventually(holds: Callable[[], bool]) -> bool:
    """Return whether something comes to hold within ten seconds."""
    never = threading.Event()
    return any(holds() or never.wait(0.1) for _ in range(100))


def test_once_answers_and_counts() -> None:
    record = json.loads(voxcli("once", QUESTIONS[0], "--json"))
    assert record["engine"] == "remote"
    assert record["model"] == "tiny"
    assert record["model_passes"] == 1
    assert record["tokens"]["prompt"] > 375, "the audio alone has so many"
    assert 0 < record["tokens"]["reply"] <= 48


TOLD = {
    "first, spoken": Session(None, "Be short."),
    "typed beside the clip": Session(),
    "earlier turns": Session(
        None, "Answer in Français, Русский or 日本語. 🎧", (EARLIER, replace(EARLIER, interrupted=True))
    ),
    "control tokens as text": Session(None, "[INST] </s> [AUDIO] <s>", (replace(EARLIER, reply="[/INST]</s>"),)),
}


@pytest.mark.parametrize("case", TOLD)
def test_the_prompt_has_the_tokens_that_the_voxtral_engine_writes(home: Path, case: str) -> None:
    backend = pytest.importorskip("transformers.tokenization_mistral_common").MistralCommonBackend
    writer = PromptWriter(wrap(backend(tokenizer_path=str(make_tiny(home / "tiny") / "tekken.json"))))
    utterance = replace(spoken(), prompt="What about [BEGIN_AUDIO] and naïveté?" if case.startswith("typed") else "")
    engine = RemoteEngine(Server(URL), replace(OPTIONS, max_reply_tokens=1))
    assert report_of(engine, TOLD[case], utterance).prompt_tokens == len(writer.write(TOLD[case], utterance, 375))


def test_a_conversation_of_three_turns() -> None:
    records = [json.loads(voxcli("once", question, "--session", "s", "--json")) for question in QUESTIONS[:3]]
    assert [record["turn"] for record in records] == [1, 2, 3]
    prompts = [record["tokens"]["prompt"] for record in records]
    assert prompts[0] < prompts[1] < prompts[2] < prompts[0] + 300, "earlier turns are text"


def test_more_turns_than_a_server_takes_clips() -> None:
    engine = RemoteEngine(Server(URL), OPTIONS)
    turns = tuple(
        replace(EARLIER, interrupted=number % 2 == 0, reply="" if number % 3 else "Yes.") for number in range(9)
    )
    with closing(engine.reply(Session(None, "Be short.", turns), spoken(), threading.Event())) as reply:
        assert "".join(map(str, reply))


def test_a_batch_of_a_hundred(home: Path) -> None:
    manifest = home / "items.jsonl"
    lines = [{"id": str(number), "audio": str(QUESTIONS[number % len(QUESTIONS)])} for number in range(100)]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    voxcli("batch", manifest, "--out", home / "results.jsonl", "--concurrency", "8")
    records = [json.loads(line) for line in (home / "results.jsonl").read_text().splitlines()]
    assert sorted(int(record["id"]) for record in records) == list(range(100))
    assert all(record["tokens"]["reply"] > 0 for record in records)


def test_many_threads_at_once() -> None:
    engine = RemoteEngine(Server(URL), OPTIONS)

    def ask(number: int) -> str:
        return "".join(map(str, engine.reply(Session(), spoken(number), threading.Event())))

    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(ask, range(24)))
    assert all(replies)
    assert replies[0] == replies[len(QUESTIONS)], "greedy: the same question has the same reply"


@pytest.mark.parametrize("by", ["interrupt", "close"])
def test_the_server_stops_when_a_reply_is_not_wanted(by: str) -> None:
    before = metric("vllm:generation_tokens_total")
    interrupt = threading.Event()
    reply = RemoteEngine(Server(URL), LONG).reply(Session(), spoken(), interrupt)
    assert next(reply)
    if by == "interrupt":
        interrupt.set()
        assert len(list(reply)) <= 1
    reply.close()
    assert eventually(lambda: metric("vllm:num_requests_running") == 0)
    assert metric("vllm:generation_tokens_total") - before < LONG.max_reply_tokens / 2


def test_it_takes_tools_and_their_results() -> None:
    engine, spec = RemoteEngine(Server(URL), replace(OPTIONS, max_reply_tokens=1)), ToolSpec("weather", "Tells it.")
    session, question = Session(tools=(spec,)), spoken()
    without, with_tools = (report_of(engine, each, question).prompt_tokens for each in (Session(), session))
    assert with_tools > without
    calls = [ToolCall(new_id(), "weather", '{"city": "Rome"}'), ToolCall(new_id(), "no such\x1b", "{")]
    results = (ToolResult(calls[0], "done", "sunny"), ToolResult(calls[1], "malformed", "no such tool"))
    report = report_of(engine, session, question, [Round("Let me see.", results, PassReport(1, 0, 0, 0))])
    assert report.additional_generations == 1
    assert report.prompt_tokens > with_tools


def test_what_it_refuses() -> None:
    with pytest.raises(RemoteError, match="has no model other") as caught:
        next(RemoteEngine(Server(URL), replace(OPTIONS, model="other")).reply(Session(), spoken(), threading.Event()))
    assert "it has tiny" in caught.value.hint
    huge = replace(OPTIONS, max_reply_tokens=8192)
    with pytest.raises(RequestRefusedError, match="HTTP 400") as caught:
        next(RemoteEngine(Server(URL), huge).reply(Session(), spoken(), threading.Event()))
    assert "reply.max_tokens" in caught.value.hint
