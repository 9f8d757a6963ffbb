"""Undo, asking again and copying in a conversation, and the name under which it is kept."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_doubles import HeldSpeaker, RunningConversation, StuckEngine
from tests.support.turns import nothing_hangs
from voxcli.chat.events import LiveEvent, Notice, Ready, TurnFailed, TurnTaken, TurnUndone
from voxcli.chat.keyboard.keys import Key
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine
from voxcli.errors import ModelError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

ASK_AGAIN = Key("r", shift=True)


def prompts(engine: FakeEngine | StuckEngine) -> list[list[str]]:
    """Return the replies of the turns that each prompt had in it."""
    return [[turn.reply for turn in session.turns] for session, _ in engine.asked]


def lengths(engine: FakeEngine | StuckEngine) -> list[int]:
    return [len(utterance.clip.samples) for _, utterance in engine.asked if utterance.clip]


def test_u_removes_the_last_turn_from_memory_and_from_the_next_prompt() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Three."]])
    with RunningConversation(engine) as live:
        for count in (1, 2):
            live.utterance()
            live.journal.wait_for(TurnTaken, count)
        live.press("u")
        undone = live.journal.wait_for(TurnUndone)
        live.utterance()
        live.journal.wait_for(TurnTaken, 3)
    assert (undone.number, undone.turn.reply) == (2, "Two.")
    assert prompts(engine) == [[], ["One."], ["One."]]
    assert [reply for reply, _ in live.remembered] == ["One.", "Three."]


def test_u_without_a_turn_says_so() -> None:
    with RunningConversation(FakeEngine([])) as live:
        live.press("u")
        live.journal.wait_for(Notice)
    assert live.notices == ["there is no turn to undo"]


def test_u_during_a_reply_stops_it_and_removes_its_turn() -> None:
    engine = FakeEngine([["One."], ["It rains."], ["Three."]])
    speaker = HeldSpeaker()
    with RunningConversation(engine, speaker) as live:
        speaker.finish.set()
        live.utterance()
        live.journal.wait_for(TurnTaken)
        speaker.finish.clear()
        live.utterance()
        live.journal.wait(lambda: live.journal.states().count("speaking") == 2)
        live.press("u")
        live.journal.wait_for(TurnUndone)
        speaker.finish.set()
        live.utterance()
        live.journal.wait_for(TurnTaken, 3)
    assert prompts(engine) == [[], ["One."], ["One."]]


def test_u_removes_the_turn_that_a_mere_mhm_made() -> None:
    engine, speaker = FakeEngine([["It rains."], ["Pardon?"], ["Yes."]]), HeldSpeaker()
    with RunningConversation(engine, speaker) as live:
        live.utterance()
        live.journal.wait(lambda: "speaking" in live.journal.states())
        live.utterance(3000)  # barges in
        live.journal.wait_for(TurnTaken)
        live.journal.wait(lambda: live.journal.states().count("speaking") == 2)
        live.press("u")
        live.journal.wait_for(TurnUndone)
        assert live.remembered == [("", True)]
        speaker.finish.set()
        live.utterance()
        live.journal.wait_for(TurnTaken, 3)
    assert [session.turns[0].user for session, _ in engine.asked[1:]] == [
        "[User audio input - 16000 samples, 1.00s]"
    ] * 2
    assert len(engine.asked[-1][0].turns) == 1


def test_u_in_a_pause_drops_the_speculative_reply_that_knew_the_turn() -> None:
    engine = FakeEngine([["One."], ["Speculative."], ["Two."]])
    with RunningConversation(engine) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.speech_started()
        live.speech_paused()
        live.until(lambda: len(engine.asked) == 2)
        live.press("u")
        live.journal.wait_for(TurnUndone)
        live.speech_ended()
        live.journal.wait_for(TurnTaken, 2)
    assert prompts(engine)[-1] == []
    assert live.remembered == [("Two.", False)]


def test_shift_r_asks_the_last_utterance_again_in_place_of_its_turn() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Better."]])
    with RunningConversation(engine) as live:
        for count, samples in ((1, 16000), (2, 24000)):
            live.utterance(samples)
            live.journal.wait_for(TurnTaken, count)
        live.put(ASK_AGAIN)
        live.journal.wait_for(TurnTaken, 3)
    assert lengths(engine) == [16000, 24000, 24000]
    assert prompts(engine)[-1] == ["One."]
    assert [reply for reply, _ in live.remembered] == ["One.", "Better."]
    assert len(live.ended.latencies) == 2, "no voice was waited for when it was asked again"


def test_an_utterance_whose_turn_failed_can_be_asked_again() -> None:
    engine = FakeEngine([["One."], ModelError("out of memory"), ["Two."]])
    with RunningConversation(engine) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.utterance(24000)
        live.journal.wait_for(TurnFailed)
        live.put(ASK_AGAIN)
        live.journal.wait_for(TurnTaken, 2)
    assert lengths(engine)[1:] == [24000, 24000]
    assert prompts(engine)[-1] == ["One."]
    assert live.journal.of(TurnUndone) == []


def test_an_utterance_that_was_undone_can_be_asked_again() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Three."]])
    with RunningConversation(engine) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.utterance(24000)
        live.journal.wait_for(TurnTaken, 2)
        live.press("u")
        live.put(ASK_AGAIN)
        live.journal.wait_for(TurnTaken, 3)
    assert prompts(engine)[-1] == ["One."]
    assert len(live.journal.of(TurnUndone)) == 1


def test_shift_r_during_a_reply_begins_it_anew() -> None:
    engine = StuckEngine([["Slow."], ["Quick."]])
    with RunningConversation(engine) as live:
        live.utterance()
        engine.wait_until_asked()
        live.put(ASK_AGAIN)
        live.catch_up()
        engine.go_on.release(2)
        live.journal.wait_for(TurnTaken, 2)
    assert prompts(engine) == [[], []]
    assert live.remembered == [("Quick.", False)]


def test_shift_r_before_any_question_says_so() -> None:
    with RunningConversation(FakeEngine([])) as live:
        live.put(ASK_AGAIN)
        live.journal.wait_for(Notice)
    assert live.notices == ["there is nothing to ask again"]


@pytest.mark.parametrize("replies", [[], [["It rains.", " Take a coat."]]])
def test_c_copies_the_last_reply(replies: list[list[str]]) -> None:
    copied: list[str] = []

    def copy(text: str) -> str:
        copied.append(text)
        return "copied"

    with RunningConversation(FakeEngine(list(replies)), copy=copy) as live:
        if replies:
            live.utterance()
            live.journal.wait_for(TurnTaken)
        live.press("c")
        live.journal.wait(lambda: bool(live.notices))
    assert copied == ["".join(each) for each in replies]
    assert live.notices == ["copied" if replies else "there is no reply to copy"]


# On disk.


def converse(engine: FakeEngine, memory: Memory, *steps: str, line: str = "") -> RunningConversation:
    """Run a conversation on this thread, which opened the store: an utterance or a key after each turn, then q."""
    left = list(steps)

    def go_on(event: LiveEvent) -> None:
        if isinstance(event, Ready | TurnTaken | TurnFailed):
            step = left.pop(0) if left else "q"
            if step == "utterance":
                live.utterance()
            else:
                live.put(ASK_AGAIN if step == "R" else Key(step))

    live = RunningConversation(engine, memory=memory, show=go_on, read_line=lambda: line)
    live.responder.start()
    go_on(Ready("", "", None, "", None, None, ""))
    live.conversation.run()
    live.responder.finish()
    return live


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as store:
        yield store


def test_undo_and_asking_again_reach_the_disk(store: Store) -> None:
    memory = Memory.resumed(store, "kitchen", "")
    converse(FakeEngine([["One."], ["Two."], ["Better."]]), memory, "utterance", "utterance", "R")
    assert store.session("kitchen") == memory.session
    assert [turn.reply for turn in memory.session.turns] == ["One.", "Better."]


def test_a_chat_without_a_name_gets_one_with_its_first_turn(store: Store) -> None:
    memory = Memory(Session(instructions="Be short."), store, names_itself=True)
    live = converse(FakeEngine([["It rains, take a coat."], ["Yes."]]), memory, "utterance", "utterance")
    ((name, turns),) = [(each.name, each.turns) for each in store.summaries()]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d it rains take a coat", name)
    assert turns == 2
    assert store.session(name) == memory.session
    stored = store.stored(name)
    assert stored
    assert all(each.details.latency.first_token_ms for each in stored.turns)
    assert (live.ended.session, live.ended.can_continue) == (name, True)


def test_typed_turns_have_no_voice_latency_on_disk(store: Store) -> None:
    memory = Memory(Session(), store, names_itself=True)
    converse(FakeEngine([["Yes."]]), memory, "t", line="Will it rain?")
    (summary,) = store.summaries()
    assert summary.name.endswith("will it rain")
    stored = store.stored(summary.name)
    assert stored
    assert stored.turns[0].details.latency.first_token_ms is None


def test_a_chat_of_no_turns_leaves_nothing(store: Store) -> None:
    memory = Memory(Session(), store, names_itself=True)
    live = converse(FakeEngine([ModelError("out of memory")]), memory, "utterance")
    assert store.summaries() == []
    assert (live.ended.session, live.ended.store, live.ended.can_continue) == (None, None, False)
