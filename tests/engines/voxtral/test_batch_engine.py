"""Many replies of the Voxtral engine at once: for its callers, and for `voxcli batch`."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_voxtral as tiny
from tests.support.batches import Listed, NothingFinished, Silent, make_recording, records
from voxcli.audio.clip import AudioClip
from voxcli.batch.item import Item
from voxcli.batch.plan import survey
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.replies import SpokenReplies
from voxcli.batch.runner import Run
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.stats import Stats
from voxcli.batch.worker import EngineWorker, replies_at_once
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeSynthesizer
from voxcli.errors import AudioInputError, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
voxtral = pytest.importorskip("voxcli.engines.voxtral.engine")
from voxcli.engines.voxtral.batch_engine import TokenQueue  # noqa: E402 - needs torch
from voxcli.engines.voxtral.runtime.batch_decoder import BatchDecoder  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more

ROOT = Path(__file__).parent.parent.parent.parent
MOST_TOKENS = 20
LONGEST_SECONDS = 60  # that the model takes, about


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose encoder takes 2 s at once, and which takes no long prompts."""
    place = tmp_path_factory.mktemp("checkpoint") / "quick-voxtral"
    return tiny.make(place, window_seconds=2, max_positions=12 * LONGEST_SECONDS)


def load(folder: Path) -> Any:
    return voxtral.VoxtralEngine.load(
        folder, name="tiny", device="cpu", max_reply_tokens=MOST_TOKENS, temperature=0.0, top_p=1.0,
        context_tokens=512, notice=pytest.fail,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[Any]:
    engine = load(folder)
    yield engine
    engine.close()


@pytest.fixture
def many(folder: Path) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def open_many(slots: int, prepare: Callable[[Any], None] = lambda _: None, *, understood: bool = False) -> Any:
        """Open a batch engine; `prepare` may change the engine that it is made from."""
        single = load(folder)
        prepare(single)
        opened.append(single.for_many(slots, understood=understood))
        return opened[-1]

    yield open_many
    for engine in opened:
        engine.close()


def sound(seconds: float, seed: int = 0) -> AudioClip:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * 16_000)) / 10
    return AudioClip(samples.astype(np.float32))


def clip_of(path: str) -> AudioClip:
    """Stand in for `read_audio`: the name is a number, from which all follows; `long` is too long."""
    if "long" in path:
        return sound(2 * LONGEST_SECONDS)
    number = int(Path(path).stem)
    return sound(0.3 + number % 7, number)


def reply(engine: Engine, utterance: Utterance, interrupt: threading.Event | None = None) -> tuple[str, PassReport]:
    text, deltas = "", engine.reply(Session(), utterance, interrupt or threading.Event())
    while True:
        try:
            text += str(next(deltas))
        except StopIteration as end:
            return text, end.value


def answer(
    engine: Engine,
    items: list[Item],
    *,
    stop: threading.Event | None = None,
    replies: SpokenReplies | None = None,
) -> dict[str, dict[str, Any]]:
    """Answer items as `voxcli batch` does; return the records by id."""
    written: list[dict[str, Any]] = []
    plan = survey([Listed(items)])
    scheduler = Scheduler(iter(plan), NothingFinished(), "Be brief.")
    run = Run(scheduler, plan.items, written.append, Stats(), Silent(), stop or threading.Event())
    with Prefetcher(scheduler, clip_of) as prefetcher:
        workers = replies_at_once(engine) or 1
        run.answer([EngineWorker(prefetcher, engine, 0.0, replies) for _ in range(workers)])
    found = {record["id"]: record for record in written}
    assert len(found) == len(written)
    return found


def items(number: int) -> list[Item]:
    """Return recordings of many lengths; some are turns of three sessions, some have text beside them."""
    return [
        Item(str(n), f"{n}.wav", "here", "Go on. 東京" if n % 4 == 1 else "", f"s{n % 3}" if n % 5 < 2 else None, None)
        for n in range(number)
    ]


def test_64_clips_get_the_replies_that_they_get_one_by_one(one: Any, many: Callable[..., Any]) -> None:
    expected, found = answer(one, items(64)), answer(many(16), items(64))
    assert len(expected) == 64
    for name, record in expected.items():
        same = ("reply", "user", "prompt", "session", "turn", "interrupted", "model", "engine", "audio", "model_passes")
        assert {key: found[name][key] for key in same} == {key: record[key] for key in same}
        assert found[name]["tokens"]["prompt"] == record["tokens"]["prompt"]
        assert found[name]["tokens"]["reply"] == record["tokens"]["reply"]
        assert 0 < found[name]["timings"]["first_token_seconds"] <= found[name]["timings"]["total_seconds"]
    assert {record["model_passes"] for record in found.values()} == {1}
    assert len({record["reply"] for record in found.values()}) > 50


def test_turns_of_a_session_come_in_order(many: Callable[..., Any]) -> None:
    found = list(answer(many(4), items(40)).values())
    for name in ("s0", "s1", "s2"):
        turns = [(int(record["id"]), record["turn"]) for record in found if record["session"] == name]
        assert turns == [(number, place + 1) for place, (number, _) in enumerate(sorted(turns))]


def test_what_fails_is_a_record_and_the_rest_goes_on(one: Any, many: Callable[..., Any]) -> None:
    mixed = [
        *items(6),
        Item("l", "long.wav", "here", "", None, None),
        Item("t", "1.wav", "here", "x " * 900, None, None),
    ]
    found = answer(many(3), mixed)
    expected = answer(one, mixed)
    assert {name: record["error"]["code"] for name, record in found.items() if "error" in record} == {
        "l": "audio_input",
        "t": "config",
    }
    assert {name: record.get("error") for name, record in found.items()} == {
        name: record.get("error") for name, record in expected.items()
    }


def before_prompts(engine: Any, act: Callable[[], None]) -> None:
    """Let an engine do something each time before it writes a prompt."""
    write = engine.write_prompt

    def act_and_write(session: Session, utterance: Utterance) -> Any:
        act()
        return write(session, utterance)

    engine.write_prompt = act_and_write


def test_when_stopped_what_is_in_flight_is_finished(many: Callable[..., Any]) -> None:
    stop, begun = threading.Event(), threading.Event()

    def stop_at_the_second_prompt() -> None:
        if begun.is_set():
            stop.set()
        begun.set()

    engine = many(2, lambda single: before_prompts(single, stop_at_the_second_prompt))
    found = answer(engine, items(300), stop=stop)
    assert 1 <= len(found) < 300
    assert all("reply" in record for record in found.values())


def test_spoken_replies_are_written_as_well(many: Callable[..., Any], tmp_path: Path) -> None:
    voice = FakeSynthesizer()
    found = answer(many(3), items(5), replies=SpokenReplies(tmp_path, voice))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{number}.wav" for number in range(5)]
    assert all(Path(record["saved_reply"]).stat().st_size > 10_000 for record in found.values())
    assert voice.said


def test_an_interrupted_reply_frees_its_slot(one: Any, many: Callable[..., Any]) -> None:
    engine, interrupt = many(1), threading.Event()
    deltas = engine.reply(Session(), Utterance(sound(1)), interrupt)
    next(deltas)
    interrupt.set()
    assert reply(engine, Utterance(sound(3)))[0] == reply(one, Utterance(sound(3)))[0]
    assert sum(len(delta) for delta in deltas) < 200
    closed = engine.reply(Session(), Utterance(sound(1)), threading.Event())
    next(closed)
    closed.close()
    assert reply(engine, Utterance(None, "Hello."))[0] == reply(one, Utterance(None, "Hello."))[0]


def test_errors_are_those_of_the_engine(many: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = many(2)
    with pytest.raises(AudioInputError, match="takes up to"):
        reply(engine, Utterance(sound(2 * LONGEST_SECONDS)))

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: something")

    with monkeypatch.context() as patched:
        patched.setattr(BatchDecoder, "advance", broken)
        with ThreadPoolExecutor(2) as callers:
            replies = [callers.submit(reply, engine, Utterance(sound(1, number))) for number in range(2)]
    assert {str(each.exception()) for each in replies} == {"the model's pass failed: CUDA error: something"}
    assert reply(engine, Utterance(sound(1)))[1].reply_tokens


def test_on_a_gpu_prompts_are_written_on_the_calling_threads(one: Any, many: Callable[..., Any]) -> None:
    writers: set[str] = set()

    def pose_as_gpu(single: Any) -> None:
        single.device = "mps"
        before_prompts(single, lambda: writers.add(threading.current_thread().name))

    engine = many(4, pose_as_gpu)
    assert answer(engine, items(12)).keys() == {str(number) for number in range(12)}
    assert writers
    assert "decoding" not in writers
    assert reply(engine, Utterance(sound(3)))[0] == reply(one, Utterance(sound(3)))[0]
    with pytest.raises(AudioInputError, match="takes up to"):
        reply(engine, Utterance(sound(2 * LONGEST_SECONDS)))


def test_the_reader_of_a_reply_is_woken_for_the_first_token_and_then_seldom() -> None:
    queue: Any = TokenQueue()
    for token in range(100):
        queue.notify(token)
    queue.notify(None)
    blocks = []
    while block := queue.get():
        blocks.append(block)
    assert [len(block) for block in blocks] == [1, 15, 16, 32, 36]
    assert [token for block in blocks for token in block] == list(range(100))


def stalled_from(step: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Stop the progress of batch decoders from a step on, counted from 0; return an event that is set then."""
    stalled, steps, advance = threading.Event(), count(), BatchDecoder.advance

    def advance_or_stall(decoder: BatchDecoder) -> None:
        if next(steps) < step:
            advance(decoder)
        else:
            stalled.set()

    monkeypatch.setattr(BatchDecoder, "advance", advance_or_stall)
    return stalled


@pytest.mark.parametrize(("requests", "steps"), [(20, 0), (1, 1)], ids=["waiting", "running"])
def test_closing_an_engine_ends_its_requests(
    folder: Path, monkeypatch: pytest.MonkeyPatch, requests: int, steps: int
) -> None:
    """20 requests are more than the decoder takes in at once."""
    engine, stalled = load(folder).for_many(1), stalled_from(steps, monkeypatch)
    with ThreadPoolExecutor(requests) as callers:
        replies = [callers.submit(reply, engine, Utterance(sound(1, number))) for number in range(requests)]
        stalled.wait()
        engine.close()
    assert {str(each.exception()) for each in replies} == {"the engine is closed"}


def test_a_closed_engine_refuses_requests(folder: Path) -> None:
    engine = load(folder).for_many(1)
    engine.close()
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        next(engine.reply(Session(), Utterance(sound(1)), threading.Event()))


def test_a_worker_requests_the_replies_of_all_slots_and_some_more(many: Callable[..., Any], one: Any) -> None:
    assert (replies_at_once(many(2)), replies_at_once(many(16)), replies_at_once(one)) == (4, 24, None)


# --- The command ---------------------------------------------------------------------------------


def batch(place: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "voxcli", "batch", "in", "--out", "out.jsonl", *arguments],
        cwd=place,
        env={**os.environ, "VOXCLI_HOME": str(place), "XDG_CONFIG_HOME": str(place), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_voxcli_batch_answers_many_at_once_and_goes_on(folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        make_recording(tmp_path / "in" / f"{number}.wav", 4000 + 9000 * number)
    flags = ("--engine", "voxtral", "--device", "cpu", "--model", str(folder), "--temperature", "0", "--batch-size")
    code, stderr = batch(tmp_path, *flags, "4")
    assert (code, "12 answered, 0 failed" in stderr) == (0, True), stderr
    found = {record["id"]: record for record in records(tmp_path / "out.jsonl")}
    kept = [json.dumps(record) + "\n" for record in list(found.values())[:5]]
    (tmp_path / "out.jsonl").write_text("".join(kept) + '{"id": "torn')
    code, stderr = batch(tmp_path, *flags, "1", "--resume")  # one by one
    assert (code, "5 of 12 items are finished" in stderr) == (0, True), stderr
    again = {record["id"]: record for record in records(tmp_path / "out.jsonl")}
    assert {name: record["reply"] for name, record in again.items()} == {
        name: record["reply"] for name, record in found.items()
    }
    assert {record["model_passes"] for record in again.values()} == {1}


def test_the_size_of_a_batch_is_for_the_voxtral_engine(tmp_path: Path) -> None:
    make_recording(tmp_path / "in" / "a.wav")
    code, stderr = batch(tmp_path, "--engine", "embedded", "--batch-size", "4")
    assert (code, "--batch-size is for the voxtral engine, not for embedded" in stderr) == (2, True), stderr


def understood_by(engine: Any, utterance: Utterance) -> tuple[str, str]:
    """Return a reply, and what was understood, both by the thread that asks."""
    return reply(engine, utterance)[0], "".join(engine.understand(utterance))


def test_many_are_asked_what_they_understood_and_no_clip_is_encoded_again(one: Any, many: Callable[..., Any]) -> None:
    utterances = [Utterance(sound(0.5 + number % 3, number)) for number in range(8)]  # One window or two each.
    expected = [understood_by(one, utterance) for utterance in utterances]
    engine, encoded = many(3, understood=True), list[int]()

    def count(module: Any, args: Any) -> None:
        if type(module).__name__ == "VoxtralEncoder":
            encoded.append(len(args[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda utterance: understood_by(engine, utterance), utterances)) == expected
    finally:
        hook.remove()
    assert sum(encoded) == sum(1 if utterance.clip.seconds <= 2 else 2 for utterance in utterances if utterance.clip)
    assert len({line for _, line in expected}) > 1


def test_a_clip_that_nobody_will_ask_about_is_not_kept(many: Callable[..., Any]) -> None:
    engine, utterance = many(1), Utterance(sound(1))
    reply(engine, utterance)
    with pytest.raises(ModelError, match="not in the cache any more"):
        engine.understand(utterance)


def test_what_was_understood_can_be_left_early(one: Any, many: Callable[..., Any]) -> None:
    engine, utterance = many(2, understood=True), Utterance(sound(1, 5))
    expected = reply(one, utterance)[0]
    assert reply(engine, utterance)[0] == expected
    line = engine.understand(utterance)
    next(line, None)
    line.close()
    assert reply(engine, utterance)[0] == expected
