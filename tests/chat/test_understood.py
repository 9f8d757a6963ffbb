"""What the engine understood, in a live conversation: while the reply is played, after it, by key, and cancelled."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.live_doubles import PATIENCE_SECONDS, FakeListener, HeldSpeaker, RunningConversation
from tests.support.turns import nothing_hangs
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import LiveEvent, SpeechResumed, TurnRetracted, TurnTaken, TurnUndone
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine
from voxcli.core.understanding import Understood, UnderstoodMode
from voxcli.errors import ModelError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
KNOWN = "My name is Anna."


def remembering(mode: UnderstoodMode) -> Memory:
    return Memory(Session(), understood=mode)


class EndlessLine:
    """A line that never ends: it is being written until it is closed."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.begun.release()
        try:
            while True:
                yield ""
        finally:
            self.closed.set()

    def wait_until_begun(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE_SECONDS)

    def wait_until_closed(self) -> None:
        assert self.closed.wait(PATIENCE_SECONDS)


def engine_of(*lines: list[str] | Exception | EndlessLine, replies: int = 3) -> FakeEngine:
    engine = FakeEngine([RAIN] * replies)
    engine.understands += lines
    return engine


@pytest.mark.parametrize(("mode", "later"), [("show", ""), ("remember", KNOWN)])
def test_it_is_told_while_the_reply_is_played(mode: UnderstoodMode, later: str) -> None:
    engine, speaker = engine_of(["My name", " is Anna."]), HeldSpeaker()
    with RunningConversation(engine, speaker, memory=remembering(mode)) as live:
        live.utterance()
        assert live.journal.wait_for(Understood) == Understood(KNOWN)
        assert live.taken == []
        speaker.finish.set()
        report = live.journal.wait_for(TurnTaken).ended.report
        live.until(lambda: bool(engine.prefilled))
        live.utterance()
        live.journal.wait_for(TurnTaken, 2)
    assert (report.understood, report.model_passes, report.additional_generations) == (KNOWN, 1, 1)
    assert [turn.understood for turn in engine.asked[1][0].turns] == [later]
    assert [turn.understood for turn in engine.prefilled[0].turns] == [later]


def converse(engine: FakeEngine, memory: Memory, *, key: str = "") -> RunningConversation:
    """Run a conversation of one turn on this thread, which opened the store; it ends with the line.

    Args:
        key: pressed after the turn.
    """

    def go_on(event: LiveEvent) -> None:
        if isinstance(event, TurnTaken):
            live.press(*key)
        elif isinstance(event, Understood):
            live.press("q")

    live = RunningConversation(engine, memory=memory, show=go_on)
    live.utterance()
    live.responder.start()
    live.conversation.run()
    live.responder.finish()
    return live


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as store:
        yield store


# Without a loudspeaker a turn ends with its text, so the line comes after it.


@pytest.mark.parametrize(("mode", "later"), [("show", ""), ("remember", KNOWN)])
def test_it_may_come_after_the_turn_and_is_stored_with_it(mode: UnderstoodMode, later: str, store: Store) -> None:
    engine = engine_of([KNOWN])
    live = converse(engine, Memory(Session("kitchen"), store, understood=mode))
    assert live.taken[0].ended.report.understood == ""
    assert live.journal.of(Understood) == [Understood(KNOWN, turn=1)]
    stored = store.stored("kitchen")
    assert stored
    assert stored.turns[0].details.transcript == KNOWN
    assert stored.turns[0].turn.understood == later
    assert stored.session == live.memory.session
    assert {turn.understood for session in engine.prefilled for turn in session.turns} <= {later}


def test_w_after_the_turn_asks_an_engine_that_still_knows(store: Store) -> None:
    engine = engine_of([KNOWN])
    converse(engine, Memory(Session("kitchen"), store), key="w")
    stored = store.stored("kitchen")
    assert stored
    assert stored.turns[0].details.transcript == KNOWN
    assert stored.turns[0].turn.understood == ""


def test_a_user_who_speaks_on_cancels_it_and_interrupts_nothing() -> None:
    line = EndlessLine()
    engine, speaker = engine_of(line, ["Second."]), HeldSpeaker()
    with RunningConversation(engine, speaker, memory=remembering("show")) as live:
        live.utterance()
        line.wait_until_begun()
        speaker.finish.set()
        assert not live.journal.wait_for(TurnTaken).ended.turn.interrupted, "the turn ends when it was played"
        assert not line.closed.is_set()
        live.speech_started()
        line.wait_until_closed()
        live.speech_ended()
        assert live.journal.wait_for(Understood) == Understood("Second.")
        live.journal.wait_for(TurnTaken, 2)
    assert live.remembered == [("It rains. Take a coat.", False)] * 2
    assert engine.asides_closed == 2


def test_a_barge_in_cancels_it() -> None:
    line = EndlessLine()
    engine, speaker = engine_of(line), HeldSpeaker()
    with RunningConversation(engine, speaker, memory=remembering("show")) as live:
        live.utterance()
        line.wait_until_begun()
        live.utterance()
        line.wait_until_closed()
        assert live.journal.wait_for(TurnTaken).ended.turn.interrupted
        speaker.finish.set()
        live.journal.wait_for(TurnTaken, 2)


def test_a_line_that_was_cancelled_during_the_reply_counts_in_its_turn() -> None:
    line = EndlessLine()
    engine, speaker = engine_of(line, replies=1), HeldSpeaker()
    with RunningConversation(engine, speaker, memory=remembering("show")) as live:
        live.utterance()
        line.wait_until_begun()
        live.press("i")
        report = live.journal.wait_for(TurnTaken).ended.report
        live.press("q")
        live.join()
    assert (report.understood, report.additional_generations) == ("", 1)
    assert live.ended.additional_generations == 1


def test_lines_after_their_turns_count_in_the_session() -> None:
    line = EndlessLine()
    engine = engine_of(line, [KNOWN])
    with RunningConversation(engine, memory=remembering("show")) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        line.wait_until_begun()
        live.utterance()
        line.wait_until_closed()
        live.journal.wait_for(Understood)
        live.until(lambda: live.responses_over == 2)
        live.press("q")
        live.join()
    assert live.ended.additional_generations == 2


def has_asked(engine: FakeEngine, count: int) -> bool:
    return len(engine.asked) == count


def test_a_speculative_reply_pays_once_it_is_released() -> None:
    engine, speaker = engine_of(["Released."]), HeldSpeaker()
    with RunningConversation(engine, speaker, memory=remembering("show")) as live:
        live.speech_started()
        for count in (1, 2):
            live.speech_paused(8000 * count)
            live.until(partial(has_asked, engine, count))
            live.catch_up()
            assert engine.asked_again == []
            if count == 1:
                live.speech_resumed()
                live.until(lambda: live.responses_over == 1)
        live.speech_ended(16000)
        assert live.journal.wait_for(Understood) == Understood("Released.")
        speaker.finish.set()
        live.journal.wait_for(TurnTaken)
    assert [len(each.clip.samples) for each in engine.asked_again if each.clip] == [16000]


def test_a_turn_that_is_taken_back_cancels_it() -> None:
    line, listener = EndlessLine(), FakeListener(may_continue=True)
    engine, speaker = engine_of(line, ["Whole."]), HeldSpeaker()
    with RunningConversation(engine, speaker, listener=listener, memory=remembering("remember")) as live:
        live.utterance(8000)
        line.wait_until_begun()
        live.speech_resumed()
        live.journal.wait_for(TurnRetracted)
        line.wait_until_closed()
        listener.may_continue = False
        speaker.finish.set()
        live.speech_ended(24000)
        live.journal.wait_for(TurnTaken)
    assert [turn.understood for turn in live.memory.session.turns] == ["Whole."]
    assert len(live.journal.of(SpeechResumed)) == 1


def test_undo_cancels_it_and_nothing_is_filled_in() -> None:
    line = EndlessLine()
    engine = engine_of(line)
    with RunningConversation(engine, memory=remembering("remember")) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        line.wait_until_begun()
        live.press("u")
        live.journal.wait_for(TurnUndone)
        line.wait_until_closed()
    assert live.memory.session.turns == ()
    assert live.journal.of(Understood) == []


def test_the_end_of_the_conversation_does_not_wait_for_it() -> None:
    line = EndlessLine()
    options = ConversationOptions(max_turns=1)
    with RunningConversation(engine_of(line), memory=remembering("show"), options=options) as live:
        live.utterance()
        live.join()
    assert live.ended.turns == 1


def test_a_failure_is_a_notice() -> None:
    engine = engine_of(ModelError("out of memory", hint=""))
    with RunningConversation(engine, memory=remembering("show")) as live:
        live.utterance()
        live.until(lambda: bool(live.notices))
    assert live.notices == ["what you said is not known: out of memory"]
    assert live.remembered == [("It rains. Take a coat.", False)]


# The key w.


def test_w_during_the_reply_asks_once() -> None:
    engine, speaker = engine_of([KNOWN]), HeldSpeaker()
    with RunningConversation(engine, speaker) as live:
        live.utterance()
        live.journal.wait(lambda: "speaking" in live.journal.states())
        assert engine.asked_again == []
        live.press("w")
        assert live.journal.wait_for(Understood) == Understood(KNOWN)
        speaker.finish.set()
        live.journal.wait_for(TurnTaken)
        live.press("w")
        assert live.journal.wait_for(Understood, 2) == Understood(KNOWN, turn=1)
    assert len(engine.asked_again) == 1
    assert live.memory.session.turns[0].understood == "", "shown, not remembered"


def test_w_after_the_reply_says_why_an_engine_can_not_tell() -> None:
    engine = engine_of(ModelError("the audio of that turn is not in the cache any more", hint=""))
    with RunningConversation(engine) as live:
        live.utterance()
        live.until(lambda: bool(engine.prefilled))
        live.press("w")
        live.until(lambda: bool(live.notices))
    assert live.notices == ["what you said is not known: the audio of that turn is not in the cache any more"]


def test_w_shows_a_transcript_that_is_known_anyway() -> None:
    engine = engine_of()
    engine.transcript = "Will it rain?"
    with RunningConversation(engine) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.press("w")
        assert live.journal.wait_for(Understood) == Understood("Will it rain?", turn=1)
    assert engine.asked_again == []


def test_w_without_spoken_words_says_so() -> None:
    engine = engine_of()
    with RunningConversation(engine, read_line=lambda: "Hello") as live:
        live.press("w")
        live.press("t")
        live.journal.wait_for(TurnTaken)
        live.press("w")
        live.until(lambda: len(live.notices) == 2)
    assert live.notices == ["there is no turn whose words could be shown", "the last turn was typed"]


def test_w_while_it_is_being_asked_waits_for_the_same_line() -> None:
    line = EndlessLine()
    engine = engine_of(line, [KNOWN])
    with RunningConversation(engine, memory=remembering("show")) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        line.wait_until_begun()
        live.press("w")
        live.catch_up()
        assert not line.closed.is_set()
        live.utterance()
        line.wait_until_closed()
        assert live.journal.wait_for(Understood) == Understood(KNOWN, turn=2)
    assert len(engine.asked_again) == 2


def test_w_after_an_interrupted_reply_asks_for_it_anew() -> None:
    engine, speaker = engine_of([KNOWN]), HeldSpeaker()
    with RunningConversation(engine, speaker) as live:
        live.utterance()
        live.journal.wait(lambda: "speaking" in live.journal.states())
        live.press("i", "w")
        assert live.journal.wait_for(Understood) == Understood(KNOWN, turn=1)
        assert live.taken[0].ended.turn.interrupted
    assert len(engine.asked_again) == 1
