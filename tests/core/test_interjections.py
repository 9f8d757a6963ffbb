"""Sentences that are spoken between the pieces of a reply, and are no part of it."""

import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.canary import Canary, calls
from tests.support.live_doubles import HeldSpeaker
from tests.support.turns import QUESTION, nothing_hangs
from voxcli.core.memory import Memory
from voxcli.core.protocols import SpeechOutput
from voxcli.core.session import Session
from voxcli.core.speaking import Interjections
from voxcli.core.spoken_text import SpokenText
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import TurnEnded, run_turn

__all__ = ["nothing_hangs"]  # a fixture that is used by itself


def ended(
    engine: FakeEngine,
    runner: Canary,
    synthesizer: FakeSynthesizer,
    interjections: Interjections,
    speaker: FakeSpeaker | HeldSpeaker | None = None,
    interrupt: threading.Event | None = None,
) -> TurnEnded:
    output, interrupt = SpeechOutput(synthesizer, speaker or FakeSpeaker()), interrupt or threading.Event()
    *_, last = run_turn(engine, Session(), QUESTION, interrupt, output, tools=runner, interjections=interjections)
    assert isinstance(last, TurnEnded)
    return last


def always(while_running: Callable[[threading.Event], object]) -> Canary:
    return Canary(lambda _call, _interrupt: False, approval="always", while_running=while_running)


def test_an_interjection_is_spoken_between_what_comes_before_and_after_a_tool() -> None:
    interjections, synthesizer = Interjections(), FakeSynthesizer()
    runner = always(lambda _interrupt: interjections.say("One moment."))
    last = ended(FakeEngine([["Let me see", calls(), "It sang."]]), runner, synthesizer, interjections)
    assert synthesizer.said == ["Let me see", "One moment.", "It sang."], "what has no end yet is spoken before a tool"
    assert last.turn.reply == "Let me seeIt sang."


def test_nothing_is_said_where_nothing_speaks_or_once_the_turn_is_over() -> None:
    interjections, synthesizer = Interjections(), FakeSynthesizer()
    assert not interjections.say("Too early.")
    ended(FakeEngine([["Yes."]]), always(lambda _interrupt: None), synthesizer, interjections)
    assert not interjections.say("Too late.")
    assert synthesizer.said == ["Yes."]


def test_an_interruption_ends_an_interjection_that_plays() -> None:
    interjections, interrupt, speaker = Interjections(), threading.Event(), HeldSpeaker()

    def interrupted(_interrupt: threading.Event) -> None:
        interjections.say("One moment.")
        while not speaker.clips:
            pass
        interrupt.set()
        interjections.hush()

    engine = FakeEngine([[calls(), "Never said."]])
    last = ended(engine, always(interrupted), FakeSynthesizer(), interjections, speaker, interrupt)
    assert (last.turn.reply, last.turn.interrupted) == ("", True)


def test_what_follows_an_interjection_begins_after_it() -> None:
    spoken = SpokenText()
    spoken.begin("One.", 0.0)
    spoken.finish(1.0)
    spoken.begin("Two three.", 3.0)  # two seconds of something else were played
    spoken.finish(4.0)
    assert spoken.text(3.0) == "One."


def test_calls_stay_with_their_turn_through_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        memory = Memory.resumed(store, "kitchen", "")
        runner = always(lambda _interrupt: None)
        engine = FakeEngine([[calls(), "It sang."], ["Next."]])
        for _ in range(2):
            list(memory.take_turn(engine, QUESTION, threading.Event(), tools=runner))
        first = memory.session.turns[0]
        assert [result.status for result in first.tools] == ["done"]
        assert engine.asked[1][0].turns == (first,), "the next prompt has the note"
        assert Memory.resumed(store, "kitchen", "").session.turns[0] == first
        store.fork("kitchen", "attic", at=1)
        assert Memory.resumed(store, "attic", "").session.turns == (first,)
        memory.undo()
        memory.undo()
        assert Memory.resumed(store, "kitchen", "").session.turns == ()
        store.redo("kitchen")
        assert Memory.resumed(store, "kitchen", "").session.turns == (first,)


def test_an_interrupted_turn_keeps_what_its_tools_did(tmp_path: Path) -> None:
    interrupt = threading.Event()
    with Store.open(tmp_path) as store:
        memory = Memory.resumed(store, "kitchen", "")
        runner = always(lambda _interrupt: interrupt.set())
        list(memory.take_turn(FakeEngine([[calls(), "Never said."]]), QUESTION, interrupt, tools=runner))
        (turn,) = Memory.resumed(store, "kitchen", "").session.turns
    assert (turn.interrupted, [result.status for result in turn.tools]) == (True, ["interrupted"])
    assert "[Tool canary(" in turn.user_text
