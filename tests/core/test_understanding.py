"""What a model understood is asked after its reply, delays nothing, and can be cancelled at any time."""

import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import pytest

from tests.support.turns import QUESTION, REPLY, TEXT, LoudSpeaker, nothing_hangs
from voxcli.core.memory import Memory
from voxcli.core.protocols import SpeechOutput, Utterance
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import Event, TurnEnded, run_turn
from voxcli.core.understanding import (
    LINE_CHARACTERS,
    NotUnderstood,
    Understanding,
    Understood,
    UnderstoodMode,
    one_line,
)
from voxcli.errors import ModelError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

LINE = ["My name", " is", " Anna."]
KNOWN = "My name is Anna."


def asked(mode: UnderstoodMode, *lines: list[str] | Exception, transcript: str | None = None) -> FakeEngine:
    return FakeEngine([REPLY, REPLY], understands=list(lines), transcript=transcript)


def taken(engine: FakeEngine, mode: UnderstoodMode, store: Store | None = None) -> tuple[list[Event], Memory]:
    memory = Memory(Session("kitchen"), store, understood=mode)
    return list(memory.take_turn(engine, QUESTION, threading.Event())), memory


def last(events: list[Event]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    return events[-1]


def test_nothing_is_asked_by_default() -> None:
    engine = asked("off", LINE)
    events, memory = taken(engine, "off")
    assert engine.asked_again == []
    assert last(events).report.additional_generations == 0
    assert memory.session.turns[0].understood == ""


@pytest.mark.parametrize(("mode", "later"), [("show", ""), ("remember", KNOWN)])
def test_what_was_understood_is_told_stored_and_remembered(mode: UnderstoodMode, later: str, tmp_path: Path) -> None:
    engine = asked(mode, LINE)
    with Store.open(tmp_path) as store:
        events, memory = taken(engine, mode, store)
        stored = store.stored("kitchen")
    assert [event for event in events if isinstance(event, Understood)] == [Understood(KNOWN)]
    report = last(events).report
    assert (report.understood, report.model_passes, report.additional_generations) == (KNOWN, 1, 1)
    assert last(events).turn.understood == later
    assert memory.session.turns[0].understood == later
    assert stored
    assert stored.turns[0].details.transcript == KNOWN
    assert stored.session == memory.session
    assert (KNOWN in memory.session.turns[0].user_text) == bool(later)


def test_a_turn_is_on_disk_before_anything_else_is_asked(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        before: list[int] = []

        def line() -> Iterator[str]:
            stored = store.stored("kitchen")
            before.append(len(stored.turns) if stored else 0)
            yield KNOWN

        engine = FakeEngine([REPLY])
        engine.understands.append(line())
        taken(engine, "show", store)
    assert before == [1]


@pytest.mark.parametrize(("mode", "later"), [("off", ""), ("show", ""), ("remember", "What is it?")])
def test_a_transcript_is_what_was_understood_and_costs_nothing(mode: UnderstoodMode, later: str) -> None:
    engine = asked(mode, transcript=" What\nis it? ")
    events, memory = taken(engine, mode)
    assert engine.asked_again == []
    assert last(events).report.understood == ("" if mode == "off" else "What is it?")
    assert last(events).report.additional_generations == 0
    assert memory.session.turns[0].understood == later
    assert not [event for event in events if isinstance(event, Understood)], "the transcript has told it"


def test_typed_text_needs_no_words_for_it() -> None:
    engine, memory = asked("show", LINE), Memory(Session(), understood="show")
    events = list(memory.take_turn(engine, Utterance(None, "Hello"), threading.Event()))
    assert engine.asked_again == []
    assert not [event for event in events if isinstance(event, Understood | NotUnderstood)]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (asked("show"), "this engine can't tell"),
        (asked("show", ModelError("no memory", hint="")), "no memory"),
        (asked("show", [" \n", "\t"]), "the model has written nothing"),
    ],
)
def test_what_is_not_known_is_said_and_fails_no_turn(engine: FakeEngine, reason: str) -> None:
    events, memory = taken(engine, "remember")
    assert [event for event in events if isinstance(event, NotUnderstood)] == [NotUnderstood(reason)]
    assert last(events).turn.reply == TEXT
    assert memory.session.turns[0].understood == ""


def test_it_is_asked_while_the_reply_is_played() -> None:
    order: list[str] = []
    release = threading.Event()

    def play(_: threading.Event) -> None:
        release.wait(10)
        order.append("played")

    speaker = LoudSpeaker(on_wait=play)

    def line() -> Iterator[str]:
        order.append("asked")
        yield KNOWN
        release.set()

    engine = FakeEngine([REPLY])
    engine.understands.append(line())
    speech = SpeechOutput(FakeSynthesizer(), speaker)
    understanding = Understanding("show")
    events = list(run_turn(engine, Session(), QUESTION, threading.Event(), speech, understanding=understanding))
    assert order == ["asked", "played"]
    assert [event for event in events if isinstance(event, Understood)] == [Understood(KNOWN)]
    assert not last(events).turn.interrupted


def join_speech() -> None:
    for thread in threading.enumerate():
        if thread.name == "speech":
            thread.join(10)


def endless(then: Callable[[int], object]) -> Iterator[str]:
    """Give a word for ever, and do something before each."""
    number = 0
    while True:
        then(number)
        yield "word "
        number += 1


def test_the_turn_ends_when_it_was_played_and_the_line_may_follow() -> None:
    played = threading.Event()
    speaker, understanding = LoudSpeaker(on_wait=lambda _: played.wait(10)), Understanding("show")
    engine, steps = FakeEngine([REPLY]), []

    def then(number: int) -> None:
        steps.append(number)
        if number == 3:
            played.set()
            join_speech()

    engine.understands.append(endless(then))
    speech = SpeechOutput(FakeSynthesizer(), speaker)
    events = list(run_turn(engine, Session(), QUESTION, threading.Event(), speech, understanding=understanding))
    assert (last(events).report.understood, engine.asides_closed) == ("", 0)
    while understanding.advance():
        pass
    assert list(understanding.news()) == [Understood(understanding.text)]
    assert list(understanding.news()) == []
    assert understanding.text.startswith("word word")
    assert len(understanding.text) <= LINE_CHARACTERS
    assert engine.asides_closed == 1


def test_an_interrupt_during_the_reply_cancels_it_within_a_step() -> None:
    interrupt, steps = threading.Event(), list[int]()

    def then(number: int) -> None:
        steps.append(number)
        if number == 2:
            interrupt.set()

    engine = FakeEngine([REPLY])
    engine.understands.append(endless(then))
    speech = SpeechOutput(FakeSynthesizer(), LoudSpeaker(on_wait=lambda event: event.wait(10)))
    understanding = Understanding("remember")
    events = list(run_turn(engine, Session(), QUESTION, interrupt, speech, understanding=understanding))
    assert last(events).turn.interrupted
    assert last(events).report.understood == ""
    assert not understanding.advance()
    assert (steps, engine.asides_closed) == ([0, 1, 2], 1)


def test_an_interrupt_after_the_last_word_marks_no_turn() -> None:
    """The user speaks on once all was played, while the engine is still asked."""
    interrupt = threading.Event()
    is_over = threading.Event()

    def line() -> Iterator[str]:
        assert is_over.wait(10)
        join_speech()
        interrupt.set()
        yield KNOWN

    engine = FakeEngine([REPLY])
    engine.understands.append(line())
    speech = SpeechOutput(FakeSynthesizer(), LoudSpeaker(on_wait=lambda _: is_over.set()))
    events = list(run_turn(engine, Session(), QUESTION, interrupt, speech, understanding=Understanding("show")))
    assert last(events).turn.interrupted is False
    assert last(events).turn.reply == TEXT


def test_an_interrupted_reply_asks_nothing() -> None:
    engine, understanding = FakeEngine([REPLY], understands=[LINE]), Understanding("show")
    interrupt = threading.Event()

    def before(count: int) -> None:
        if count == 1:
            interrupt.set()

    engine.before_delta = before
    list(run_turn(engine, Session(), QUESTION, interrupt, understanding=understanding))
    assert not understanding.advance()
    assert engine.asked_again == []


def test_a_reply_that_may_still_be_dropped_asks_nothing() -> None:
    released = threading.Event()
    engine, understanding = FakeEngine([REPLY], understands=[LINE]), Understanding("show", released.is_set)
    speech = SpeechOutput(FakeSynthesizer(), FakeSpeaker())
    list(run_turn(engine, Session(), QUESTION, threading.Event(), speech, understanding=understanding))
    assert not understanding.advance()
    assert engine.asked_again == []
    released.set()
    while understanding.advance():
        pass
    assert understanding.text == KNOWN


def test_a_turn_that_is_left_ends_the_question_too() -> None:
    engine = FakeEngine([REPLY])
    engine.understands.append(endless(lambda _: None))
    speech = SpeechOutput(FakeSynthesizer(), LoudSpeaker(on_wait=lambda event: event.wait(10)))
    understanding = Understanding("show")
    events = run_turn(engine, Session(), QUESTION, threading.Event(), speech, understanding=understanding)
    assert any(isinstance(event, Understood) for event in events)
    events.close()
    assert engine.asides_closed == 1


def test_somebody_may_ask_during_the_reply() -> None:
    engine, understanding = FakeEngine([REPLY], understands=[LINE]), Understanding("off")
    speech = SpeechOutput(FakeSynthesizer(), LoudSpeaker(on_wait=lambda _: understanding.ask()))
    list(run_turn(engine, Session(), QUESTION, threading.Event(), speech, understanding=understanding))
    while understanding.advance():
        pass
    assert list(understanding.news()) == [Understood(KNOWN)]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_line_counts_once_whether_or_not_the_turn_has_ended(is_late: bool) -> None:
    is_written = threading.Event()

    def line() -> Iterator[str]:
        yield KNOWN
        is_written.set()

    engine, memory = FakeEngine([REPLY]), Memory(Session("kitchen"), understood="show")
    engine.understands.append(line())
    speaker = LoudSpeaker(on_wait=lambda _: None if is_late else is_written.wait(10))
    speech = SpeechOutput(FakeSynthesizer(), speaker)
    ended = last(list(memory.take_turn(engine, QUESTION, threading.Event(), speech)))
    assert (ended.report.understood, ended.report.additional_generations) == (KNOWN, 1)


@pytest.mark.parametrize("spoken", [False, True])
def test_a_line_that_is_cancelled_counts_once(spoken: bool) -> None:
    interrupt = threading.Event()
    engine, memory = FakeEngine([REPLY]), Memory(Session("kitchen"), understood="show")
    engine.understands.append(endless(lambda number: interrupt.set() if number == 2 else None))
    speech = SpeechOutput(FakeSynthesizer(), LoudSpeaker(on_wait=lambda event: event.wait(10))) if spoken else None
    ended = last(list(memory.take_turn(engine, QUESTION, interrupt, speech)))
    assert (ended.report.understood, ended.report.additional_generations) == ("", 1)


def test_a_model_that_writes_nothing_is_left_and_the_end_says_so() -> None:
    engine, memory = FakeEngine([REPLY]), Memory(Session(), understood="show")
    engine.understands.append(repeat(""))
    events = list(memory.take_turn(engine, QUESTION, threading.Event(), silence_seconds=0.01))
    reason = "the model wrote nothing for 0.01 s"
    assert [event for event in events if isinstance(event, NotUnderstood)] == [NotUnderstood(reason)]
    report = last(events).report
    assert (report.understood, report.not_understood, report.additional_generations) == ("", reason, 1)
    assert (last(events).turn.reply, engine.asides_closed) == (TEXT, 1)


def test_a_model_that_writes_slowly_is_not_left() -> None:
    engine, memory = FakeEngine([REPLY]), Memory(Session(), understood="show")
    engine.understands.append(LINE)
    ended = last(list(memory.take_turn(engine, QUESTION, threading.Event(), silence_seconds=0)))
    assert (ended.report.understood, ended.report.not_understood) == (KNOWN, "")


@pytest.mark.parametrize(("slow", "reason"), [(0, ""), (1, "the model wrote nothing for 9 s")])
def test_only_the_first_step_may_take_longer_than_a_model_may_be_silent(slow: int, reason: str) -> None:
    now = 0.0

    def steps() -> Iterator[str]:
        nonlocal now
        for number in range(2):
            now += 10.0 if number == slow else 1.0
            yield ""
        yield KNOWN

    engine = FakeEngine([REPLY], understands=[steps()])
    understanding = Understanding("show", silence_seconds=9, clock=lambda: now)
    understanding.begin(engine, QUESTION)
    while understanding.advance():
        pass
    assert (understanding.text, understanding.reason) == ("" if reason else KNOWN, reason)


def test_a_line_that_could_not_begin_counts_as_none() -> None:
    events, _ = taken(asked("show", ModelError("no memory", hint="")), "show")
    assert last(events).report.additional_generations == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  Two\r\nlines\tand  spaces ", "Two lines and spaces"),
        ('"Quoted."', "Quoted."),
        ("\x1b[2J\u202eevil", "\\x1b[2J\\u202eevil"),
        ("x" * 1_000_000, "x" * (LINE_CHARACTERS - 1) + "…"),
        ("\x00" * 1_000, None),
        ("", ""),
    ],
)
def test_a_line_is_one_line_and_safe(text: str, line: str | None) -> None:
    assert line is None or one_line(text) == line
    assert len(one_line(text)) <= LINE_CHARACTERS
    assert one_line(text).isprintable()
