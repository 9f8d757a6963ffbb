"""What is remembered of a conversation, and when: on disk before anybody is told."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.canary import Canary, calls
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.memory import Memory
from voxcli.core.protocols import SpeechOutput, Utterance
from voxcli.core.session import Session, Turn
from voxcli.core.storage.database import FILE_NAME
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import TurnDetails
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import Event, ReplyDelta, TurnEnded
from voxcli.errors import ModelError, RemoteError, StoreError

QUESTION = Utterance(AudioClip(np.full(SAMPLE_RATE, 0.1, np.float32)), "Be exact.")
ANSWERED = Turn("[User audio input - 16000 samples, 1.00s]", "It rains.", prompt="Be exact.")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path, lock_seconds=0) as store:
        yield store


def take(memory: Memory, engine: FakeEngine, speech: SpeechOutput | None = None) -> None:
    list(memory.take_turn(engine, QUESTION, threading.Event(), speech))


def on_disk(folder: Path, name: str = "kitchen") -> tuple[Turn, ...]:
    with Store.open(folder) as store:
        session = store.session(name)
    return session.turns if session else ()


def test_a_turn_is_on_disk_before_its_end_is_told(store: Store, tmp_path: Path) -> None:
    memory = Memory.resumed(store, "kitchen", "Be short.")
    for event in memory.take_turn(FakeEngine([["It ", "rains."]]), QUESTION, threading.Event()):
        assert on_disk(tmp_path) == ((ANSWERED,) if isinstance(event, TurnEnded) else ())
    assert memory.session == Session("kitchen", "Be short.", (ANSWERED,))
    assert memory.turn_number == 1


def test_who_answered_is_kept_beside_the_turn(store: Store) -> None:
    take(Memory.resumed(store, "kitchen", "Be short."), FakeEngine([["Yes."]], name="embedded", model="small"))
    stored = store.stored("kitchen")
    assert stored
    assert stored.instructions == "Be short."
    assert stored.turns[0].details == TurnDetails("embedded", "small", None)


def test_each_turn_sees_those_before_it() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Three."]])
    memory = Memory(Session(instructions="Be short."))
    for _ in range(3):
        take(memory, engine)
    assert [[turn.reply for turn in session.turns] for session, _ in engine.asked] == [[], ["One."], ["One.", "Two."]]
    assert memory.turn_number == 3


def test_a_session_without_a_name_is_not_stored(store: Store) -> None:
    memory = Memory(Session(), store)
    take(memory, FakeEngine([["Yes."]]))
    assert store.summaries() == []
    assert len(memory.session.turns) == 1


def test_an_interrupted_turn_is_stored_as_it_was_heard(store: Store, tmp_path: Path) -> None:
    speech = SpeechOutput(FakeSynthesizer(), FakeSpeaker(limit=0.5))
    take(Memory.resumed(store, "kitchen", ""), FakeEngine([["It rains", " today."]]), speech)
    assert [(turn.reply, turn.interrupted) for turn in on_disk(tmp_path)] == [("It", True)]


def test_a_stored_session_goes_on_with_its_own_instructions(store: Store) -> None:
    take(Memory.resumed(store, "kitchen", "Be short."), FakeEngine([["One."]]))
    memory = Memory.resumed(store, "kitchen", "Be long.")
    assert memory.turn_number == 1
    engine = FakeEngine([["Two."]])
    take(memory, engine)
    ((session, _),) = engine.asked
    assert (session.instructions, [turn.reply for turn in session.turns]) == ("Be short.", ["One."])
    assert memory.turn_number == 2


def test_instructions_that_are_given_override_the_stored_ones_for_this_time(store: Store) -> None:
    take(Memory.resumed(store, "kitchen", "Be short."), FakeEngine([["One."]]))
    memory = Memory.resumed(store, "kitchen", "Be long.", override=True)
    engine = FakeEngine([["Two."]])
    take(memory, engine)
    assert engine.asked[0][0].instructions == "Be long."
    assert Memory.resumed(store, "kitchen", "").session.instructions == "Be short."


def test_the_number_of_a_turn_counts_those_of_other_processes(store: Store, tmp_path: Path) -> None:
    memory = Memory.resumed(store, "kitchen", "")
    with Store.open(tmp_path) as other:
        other.append("kitchen", Turn("a", "b"))
    take(memory, FakeEngine([["Yes."]]))
    assert memory.turn_number == 2


def test_a_turn_that_can_not_be_stored_is_no_ended_turn(store: Store, tmp_path: Path) -> None:
    memory = Memory.resumed(store, "kitchen", "")
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    events: list[Event] = []
    with pytest.raises(StoreError, match="locked"):
        events.extend(memory.take_turn(FakeEngine([["Yes."]]), QUESTION, threading.Event()))
    other.close()
    assert not any(isinstance(event, TurnEnded) for event in events)
    assert on_disk(tmp_path) == ()
    assert memory.session.turns[-1].reply == "Yes."  # it was heard all the same


def test_an_undone_turn_is_in_no_prompt_and_in_no_session_on_disk(store: Store, tmp_path: Path) -> None:
    memory, engine = Memory.resumed(store, "kitchen", ""), FakeEngine([["One."], ["Two."], ["Three."]])
    take(memory, engine)
    take(memory, engine)
    undone = memory.undo()
    assert undone
    assert (undone.reply, memory.turn_number) == ("Two.", 1)
    assert [turn.reply for turn in on_disk(tmp_path)] == ["One."]
    take(memory, engine)
    assert [turn.reply for turn in engine.asked[-1][0].turns] == ["One."]
    assert [turn.reply for turn in on_disk(tmp_path)] == ["One.", "Three."]


def test_nothing_is_undone_before_the_first_turn() -> None:
    assert Memory(Session()).undo() is None


def test_undo_that_can_not_be_stored_is_an_error_and_holds_in_memory(store: Store, tmp_path: Path) -> None:
    memory = Memory.resumed(store, "kitchen", "")
    take(memory, FakeEngine([["Yes."]]))
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        memory.undo()
    other.close()
    assert memory.session.turns == ()
    assert len(on_disk(tmp_path)) == 1


def test_a_turn_that_failed_is_not_remembered(store: Store, tmp_path: Path) -> None:
    memory = Memory.resumed(store, "kitchen", "")
    with pytest.raises(ModelError):
        take(memory, FakeEngine([ModelError("out of memory")]))
    assert memory.session.turns == on_disk(tmp_path) == ()
    assert memory.turn_number == 0


def test_a_turn_that_was_left_early_is_not_remembered(store: Store, tmp_path: Path) -> None:
    memory, interrupt = Memory.resumed(store, "kitchen", ""), threading.Event()
    turn = memory.take_turn(FakeEngine([["It ", "rains."]]), QUESTION, interrupt)
    assert next(turn) == ReplyDelta("It ")
    turn.close()
    assert interrupt.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "generation"]
    assert memory.session.turns == on_disk(tmp_path) == ()


def test_a_session_keeps_its_persona_from_its_first_turn(store: Store) -> None:
    take(Memory.resumed(store, "kitchen", "Be kind.", persona="tutor"), FakeEngine([["Yes."]]))
    later = Memory.resumed(store, "kitchen", "Be plain.", persona="plain")
    assert (later.persona, later.instructions) == ("tutor", "Be kind.")
    unnamed = Memory(Session(instructions="Be kind."), store, names_itself=True, persona="tutor")
    take(unnamed, FakeEngine([["Yes."]]))
    assert store.persona(unnamed.session.name or "") == "tutor"
    saved = Memory(Session(instructions="Be kind."), persona="tutor")
    take(saved, FakeEngine([["Yes."]]))
    saved.save_as("garden", store, FakeEngine([]))
    assert store.persona("garden") == "tutor"


def test_another_persona_is_stored_with_the_next_turn(store: Store) -> None:
    memory = Memory.resumed(store, "kitchen", "Be kind.", persona="tutor")
    engine = FakeEngine([["Yes."], ["No."]])
    take(memory, engine)
    memory.take_persona("plain", "Be plain.")
    assert store.persona("kitchen") == "tutor"
    take(memory, engine)
    stored = store.stored("kitchen")
    assert stored
    assert (stored.persona, stored.instructions) == ("plain", "Be plain.")
    assert [session.instructions for session, _ in engine.asked] == ["Be kind.", "Be plain."]


def test_a_turn_that_fails_after_its_tool_is_on_disk_with_what_was_done(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def reply(self, *asked: Any) -> Any:
            yield from super().reply(*asked)
            raise RemoteError("the server is gone")

    engine = Broken([["Let me sing.", calls()]])
    canary = Canary(lambda _call, _interrupt: True)
    with Store.open(tmp_path) as store:
        memory = Memory(Session("kitchen"), store)
        with pytest.raises(RemoteError, match="the server is gone"):
            list(memory.take_turn(engine, Utterance(None, "Sing!"), threading.Event(), tools=canary))
        stored = store.session("kitchen")
    assert stored == memory.session
    (turn,) = stored.turns
    assert (turn.user, turn.reply, turn.interrupted, turn.tools[0].status) == ("Sing!", "Let me sing.", True, "done")
