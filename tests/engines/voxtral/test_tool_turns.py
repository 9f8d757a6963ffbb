"""Tools called by a tiny random Voxtral whose tokens are scripted: what runs, what is fed, and what comes after.

The script replaces the logits. Where it ends, the model's own follow, so that each last generation of a reply and each
later turn can be compared with those of a fresh decoder.

RANDOM_SEQUENCES: number of random sequences of turns, for each layout.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.test_tools import FakeRunner
from tests.engines.voxtral.test_tool_layout import EVIL, HOSTILE, WEATHER, Exchange, expected, reference
from tests.support import tiny_voxtral as tiny
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.tools import ToolCall, ToolCalled, ToolResult, ToolReturned, ToolSpec
from voxcli.core.turn import Event, ReplyDelta, TurnEnded, run_turn
from voxcli.core.understanding import INSTRUCTION
from voxcli.errors import ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
voxtral = pytest.importorskip("voxcli.engines.voxtral.engine")
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more

MOST_TOKENS = 80
CONTEXT_TOKENS = 3000  # a quarter of it is kept free for tools
END, CALLS, ARGS = 2, 9, 32
TOOLS: tuple[ToolSpec, ...] = (WEATHER, EVIL)
Part = str | int


def sound(seconds: float, seed: int = 0) -> AudioClip:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 16_000)) / 10
    return AudioClip(samples.astype(np.float32))


SPOKEN = Utterance(sound(3))
SESSION = Session(instructions="Be brief.", turns=(Turn("[User audio input - 16000 samples, 1.00s]", "Hello."),))


@dataclass
class Script:
    """Replaces the next logits of a model, so that they give these tokens."""

    left: list[int] = field(default_factory=list)

    def attach(self, model: Any) -> None:
        model.get_output_embeddings().register_forward_hook(self._replace)

    def _replace(self, _module: Any, _args: Any, logits: Any) -> Any:
        if not self.left:
            return None
        forced = torch.full_like(logits, -1000.0)
        forced[..., self.left.pop(0)] = 1000.0
        return forced


@dataclass
class ScriptedRunner(FakeRunner):
    """Runs every call, and has the script say the next generation."""

    answer: Callable[[ToolCall], str] = lambda _: "sunny"
    next_generation: Callable[[], None] = lambda: None

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        result = replace(super().run(call, interrupt), text=self.answer(call))
        self.next_generation()
        return result


class Tools:
    """An engine with a scripted model; notes what it generates and feeds."""

    def __init__(self, folder: Path, version: str, *, looks_ahead: bool = False) -> None:
        checkpoint = tiny.make(folder / f"{version}-{looks_ahead}", window_seconds=2, version=version)
        classes: Any = transformers
        self.model = classes.VoxtralForConditionalGeneration.from_pretrained(checkpoint, local_files_only=True).eval()
        processor = classes.VoxtralProcessor.from_pretrained(checkpoint, local_files_only=True)
        self.engine = self.single = voxtral.VoxtralEngine(
            self.model, processor, name="tiny", max_reply_tokens=MOST_TOKENS, context_tokens=CONTEXT_TOKENS,
            notice=pytest.fail, backends=Backends(looks_ahead=looks_ahead),
        )  # fmt: skip
        self.version = version
        self.tokenizer = voxtral.wrap(processor.tokenizer)
        self.theirs = reference(checkpoint / "tekken.json")
        self.script = Script()
        self.script.attach(self.model)
        self.encoded = 0
        self.model.model.audio_tower.register_forward_pre_hook(self._count_windows)
        self.generated: list[list[int]] = []
        self.prefilled: list[Any] = []  # results of prefills, of history too
        self._note_decoder()

    def _count_windows(self, _module: Any, args: Any) -> None:
        self.encoded += args[0].shape[0]

    def _note_decoder(self) -> None:
        decoder = self.engine.decoder
        stream, prefill, extend = decoder.stream, decoder.prefill, decoder.extend

        def noted_stream(*args: Any) -> Iterator[int]:
            self.generated.append([])
            for token_id in stream(*args):
                self.generated[-1].append(token_id)
                yield token_id

        def noted(fill: Callable[..., Any]) -> Callable[..., Any]:
            def fill_and_note(*args: Any) -> Any:
                self.prefilled.append(fill(*args))
                return self.prefilled[-1]

            return fill_and_note

        decoder.stream, decoder.prefill, decoder.extend = noted_stream, noted(prefill), noted(extend)

    def ids(self, *parts: Part) -> list[int]:
        return [id_ for part in parts for id_ in ([part] if isinstance(part, int) else self.tokenizer.encode(part))]

    def called(self, *calls: tuple[str, str]) -> list[int]:
        """Return how the model of this version writes calls, without ids as it learned it."""
        if self.version == "v7":
            listed = ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls)
            return self.ids(CALLS, f"[{listed}]")
        return [id_ for name, arguments in calls for id_ in self.ids(CALLS, name, ARGS, arguments)]

    def take(
        self,
        scripts: Sequence[list[int]],
        runner: ScriptedRunner,
        session: Session = SESSION,
        utterance: Utterance = SPOKEN,
        interrupt: threading.Event | None = None,
    ) -> tuple[list[Event], TurnEnded]:
        """Take a turn of which the first generations are scripted, each but the last of which ends in calls."""
        left = iter(scripts)

        def say_next() -> None:
            self.script.left = [*next(left, [])]

        runner.next_generation = say_next
        self.generated.clear()
        self.prefilled.clear()
        say_next()
        *events, ended = run_turn(self.engine, session, utterance, interrupt or threading.Event(), tools=runner)
        self.script.left = []
        assert isinstance(ended, TurnEnded)
        return events, ended

    def fresh(self, session: Session, utterance: Utterance, exchanges: list[Exchange]) -> list[int]:
        """Return what a new decoder replies to the prompt that mistral-common writes."""
        return self.continued(expected(self.theirs, session, utterance, exchanges), utterance)

    def continued(self, ids: list[int], utterance: Utterance) -> list[int]:
        """Return what a new decoder replies to a prompt with the clip of an utterance."""
        _, features = self.single.write_prompt(Session(), utterance)
        decoder = Decoder(SharedModel(self.model), capacity=len(ids) + MOST_TOKENS)
        decoder.prefill(ids, features)
        return list(decoder.stream(self.single.sampling, threading.Event()))

    def check_next_turn(self, ended: TurnEnded) -> None:
        """Take the turn after one that ended, as a chat does; it feeds itself alone and is that of a fresh prefill."""
        after = replace(SESSION.add(ended.turn), tools=TOOLS)
        self.engine.prefill_history(after)
        utterance = Utterance(sound(1, 5))
        _, ended = self.take([[]], ScriptedRunner(specs=TOOLS), after, utterance)
        assert self.generated[-1] == self.fresh(after, utterance, [])
        assert ended.report.prompt_tokens - ended.report.cached_tokens == 27, "[BEGIN_AUDIO], a window, [/INST]"


VARIANTS = [("v7", False), ("v7", True), ("v11", False), ("v13", False), ("v13", True)]


@pytest.fixture(
    scope="module", params=VARIANTS, ids=[f"{name}-{'gpu' if ahead else 'cpu'}" for name, ahead in VARIANTS]
)
def tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """Each layout; decoding as on a CPU, and with the look-ahead of a GPU."""
    version, looks_ahead = request.param
    tools = Tools(tmp_path_factory.mktemp("checkpoints"), version, looks_ahead=looks_ahead)
    yield tools
    tools.engine.close()


def exchanges_of(events: list[Event], *texts: str) -> list[Exchange]:
    """Return the exchanges of a turn whose calls were made one at a time."""
    results = [event.result for event in events if isinstance(event, ToolReturned)]
    return [Exchange(text, (result,)) for text, result in zip(texts, results, strict=True)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReplyDelta))


def with_tools(session: Session = SESSION) -> Session:
    return replace(session, tools=TOOLS)


def test_a_call_is_answered_while_the_audio_stays_in_the_cache(tools: Tools) -> None:
    script, runner = tools.ids("Let me see.", *tools.called(("weather", '{"town": "Rome"}')), END), ScriptedRunner()
    runner.specs, before = TOOLS, tools.encoded
    events, ended = tools.take([script], runner)
    assert [(call.name, call.arguments) for call in runner.ran] == [("weather", '{"town": "Rome"}')]
    exchanges, encoded = exchanges_of(events, "Let me see."), tools.encoded - before
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, exchanges)
    assert text_of(events).startswith("Let me see.\n")
    assert (encoded, ended.report.model_passes, ended.report.additional_generations) == (2, 1, 1)
    again = tools.prefilled[-1]
    assert again.cached_tokens > tools.prefilled[0].prompt_tokens, "the prompt, its audio and the text stay"
    assert again.prompt_tokens - again.cached_tokens < 75, "the call with its id, the result"
    assert ended.report.prompt_tokens == tools.prefilled[0].prompt_tokens
    assert ended.report.reply_tokens == sum(map(len, tools.generated))
    tools.check_next_turn(ended)


def test_parallel_calls_are_answered_together(tools: Tools) -> None:
    runner = ScriptedRunner(specs=TOOLS, answer=lambda call: f"{call.arguments} is fine")
    # Each call of the runner loads a script, so the second one is empty.
    script = [*tools.called(("weather", '{"town": "Rome"}'), ("evil", "{}")), END]
    events, ended = tools.take([script, [], []], runner)
    results = tuple(event.result for event in events if isinstance(event, ToolReturned))
    assert [result.call.name for result in results] == ["weather", "evil"]
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, [Exchange("", results)])
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 1)
    tools.check_next_turn(ended)


def test_chained_calls_feed_only_what_is_new(tools: Tools) -> None:
    runner, before = ScriptedRunner(specs=TOOLS), tools.encoded
    first = tools.ids(*tools.called(("weather", '{"town": "Rome"}')), END)
    second = tools.ids("And there?", *tools.called(("weather", '{"town": "Oslo"}')), END)
    third = tools.ids(*tools.called(("evil", "{}")), END)
    events, ended = tools.take([first, second, third], runner)
    exchanges, encoded = exchanges_of(events, "", "And there?", ""), tools.encoded - before
    assert len(tools.generated) == 4
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, exchanges)
    assert (encoded, ended.report.model_passes, ended.report.additional_generations) == (2, 1, 3)
    assert all(each.prompt_tokens - each.cached_tokens < 80 for each in tools.prefilled[1:])
    tools.check_next_turn(ended)


def test_a_malformed_call_goes_back_once_with_what_the_model_wrote(tools: Tools) -> None:
    malformed = [*tools.called(("weather", '{"town": '))[:-1], END]
    runner = ScriptedRunner(specs=TOOLS, status="malformed", answer=lambda _: "the arguments are no JSON")
    _events, ended = tools.take([malformed, malformed], runner)
    assert len(runner.ran) == 2
    assert '"town":' in runner.ran[0].arguments
    with pytest.raises(json.JSONDecodeError):
        json.loads(runner.ran[0].arguments)
    assert len(tools.generated) == 2, "after the second one the reply ends"
    assert (ended.turn.reply, ended.report.additional_generations) == ("", 1)
    tools.check_next_turn(ended)


def test_a_malformed_call_can_be_corrected(tools: Tools) -> None:
    script = [*tools.called(("weather", '{"town": '))[:-1], END]
    runner = ScriptedRunner(specs=TOOLS, status="malformed", answer=lambda _: "the arguments are no JSON")
    events, ended = tools.take([script], runner)
    (exchange,) = exchanges_of(events, "")
    assert exchange.results[0].call.name == "weather"
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, [exchange])
    assert len(tools.generated) == 2
    tools.check_next_turn(ended)


@pytest.mark.parametrize(
    ("status", "said"), [("refused", "the user refused"), ("timed-out", "no result in 5 s"), ("done", HOSTILE)]
)
def test_refused_late_and_hostile_results_reach_the_model_as_text(tools: Tools, status: Any, said: str) -> None:
    runner = ScriptedRunner(specs=TOOLS, status=status, answer=lambda _: said)
    events, ended = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner)
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, exchanges_of(events, ""))
    assert len(runner.ran) == 1, "a result that asks for calls makes none"
    tools.check_next_turn(ended)


def test_an_oversized_result_is_cut_and_the_cache_keeps_its_size(tools: Tools) -> None:
    runner = ScriptedRunner(specs=TOOLS, answer=lambda _: "wind from the west, 東京 " * 50_000)
    capacity, call = tools.engine.decoder.capacity, [*tools.called(("weather", '{"town": "Rome"}')), END]
    _, ended = tools.take([call, call, call], runner)
    assert len(runner.ran) == 3
    assert tools.engine.decoder.capacity == capacity
    assert tools.prefilled[-1].prompt_tokens <= CONTEXT_TOKENS
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 3)
    assert tools.generated[-1]
    tools.check_next_turn(ended)


def test_results_are_cut_where_the_prompt_alone_fills_the_context(tools: Tools) -> None:
    long = Utterance(sound(3), "word " * 2800)
    runner = ScriptedRunner(specs=TOOLS, answer=lambda _: "wind " * 10_000)
    call = [*tools.called(("weather", '{"town": "Rome"}')), END]
    _events, ended = tools.take([call], runner, utterance=long)
    assert len(runner.ran) == 1
    assert tools.prefilled[0].prompt_tokens > CONTEXT_TOKENS - CONTEXT_TOKENS // 4
    assert tools.prefilled[-1].cached_tokens >= tools.prefilled[0].prompt_tokens, "nothing is fed again"
    assert len(tools.generated) == 2
    assert tools.generated[-1]
    assert ended.report.additional_generations == 1


def test_an_interrupt_while_a_tool_runs_ends_the_reply(tools: Tools) -> None:
    interrupt = threading.Event()
    runner = ScriptedRunner(specs=TOOLS, then=interrupt.set)
    script = tools.ids("Let me see.", *tools.called(("weather", '{"town": "Rome"}')), END)
    _events, ended = tools.take([script], runner, interrupt=interrupt)
    assert (ended.turn.interrupted, ended.turn.reply) == (True, "Let me see.")
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 0)
    assert len(tools.generated) == 1
    tools.check_next_turn(ended)


def test_an_interrupt_while_a_call_is_written_calls_nothing(tools: Tools) -> None:
    interrupt, runner = threading.Event(), ScriptedRunner(specs=TOOLS)
    script = tools.ids("Let me see.", *tools.called(("weather", '{"town": "Rome"}')), END)
    tools.script.left, tools.prefilled[:] = [*script], []
    text = ""
    for event in run_turn(tools.engine, SESSION, SPOKEN, interrupt, tools=runner):
        text += event.text if isinstance(event, ReplyDelta) else ""
        if text.endswith("see."):
            interrupt.set()
    tools.script.left = []
    assert isinstance(event, TurnEnded)
    assert (runner.ran, event.turn.interrupted, event.report.additional_generations) == ([], True, 0)
    tools.check_next_turn(event)


def test_a_reply_that_is_closed_while_a_tool_runs_leaves_a_correct_cache(tools: Tools) -> None:
    tools.script.left = [*tools.called(("weather", '{"town": "Rome"}')), END]
    events = run_turn(tools.engine, SESSION, SPOKEN, threading.Event(), tools=ScriptedRunner(specs=TOOLS))
    assert isinstance(next(events), ToolCalled)
    events.close()
    tools.script.left = []
    _, ended = tools.take([[]], ScriptedRunner(specs=TOOLS))
    assert tools.generated[-1] == tools.fresh(with_tools(), SPOKEN, [])
    tools.check_next_turn(ended)


def test_what_was_understood_is_asked_after_a_reply_with_tools(tools: Tools) -> None:
    runner, before = ScriptedRunner(specs=TOOLS), tools.encoded
    events, ended = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner)
    reply, length = tools.generated[-1], tools.engine.decoder.cached
    assert "".join(tools.engine.understand(SPOKEN)).strip()
    assert tools.encoded - before == 2
    assert tools.engine.decoder.cached in (length, length + 1), "the last token of the reply is fed"
    exchanges = exchanges_of(events, "")
    asked = [*expected(tools.theirs, with_tools(), SPOKEN, exchanges), *reply, END, *tools.ids(3, INSTRUCTION, 4)]
    assert tools.generated[-1] == tools.continued(asked, SPOKEN)[: len(tools.generated[-1])]
    tools.check_next_turn(ended)


def test_without_tools_a_call_is_no_call(tools: Tools) -> None:
    tools.script.left = [*tools.called(("weather", "{}")), END]
    reply = tools.engine.reply(SESSION, SPOKEN, threading.Event())
    assert all(isinstance(item, str) for item in reply)


def test_typed_turns_call_tools_too(tools: Tools) -> None:
    runner, typed = ScriptedRunner(specs=TOOLS), Utterance(None, "How is the weather in Rome?")
    events, ended = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner, utterance=typed)
    assert tools.generated[-1] == tools.fresh(with_tools(), typed, exchanges_of(events, ""))
    assert (ended.report.model_passes, ended.report.additional_generations) == (1, 1)


def test_a_first_turn_calls_tools_too(tools: Tools) -> None:
    runner, first = ScriptedRunner(specs=TOOLS), Session(instructions="Be brief.")
    events, _ = tools.take([[*tools.called(("weather", '{"town": "Rome"}')), END]], runner, first)
    assert tools.generated[-1] == tools.fresh(with_tools(first), SPOKEN, exchanges_of(events, ""))


def test_old_turns_leave_room_for_tools(tools: Tools) -> None:
    turns = tuple(Turn(f"This is question {number}.", f"This is answer {number}.") for number in range(300))
    runner = ScriptedRunner(specs=TOOLS)
    tools.take([[*tools.called(("weather", "{}")), END]], runner, Session(turns=turns))
    assert CONTEXT_TOKENS // 2 < tools.prefilled[0].prompt_tokens <= CONTEXT_TOKENS - CONTEXT_TOKENS // 4
    assert len(runner.ran) == 1


@dataclass(frozen=True)
class Step:
    """A turn: its calls, and what becomes of it."""

    seconds: float
    calls: int
    has_tools: bool
    is_interrupted: bool
    is_prefilled: bool


steps = st.builds(
    Step, st.sampled_from([0.0, 1.0, 3.0]), st.integers(0, 2), st.sampled_from([True, True, False]), st.booleans(),
    st.booleans(),
)  # fmt: skip


@settings(
    max_examples=int(os.environ.get("RANDOM_SEQUENCES", "6")),
    deadline=None,
    derandomize="RANDOM_SEQUENCES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(sequence=st.lists(steps, min_size=2, max_size=6))
def test_in_any_order_of_turns_replies_are_those_of_a_fresh_prefill(tools: Tools, sequence: list[Step]) -> None:
    tools.engine.decoder.rewind(0)
    session = Session(instructions="Be brief.")
    for number, step in enumerate(sequence):
        specs = TOOLS if step.has_tools else ()
        utterance = Utterance(sound(step.seconds, number) if step.seconds else None, "Go on.")
        interrupt = threading.Event()
        stop = interrupt.set if step.is_interrupted else lambda: None
        calls = [[*tools.called(("weather", '{"town": "Rome"}')), END]] * (step.calls if step.has_tools else 0)
        before = tools.encoded
        events, ended = tools.take(calls, ScriptedRunner(specs=specs, then=stop), session, utterance, interrupt)
        assert tools.encoded - before <= 2
        assert ended.report.model_passes == 1
        if not interrupt.is_set():
            exchanges = exchanges_of(events, *[""] * len(calls))
            assert tools.generated[-1] == tools.fresh(replace(session, tools=specs), utterance, exchanges)
        session = session.add(replace(ended.turn, reply=ended.turn.reply or "Well."))
        if step.is_prefilled:
            tools.engine.prefill_history(replace(session, tools=specs))


# --- Checkpoints without tools -------------------------------------------------------------------


def test_a_checkpoint_whose_tokenizer_has_no_version_refuses_tools(tmp_path: Path) -> None:
    classes: Any = transformers
    folder = tiny.make(tmp_path, window_seconds=2)
    processor = classes.VoxtralProcessor.from_pretrained(folder, local_files_only=True)
    processor.tokenizer = classes.AutoTokenizer.from_pretrained(folder, mistral_format=False)
    model = classes.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    engine = voxtral.VoxtralEngine(
        model, processor, name="tiny", max_reply_tokens=8, context_tokens=512, notice=lambda _: None
    )
    assert not engine.supports_tools
    with pytest.raises(ConfigError, match="the voxtral engine can't call tools: the checkpoint's tokenizer has no ver"):
        next(engine.reply(Session(tools=TOOLS), SPOKEN, threading.Event()))
    report = finished(engine, Session())
    assert report.model_passes == 1
    engine.close()


def finished(engine: Any, session: Session) -> PassReport:
    reply = engine.reply(session, SPOKEN, threading.Event())
    while True:
        try:
            next(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
