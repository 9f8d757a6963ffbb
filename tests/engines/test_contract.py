"""The contract of `voxcli.core.protocols.Engine`, kept by its double and by every engine."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_voxtral as tiny
from tests.support.openai_server import OpenAIServer
from voxcli.audio.clip import AudioClip, read_audio
from voxcli.config.paths import cache_folder
from voxcli.core.protocols import Engine, PassReport, Transcript, Utterance
from voxcli.core.session import Session, Turn, audio_placeholder
from voxcli.core.testing import FakeEngine
from voxcli.core.tools import ToolSpec
from voxcli.errors import ConfigError, ModelError

QUESTION = Path(__file__).parents[2] / "examples" / "questions" / "one-plus-one.flac"
REPLY_TOKENS = 12


def clip() -> AudioClip:
    return read_audio(str(QUESTION))


PLACEHOLDER = audio_placeholder(len(clip().samples), clip().sample_rate)
TURNS = (
    Turn(PLACEHOLDER, "It is two."),
    Turn(PLACEHOLDER, "It is", interrupted=True),
    Turn(PLACEHOLDER, "", interrupted=True, prompt="In one word."),
    Turn("And two plus two?", "Four."),
)
CASES = {
    "speech": (Session(), Utterance(clip())),
    "text": (Session(), Utterance(None, "What is one plus one?")),
    "speech and text": (Session(instructions="Be brief."), Utterance(clip(), "Answer in one word.")),
    "later turn": (Session(instructions="Be brief.", turns=TURNS), Utterance(clip())),
}
FIRST = CASES["speech"]


def open_fake(_stack: ExitStack, _folder: Path) -> Engine:
    return FakeEngine([["One and one", " is", " two."] for _ in range(30)])


def open_remote(stack: ExitStack, _folder: Path) -> Engine:
    pytest.importorskip("openai")
    from voxcli.engines.openai.engine import RemoteEngine
    from voxcli.engines.openai.request import RequestOptions
    from voxcli.servers.server import Server

    server = stack.enter_context(OpenAIServer())
    return RemoteEngine(Server(server.url, None), RequestOptions("tiny", REPLY_TOKENS, 0, 1, 8192))


def open_embedded(_stack: ExitStack, _folder: Path) -> Engine:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("xllamacpp")
    from voxcli.engines.embedded import weights
    from voxcli.engines.embedded.engine import EmbeddedEngine

    try:
        folder = weights.prepare(cache_folder())
    except ModelError as error:
        pytest.skip(str(error))
    return EmbeddedEngine.load(folder, instructions="", max_reply_tokens=REPLY_TOKENS, temperature=0, top_p=1)


def open_voxtral(_stack: ExitStack, folder: Path) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("mistral_common")
    from voxcli.engines.voxtral.engine import VoxtralEngine

    torch.set_num_threads(1)  # a model this small is slower with more
    return VoxtralEngine.load(
        tiny.make(folder / "checkpoint", window_seconds=2),
        name="tiny",
        device="cpu",
        max_reply_tokens=REPLY_TOKENS,
        temperature=0.0,
        top_p=1.0,
        context_tokens=2048,
        notice=pytest.fail,
    )


def open_batch(stack: ExitStack, folder: Path) -> Engine:
    batch: Engine = open_voxtral(stack, folder).for_many(2)
    return batch


OPENERS: dict[str, Callable[[ExitStack, Path], Engine]] = {
    "fake": open_fake,
    "remote": open_remote,
    "embedded": open_embedded,
    "voxtral": open_voxtral,
    "voxtral batch": open_batch,
}


@pytest.fixture(scope="module", params=OPENERS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with ExitStack() as stack:
        engine = OPENERS[request.param](stack, tmp_path_factory.mktemp("engine"))
        stack.callback(engine.close)
        yield engine


def collect(
    engine: Engine, session: Session, utterance: Utterance, interrupt_after: int | None = None
) -> tuple[list[str], PassReport]:
    """Return the deltas and the report of a reply that is interrupted after some deltas, or of a whole one."""
    interrupt, deltas = threading.Event(), list[str]()
    reply = engine.reply(session, utterance, interrupt)
    while True:
        if len(deltas) == interrupt_after:
            interrupt.set()
        try:
            given = next(reply)
        except StopIteration as end:
            return deltas, end.value
        if isinstance(given, Transcript):
            assert not deltas, "a transcript comes before the reply"
        else:
            assert isinstance(given, str)
            deltas.append(given)


@pytest.mark.parametrize("case", CASES)
def test_a_reply_is_deltas_and_a_report_of_one_pass(engine: Engine, case: str) -> None:
    deltas, report = collect(engine, *CASES[case])
    assert "".join(deltas).encode(), "some text, without half a character"
    assert report.model_passes == 1
    assert report.reply_tokens >= 1
    assert 0 <= report.cached_tokens <= report.prompt_tokens


def test_an_interrupted_reply_ends_with_a_report_and_is_the_beginning_of_the_whole_one(engine: Engine) -> None:
    whole, _ = collect(engine, *FIRST)
    deltas, report = collect(engine, *FIRST, interrupt_after=1)
    assert isinstance(report, PassReport)
    assert "".join(whole).startswith("".join(deltas))


def test_an_interrupt_before_the_reply_leaves_no_text(engine: Engine) -> None:
    deltas, report = collect(engine, *FIRST, interrupt_after=0)
    assert deltas == []
    assert report.reply_tokens == 0


def test_a_reply_may_be_closed_early_and_the_next_one_is_whole(engine: Engine) -> None:
    whole, _ = collect(engine, *FIRST)
    reply = engine.reply(*FIRST, threading.Event())
    assert "".join(whole).startswith(next(part for part in reply if isinstance(part, str)))
    reply.close()
    again, report = collect(engine, *FIRST)
    assert "".join(again) == "".join(whole)
    assert report.model_passes == 1


def test_what_was_understood_leaves_no_trace(engine: Engine) -> None:
    whole, _ = collect(engine, *FIRST)
    for steps in (0, 2, 1000):
        again, report = collect(engine, *FIRST)
        assert "".join(again) == "".join(whole)
        assert report.model_passes == 1
        try:
            line = engine.understand(FIRST[1])
        except ModelError:  # It kept no clip, because nobody was expected to ask.
            continue
        for _ in zip(range(steps), line or (), strict=False):
            pass
        if line:
            line.close()
    assert "".join(collect(engine, *CASES["text"])[0])


def test_working_ahead_changes_no_reply(engine: Engine) -> None:
    session, utterance = CASES["later turn"]
    expected, _ = collect(engine, session, utterance)
    engine.prefill_history(session)
    samples = clip().samples
    for count in (len(samples) // 2, len(samples)):
        engine.encode_partial(AudioClip(samples[:count], clip().sample_rate))
    deltas, report = collect(engine, session, utterance)
    assert "".join(deltas) == "".join(expected)
    assert report.model_passes == 1


def test_an_engine_that_can_not_call_tools_says_so(engine: Engine) -> None:
    session, utterance = FIRST
    reply = engine.reply(replace(session, tools=(ToolSpec("clock", "Tells the time."),)), utterance, threading.Event())
    if engine.supports_tools:
        reply.close()
        return
    with pytest.raises(ConfigError, match=f"the {engine.name} engine can't call tools") as caught:
        next(reply)
    assert "--engine voxtral" in caught.value.hint


def test_the_embedded_engine_alone_can_not_call_tools(engine: Engine) -> None:
    assert engine.supports_tools == (engine.name != "embedded")


def test_a_tool_that_is_not_called_changes_no_promise(engine: Engine) -> None:
    if engine.supports_tools:
        session = replace(FIRST[0], tools=(ToolSpec("clock", "Tells the time."),))
        deltas, report = collect(engine, session, FIRST[1])
        assert "".join(deltas)
        assert (report.model_passes, report.additional_generations) == (1, 0)
