"""The levels of the fast path: real compiled layers in emulated graphs, and what happens where a step fails."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_voxtral as tiny
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mistral_common")
from benchmarks.emulation import CountingCompiler, EmulatedGraphs  # noqa: E402 - needs torch
from voxcli.engines.voxtral.engine import VoxtralEngine  # noqa: E402
from voxcli.engines.voxtral.runtime.acceleration import Backends, try_out  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampling  # noqa: E402
from voxcli.engines.voxtral.runtime.text_model import TextModel  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more
GREEDY = Sampling(4, frozenset({2}))
AUDIO, WINDOW = 24, 25
SPOKEN = [1, 3, 25, *[AUDIO] * WINDOW, 300, 4]
CAPACITY, BUCKET = 60, 64
TOO_LARGE = 10**15  # tokens: more than a process can address
COMPILING = "compiling the decode step: minutes at the first start, seconds later"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("checkpoint"), window_seconds=2)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return transformers.VoxtralForConditionalGeneration.from_pretrained(checkpoint, local_files_only=True).eval()


class Faults:
    """Lets a step fail: that of a number, or every one of a kind."""

    def __init__(self, number: int | None = None, kind: str = "", error: type[Exception] = RuntimeError) -> None:
        self.steps: list[str] = []
        self._number, self._kind, self._error = number, kind, error

    def __call__(self, event: str) -> None:
        self.steps.append(event)
        if event == self._kind or len(self.steps) - 1 == self._number:
            raise self._error(f"{event} does not\nwork")


class Made:
    """A decoder on an emulated GPU, and what it said."""

    def __init__(
        self, model: Any, faults: Faults | None = None, capacity: int = CAPACITY, bucket: int = BUCKET
    ) -> None:
        self.notices: list[str] = []
        self.faults = faults or Faults()
        self.compiler, self.graphs = CountingCompiler(self.step), EmulatedGraphs(self.step)
        backends = Backends(self.compiler, lambda: self.graphs, looks_ahead=True)
        self.decoder = Decoder(SharedModel(model), capacity=capacity, smallest_bucket=bucket, backends=backends)

    def step(self, event: str) -> None:
        self.faults(event)

    def warm_up(self, acceleration: Any = "auto") -> "Made":
        self.decoder.warm_up(GREEDY, acceleration=acceleration, notice=self.notices.append)
        return self

    def turn(self, ids: list[int] = SPOKEN) -> list[int]:
        self.decoder.resize(self.decoder.capacity)
        self.decoder.forget_clip()
        self.decoder.prefill(ids, noise() if AUDIO in ids else None)
        return list(self.decoder.stream(GREEDY, threading.Event()))

    def replays(self) -> int:
        """Return how many graphs a turn replays."""
        before = len(self.graphs.replayed)
        self.turn()
        return len(self.graphs.replayed) - before

    def falls(self) -> list[str]:
        return [notice for notice in self.notices if notice.startswith("acceleration: ")]


def noise() -> Any:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((1, 128, 200)).astype(np.float32))


def elsewhere(act: Callable[[], Any]) -> Any:
    """Return what a function returns on a thread of its own."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(act()))
    thread.start()
    thread.join()
    return results[0]


def plain(model: Any, ids: list[int] = SPOKEN) -> list[int]:
    decoder = Decoder(SharedModel(model), capacity=CAPACITY)
    decoder.prefill(ids, noise() if AUDIO in ids else None)
    return list(decoder.stream(GREEDY, threading.Event()))


@pytest.mark.parametrize(
    ("capacity", "bucket"),
    [(1024, 1024), (1500, 1024), (512, 64), (2048, 64)],  # the last two have the buckets of 8192 and 32,768 tokens
)
def test_each_bucket_is_compiled_once(model: Any, capacity: int, bucket: int) -> None:
    """Also after the cache had another size, and with the warm-up, the prompt and the reply on different threads."""
    made = Made(model, capacity=capacity, bucket=bucket)
    elsewhere(made.warm_up)
    buckets = made.compiler.compiled
    assert 2 ** (buckets - 1) * bucket >= capacity > 2 ** (buckets - 2) * bucket
    made.decoder.resize(capacity + 8)
    elsewhere(lambda: made.decoder.resize(capacity))
    before = len(made.graphs.replayed)
    elsewhere(lambda: made.decoder.prefill(SPOKEN, noise()))
    assert list(made.decoder.stream(GREEDY, threading.Event())) == plain(model)
    assert len(made.graphs.replayed) - before > len(GREEDY.stop_ids) + GREEDY.max_tokens
    assert (made.decoder.acceleration, made.compiler.compiled) == ("compiled", buckets)
    assert made.notices == [COMPILING]


def scenario(made: Made) -> list[list[int]]:
    """Warm up, talk, take a longer clip and talk on; return the replies."""
    made.warm_up()
    replies = [made.turn()]
    made.decoder.resize(CAPACITY + 20)
    replies.append(made.turn())
    made.decoder.resize(CAPACITY)
    return [*replies, made.turn(), made.turn(SPOKEN[::-1])]


ERRORS = (RuntimeError, KeyError, torch.OutOfMemoryError, MemoryError)


def test_whatever_step_fails_the_next_level_gives_the_same_tokens(model: Any) -> None:
    made = Made(model)
    expected = scenario(made)
    assert expected == [plain(model)] * 3 + [plain(model, SPOKEN[::-1])]
    compiles = made.faults.steps.index("capture")
    made.faults = Faults()
    scenario(made)
    steps = made.faults.steps
    assert (compiles, set(steps)) == (1, {"capture", "replay"}), "what was compiled for a model is kept"
    for number in range(compiles + len(steps)):
        error = ERRORS[number % len(ERRORS)]
        if number < compiles:
            tried = Made(model, Faults(number, error=error))
        else:
            tried, made.faults, made.notices = made, Faults(number - compiles, error=error), []
        assert scenario(tried) == expected, f"step {number}"
        assert tried.decoder.acceleration == "graphs", f"step {number}"
        (fall,) = tried.falls()
        assert "graphs instead of compiled: " in fall
        assert f"{error.__name__}: " in fall
        assert "does not" in fall
        assert "\n" not in fall
        assert tried.replays() > 0, "the next level is in use"


@pytest.mark.parametrize(
    ("kind", "level", "falls"), [("compile", "graphs", 1), ("capture", "none", 2), ("replay", "none", 2)]
)
def test_what_never_works_is_done_without(model: Any, kind: str, level: str, falls: int) -> None:
    made = Made(model, Faults(kind=kind))
    assert scenario(made) == [plain(model)] * 3 + [plain(model, SPOKEN[::-1])]
    assert (made.decoder.acceleration, len(made.falls())) == (level, falls)
    assert (made.graphs.alive == 0) == (level == "none"), "what was captured is freed"


def test_a_replay_that_fails_in_mid_reply_costs_nothing_but_speed(model: Any) -> None:
    steps = Faults()
    counted = Made(model, steps).warm_up()
    before, expected = len(steps.steps), plain(model)
    assert counted.turn() == expected
    cached, longer = counted.decoder.cached, [*SPOKEN, *expected, 7, 8]
    made = Made(model).warm_up()
    for number in range(len(steps.steps) - before):
        made.notices.clear()
        made.warm_up().faults = Faults(number)
        assert made.turn() == expected
        assert made.decoder.cached == cached
        assert made.turn(longer) == plain(model, longer)
        assert len(made.falls()) == 1


def test_a_resize_that_fails_gives_the_graphs_back(model: Any) -> None:
    made = Made(model).warm_up()
    before, replays = made.turn(), made.replays()
    with pytest.raises((RuntimeError, MemoryError)):
        made.decoder.resize(TOO_LARGE)
    assert made.decoder.capacity == CAPACITY
    assert made.decoder.cached == 0
    assert (made.turn(), made.replays()) == (before, replays)
    assert (made.decoder.acceleration, made.falls()) == ("compiled", [])


def test_a_longer_clip_is_computed_plainly_and_the_graphs_come_back(model: Any) -> None:
    made = Made(model).warm_up()
    replays = made.replays()
    made.decoder.resize(CAPACITY + 20)
    assert made.replays() == 1, "the encoder alone"
    made.decoder.resize(CAPACITY)
    assert made.replays() == replays


class WrongCompiler(CountingCompiler):
    """Compiles to something that computes a little more than it should."""

    def __call__(self, graph: Any, inputs: Any) -> Any:
        right = super().__call__(graph, inputs)
        return lambda *arguments: [1.3 * output for output in right(*arguments)]


class WrongGraphs(EmulatedGraphs):
    """Captures work that it never does again."""

    def __call__(self, work: Any, source: Any = None) -> Any:
        super().__call__(work, source)
        return lambda: None


def test_a_compiler_that_computes_something_else_is_done_without(model: Any) -> None:
    made = Made(model)
    graphs = EmulatedGraphs()
    backends = Backends(WrongCompiler(), lambda: graphs, looks_ahead=True)
    made.decoder = Decoder(SharedModel(model), capacity=CAPACITY, smallest_bucket=BUCKET, backends=backends)
    assert made.warm_up().turn() == plain(model)
    assert made.decoder.acceleration == "graphs"
    (fall,) = made.falls()
    assert "comparing with the plain pass failed: DifferenceError: a step over 60 is" in fall


def test_graphs_that_compute_something_else_are_done_without(model: Any) -> None:
    made = Made(model)
    made.decoder = Decoder(
        SharedModel(model), capacity=CAPACITY, backends=Backends(graphs=WrongGraphs, looks_ahead=True)
    )
    assert made.warm_up().turn() == plain(model)
    (fall,) = made.falls()
    assert "none instead of graphs: comparing" in fall


@pytest.mark.parametrize(("acceleration", "compiled"), [("compiled", 1), ("graphs", 0), ("none", 0)])
def test_the_setting_is_the_highest_level(model: Any, acceleration: str, compiled: int) -> None:
    made = Made(model).warm_up(acceleration)
    assert made.turn() == plain(model)
    assert (made.decoder.acceleration, made.compiler.compiled) == (acceleration, compiled)
    assert (made.graphs.captured > 0) == (acceleration != "none")
    assert made.falls() == []


@pytest.mark.parametrize("acceleration", ["compiled", "graphs"])
def test_a_level_that_the_device_does_not_have_is_told(model: Any, acceleration: Any) -> None:
    notices: list[str] = []
    decoder = Decoder(SharedModel(model), capacity=CAPACITY)
    decoder.warm_up(GREEDY, acceleration=acceleration, notice=notices.append)
    assert notices == [f"acceleration: none instead of {acceleration}: CUDA graphs need a CUDA device, this is cpu"]
    assert decoder.acceleration == "none"


@pytest.mark.parametrize(
    ("kind", "level", "why"),
    [
        ("", "compiled", ""),
        ("compile", "graphs", "a small computation failed: .*RuntimeError: compile does not work"),
        ("capture", "none", "a small computation failed: RuntimeError: capture does not work"),
        ("replay", "none", "a small computation failed: RuntimeError: replay does not work"),
    ],
)
def test_a_small_computation_tells_which_level_works(kind: str, level: str, why: str) -> None:
    torch.compiler.reset()  # else the small function would not be compiled again
    faults = Faults(kind=kind)
    graphs = EmulatedGraphs(faults)
    found = try_out(Backends(CountingCompiler(faults), lambda: graphs), "cpu", "auto", None)
    assert found[0] == level
    assert re.search(f"^{why}", found[1])


def test_without_a_device_for_it_there_is_no_level_to_try() -> None:
    why = "CUDA graphs need a CUDA device, this is cpu"
    assert try_out(Backends.of("cpu"), "cpu", "auto", None) == ("none", why)


def test_a_level_that_nobody_wants_is_not_tried() -> None:
    faults = Faults()
    backends = Backends(CountingCompiler(faults), lambda: EmulatedGraphs(faults))
    assert try_out(backends, "cpu", "none", None) == ("none", 'voxtral.acceleration is "none"')
    assert faults.steps == []


# --- The engine --------------------------------------------------------------------------------

CLIP = AudioClip(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
QUESTION = Utterance(CLIP, "?")


def load(checkpoint: Path, backends: Backends | None, notices: list[str]) -> Any:
    return VoxtralEngine.load(
        checkpoint,
        name="tiny",
        device="cpu",
        max_reply_tokens=6,
        temperature=0.0,
        top_p=1.0,
        context_tokens=512,
        notice=notices.append,
        backends=backends,
    )


def ask(engine: Any, utterance: Utterance = QUESTION) -> tuple[str, PassReport]:
    deltas, text = engine.reply(Session(), utterance, threading.Event()), ""
    while True:
        try:
            text += next(deltas)
        except StopIteration as end:
            return text, end.value


def test_each_turn_replays_the_encoder_once(checkpoint: Path) -> None:
    graphs, compiler = EmulatedGraphs(), CountingCompiler()
    engine = load(checkpoint, Backends(compiler, lambda: graphs, looks_ahead=True), [])
    plain = load(checkpoint, None, [])
    for _ in range(3):
        graphs.replayed.clear()
        assert ask(engine) == ask(plain)
        assert graphs.replayed.count(0) == 1, "the first that was captured"
        for each in (engine, plain):
            each.prefill_history(Session())
    assert ask(engine)[1].model_passes == 1


@pytest.mark.parametrize("failing", [1, 2])
def test_memory_that_runs_out_for_a_longer_clip_slows_no_other_turn(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Where not even the cache that there was can be had again at once, the next turn tries once more."""
    graphs = EmulatedGraphs()
    engine = load(checkpoint, Backends(graphs=lambda: graphs, looks_ahead=True), [])
    long = Utterance(AudioClip(np.zeros(16_000 * 60, np.float32)), "?")
    expected, _ = ask(engine)
    engine.prefill_history(Session())
    graphs.replayed.clear()
    ask(engine)
    replays = len(graphs.replayed)
    sizes: list[int] = []
    allocate = TextModel.allocate

    def scarce(text: Any, capacity: int, *options: Any) -> Any:
        sizes.append(capacity)
        if len(sizes) <= failing:
            raise torch.OutOfMemoryError("out of memory")
        return allocate(text, capacity, *options)

    monkeypatch.setattr(TextModel, "allocate", scarce)
    with pytest.raises(ModelError, match="out of memory in the pass"):
        ask(engine, long)
    assert sizes[0] > 700
    engine.prefill_history(Session())
    graphs.replayed.clear()
    assert ask(engine)[0] == expected
    assert len(graphs.replayed) == replays
    assert engine.acceleration == "graphs"


@pytest.mark.parametrize("error", ERRORS)
def test_a_device_that_is_beyond_help_is_a_clear_error(checkpoint: Path, error: type[Exception]) -> None:
    """As after an error that CUDA reports late: every later call fails, whatever it is."""
    broken = False

    def fail(*_: Any) -> None:
        if broken:
            raise error("CUDA error: an illegal memory access was encountered\nand more")

    graphs = EmulatedGraphs(fail)
    notices: list[str] = []
    engine = load(checkpoint, Backends(graphs=lambda: graphs, looks_ahead=True), notices)
    hooks = [torch.nn.modules.module.register_module_forward_pre_hook(fail)]
    try:
        broken = True
        for _ in range(2):
            with pytest.raises(
                ModelError, match=r"out of memory in the pass|the model's pass failed: .*illegal"
            ) as raised:
                ask(engine)
            assert raised.value.hint
    finally:
        for hook in hooks:
            hook.remove()
    broken = False
    assert ask(engine)[1].model_passes == 1
    assert len(notices) == 1, "one line for the level that failed"
