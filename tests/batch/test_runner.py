"""How a batch runs: order, sessions, failures, what stops it, and that it stays small."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.batches import CLIP, INSTRUCTIONS, Echo, Listed, NothingFinished, Silent, answer, read, records
from voxcli.audio.clip import AudioClip
from voxcli.batch import prefetch as shelf_module
from voxcli.batch import scheduler as desk_module
from voxcli.batch.item import Item
from voxcli.batch.plan import Plan, Planned, survey
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.replies import SpokenReplies, reply_path
from voxcli.batch.results import Results
from voxcli.batch.runner import Run
from voxcli.batch.scheduler import Scheduler
from voxcli.batch.stats import Stats
from voxcli.batch.worker import EngineWorker, workers_wanted
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSynthesizer
from voxcli.errors import AudioInputError, ConfigError, SpeechError, VoxError


def plan(*items: Item) -> Plan:
    return survey([Listed(list(items))])


def item(name: str, prompt: str = "", session: str | None = None, instructions: str | None = None) -> Item:
    return Item(name, f"{name}.wav", "here", prompt or name, session, instructions)


def prompts(engine: Echo) -> dict[str, list[str]]:
    """Return what the engine was shown of the session before each prompt."""
    return {utterance.prompt: [turn.prompt for turn in session.turns] for session, utterance in engine.asked}


# --- Records -------------------------------------------------------------------------------------


def test_every_item_becomes_a_record() -> None:
    (record,) = answer(plan(item("a", "why")), Echo())
    assert record["id"] == "a"
    assert record["reply"] == "You said why."
    assert record["audio"] == {
        "path": "a.wav",
        "samples": len(CLIP.samples),
        "sample_rate": 16_000,
        "seconds": 1.0,
        "damaged_seconds": 0.0,
        "cancelled_seconds": 0.0,
        "gain_db": 0.0,
    }
    assert (record["engine"], record["model_passes"], record["session"], record["turn"]) == ("echo", 1, None, 1)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_item_is_answered_once_by_any_number_of_workers(workers: int) -> None:
    items = [item(str(number), session=str(number % 5) if number % 3 else None) for number in range(200)]
    got = answer(plan(*items), Echo(), workers=workers)
    assert sorted(int(record["id"]) for record in got) == list(range(200))


def test_what_fails_becomes_a_record_and_the_rest_goes_on() -> None:
    got = answer(plan(item("a", "fail"), item("missing"), item("b", "bug"), item("c")), Echo())
    errors = {record["id"]: record["error"] for record in got if "error" in record}
    assert errors == {
        "a": {"code": "model", "message": "no reply to that"},
        "missing": {"code": "audio_input", "message": "missing.wav does not exist"},
        "b": {"code": "unexpected", "message": "ZeroDivisionError: oh"},
    }
    assert [record["reply"] for record in got if "reply" in record] == ["You said c."]
    failed = next(record for record in got if record["id"] == "missing")
    assert (failed["audio"], failed["engine"], failed["session"]) == ({"path": "missing.wav"}, "echo", None)
    assert "reply" not in failed


# --- Sessions ------------------------------------------------------------------------------------


def test_items_that_share_a_session_are_turns_of_one_conversation() -> None:
    engine = Echo()
    got = answer(
        plan(item("a", session="s"), item("x"), item("b", session="s"), item("c", session="s")), engine, workers=3
    )
    assert prompts(engine) == {"a": [], "x": [], "b": ["a"], "c": ["a", "b"]}
    last = next(session for session, utterance in engine.asked if utterance.prompt == "c")
    assert [(turn.user, turn.reply) for turn in last.turns] == [
        ("[User audio input - 16000 samples, 1.00s]", f"You said {name}.") for name in "ab"
    ]
    assert {record["id"]: record["turn"] for record in got} == {"a": 1, "x": 1, "b": 2, "c": 3}


def test_sessions_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)
    engine = Echo(before_reply=lambda _: both.wait())
    items = [item(f"{name}{number}", session=name) for name in "st" for number in range(3)]
    assert len(answer(plan(*items), engine, workers=2)) == 6  # each waits for one of the other session


def test_a_failed_turn_is_not_remembered() -> None:
    engine = Echo()
    answer(
        plan(item("a", session="s"), item("b", "fail", "s"), item("missing", session="s"), item("c", session="s")),
        engine,
    )
    assert prompts(engine)["c"] == ["a"]


def test_instructions_are_those_of_the_item_of_the_session_or_of_the_run() -> None:
    engine = Echo()
    answer(
        plan(
            item("a"), item("b", instructions="Shout."), item("c", instructions=""),
            item("s1", session="s", instructions="Sing."), item("s2", session="s"),
            item("s3", session="s", instructions="Hum."), item("s4", session="s"),
        ),
        engine,
    )  # fmt: skip
    assert {utterance.prompt: session.instructions for session, utterance in engine.asked} == {
        "a": INSTRUCTIONS, "b": "Shout.", "c": "", "s1": "Sing.", "s2": "Sing.", "s3": "Hum.", "s4": "Sing.",
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 12),
    st.booleans(),
    st.integers(1, 3),
)
def test_a_run_that_was_stopped_goes_on_with_the_same_prompts(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[tuple[str, bool]],
    done: int,
    retry: bool,
    workers: int,
) -> None:
    items = [
        item(str(n), "" if good else f"fail {n}", None if name == "x" else name) for n, (name, good) in enumerate(turns)
    ]
    whole, first, second = Echo(), Echo(), Echo()
    expected = answer(plan(*items), whole)
    out = tmp_path_factory.mktemp("batch") / "results.jsonl"
    with Results(out, count=lambda _: None) as results:
        answer(plan(*items[:done]), first, write=results.write) if items[:done] else None
    with Results(out, resume=True, retry_failed=retry, count=lambda _: None) as results:
        answer(plan(*items), second, finished=results, write=results.write, workers=workers)
    assert sorted(record["id"] for record in records(out)) == sorted(record["id"] for record in expected)
    tried_again = {i.prompt for i in items[:done] if retry and i.prompt.startswith("fail")}
    assert set(prompts(second)) == {i.prompt for i in items[done:]} | tried_again
    shown = {name: shown for name, shown in prompts(second).items() if name not in tried_again}
    assert shown == {name: prompts(whole)[name] for name in shown}
    numbers = [(record["session"], record["turn"]) for record in records(out) if record.get("turn")]
    assert len({pair for pair in numbers if pair[0]}) == sum(1 for pair in numbers if pair[0])


def test_sessions_that_are_over_are_forgotten() -> None:
    items = [item(f"{name}{number}", session=str(name)) for name in range(50) for number in range(2)]
    scheduler = Scheduler(iter(plan(*items)), NothingFinished(), "")
    open_at_once = 0
    while job := scheduler.take():
        open_at_once = max(open_at_once, scheduler.open_sessions)
        scheduler.finish(job, Utterance(CLIP).answered("Yes."))
    assert open_at_once == 1
    assert scheduler.open_sessions == 0


def test_of_a_long_session_no_more_than_a_window_is_read() -> None:
    taken: list[Planned] = []

    def planned() -> Iterator[Planned]:
        for each in plan(*(item(str(number), session="s") for number in range(3 * desk_module.WINDOW))):
            taken.append(each)
            yield each

    scheduler = Scheduler(planned(), NothingFinished(), "")
    first = scheduler.take()
    assert first is not None
    waiting = threading.Thread(target=scheduler.take, daemon=True)
    waiting.start()
    scheduler.finish(first, None)  # so that the other take returns
    waiting.join(20)
    assert not waiting.is_alive()
    assert len(taken) <= desk_module.WINDOW + 2


# --- What ends a run -----------------------------------------------------------------------------


def test_fail_fast_stops_at_the_first_failure() -> None:
    items = [item(str(number), "fail" if number == 3 else "") for number in range(500)]
    got = answer(plan(*items), Echo(), fail_fast=True)
    assert len(got) < 100
    assert sum("error" in record for record in got) == 1


def test_when_stopped_what_is_in_flight_is_finished_and_nothing_more_begun() -> None:
    stop, view, begun = threading.Event(), Silent(), threading.Barrier(3, timeout=20)

    def before_reply(utterance: Utterance) -> None:
        if not stop.is_set():
            begun.wait()
            stop.set()

    engine = Echo(before_reply=before_reply)
    got = answer(plan(*(item(str(number)) for number in range(500))), engine, workers=3, stop=stop, view=view)
    assert len(got) == len(engine.asked) < 100
    assert all("reply" in record for record in got)
    assert view.said == ["finishing what is in flight; Ctrl-C again ends at once"]


def test_a_disk_that_fills_up_ends_the_run() -> None:
    written: list[object] = []

    def write(record: dict[str, object]) -> None:
        if len(written) == 3:
            raise VoxError("full")
        written.append(record)

    with pytest.raises(VoxError, match="full"):
        answer(plan(*(item(str(number)) for number in range(2000))), Echo(), workers=2, write=write)
    assert len(written) == 3


def test_a_source_that_breaks_off_ends_the_run_when_the_rest_is_written() -> None:
    class Vanishing(Listed):
        passes = 0

        def __iter__(self) -> Iterator[Item]:
            self.passes += 1
            yield from self.items
            if self.passes > 1:
                raise AudioInputError("the folder is gone")

    written: list[dict[str, object]] = []
    with pytest.raises(AudioInputError, match="gone"):
        answer(survey([Vanishing([item("a", session="s"), item("b", session="s")])]), Echo(), write=written.append)
    assert [record["id"] for record in written] == ["a", "b"]


def test_a_worker_that_breaks_ends_the_run() -> None:
    class Broken:
        def work(self, report: object) -> None:
            raise RuntimeError("broken")

    scheduler = Scheduler(iter(plan(item("a"))), NothingFinished(), "")
    run = Run(scheduler, 1, lambda _: None, Stats(), Silent(), threading.Event())
    with pytest.raises(RuntimeError, match="broken"):
        run.answer([Broken()])


def test_a_reader_that_breaks_ends_the_run() -> None:
    class Unreadable(NothingFinished):
        def __contains__(self, item_id: str) -> bool:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        answer(plan(item("a")), Echo(), finished=Unreadable())


def test_a_view_sees_how_far_it_is() -> None:
    view = Silent()
    answer(plan(item("a"), item("b", "fail"), item("c")), Echo(), view=view)
    last = view.shown[-1]
    assert (last.items, last.done, last.failed, last.audio_seconds, last.reply_tokens) == (3, 3, 1, 2.0, 8)
    assert [status.done for status in view.shown] == sorted(status.done for status in view.shown)


# --- Reading ahead -------------------------------------------------------------------------------


def test_recordings_are_read_ahead_up_to_a_limit() -> None:
    count, seconds = 0, shelf_module.SECONDS_AHEAD / 4
    clip = AudioClip(CLIP.samples, round(len(CLIP.samples) / seconds))
    lock = threading.Lock()

    def read_long(path: str) -> AudioClip:
        nonlocal count
        with lock:
            count += 1
        return clip

    scheduler = Scheduler(iter(plan(*(item(str(number)) for number in range(100)))), NothingFinished(), "")
    with Prefetcher(scheduler, read_long) as prefetcher:
        taken = [prefetcher.take() for _ in range(10)]
    assert all(taken)
    assert count <= 10 + 4 + shelf_module.READERS


def test_a_named_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    scheduler = Scheduler(iter(plan(Item("a", str(tmp_path / "pipe.wav")))), NothingFinished(), "")
    with Prefetcher(scheduler, read) as prefetcher:
        prepared = prefetcher.take()
    assert prepared
    assert isinstance(prepared.clip, AudioInputError)


# --- Spoken replies ------------------------------------------------------------------------------


def spoken(plan: Plan, replies: SpokenReplies) -> dict[str, dict[str, object]]:
    got: dict[str, dict[str, object]] = {}
    scheduler = Scheduler(iter(plan), NothingFinished(), "")
    with Prefetcher(scheduler, read) as prefetcher:
        for worker in [EngineWorker(prefetcher, Echo(), 0.0, replies)]:
            worker.work(lambda outcome: got.update({outcome.job.item.id: outcome.record}))
    return got


def test_spoken_replies_are_files_of_their_own(tmp_path: Path) -> None:
    got = spoken(plan(item("in/a.wav", "why"), item("b")), SpokenReplies(tmp_path / "replies", FakeSynthesizer()))
    assert got["in/a.wav"]["saved_reply"] == str(tmp_path / "replies/in/a.wav.wav")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav") if path.is_file()} == {
        "replies/b.wav",
        "replies/in/a.wav.wav",
    }


@pytest.mark.parametrize(
    ("language", "said"), [("en", "You said Paris twenty percent."), ("fr", "You said Paris 20 %.")]
)
def test_spoken_replies_are_read_in_their_language(tmp_path: Path, language: str, said: str) -> None:
    voice = FakeSynthesizer()
    spoken(plan(item("a", "Paris 20 %")), SpokenReplies(tmp_path, voice, lambda _piece: language))
    assert voice.said == [said]


def test_a_reply_that_can_not_be_spoken_has_failed(tmp_path: Path) -> None:
    got = spoken(plan(item("a")), SpokenReplies(tmp_path, FakeSynthesizer(error=SpeechError("no voice"))))
    assert got["a"]["error"] == {"code": "speech", "message": "no voice"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_replies_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't make"):
        SpokenReplies(tmp_path / "file", FakeSynthesizer())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/../../b", "~/x", "C:\\x", "a\0b", "//"])
def test_no_reply_leaves_its_folder(tmp_path: Path, name: str) -> None:
    path = reply_path(name)
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert "\0" not in str(path)
    assert not any(part.startswith(".") for part in path.parts)


NAMES = st.text(st.sampled_from("aA./%~\u00e9\udcff \\w") | st.characters(), min_size=1, max_size=12) | st.sampled_from(
    ["a", "a.wav", "a.wav/b", "a%2Ewav/b", "a%2Fb", "a/b", "a//b", "x" * 300, "x" * 301, "\u00e9" * 150]
)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_no_two_ids_share_a_file(names: list[str]) -> None:
    one, other = map(reply_path, names)
    assert one != other
    assert one not in other.parents
    assert other not in one.parents
    assert all(len(part.encode()) <= 255 for part in (*one.parts, *other.parts))


def test_sessions_of_a_batch_are_its_own() -> None:
    engine = Echo()
    answer(plan(item("a", session="kitchen")), engine)
    assert engine.asked[0][0] == Session("kitchen", INSTRUCTIONS)


def test_an_engine_that_takes_one_at_a_time_is_asked_for_no_more() -> None:
    assert [workers_wanted(FakeEngine([]), given) for given in (None, 1)] == [1, 1]
    assert [workers_wanted(Echo(), given) for given in (None, 1, 9)] == [3, 1, 9]
    with pytest.raises(ConfigError, match="one item at a time"):
        workers_wanted(FakeEngine([]), 2)
