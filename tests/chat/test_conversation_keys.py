"""Keys, Ctrl-C and push-to-talk, and what each leaves of a conversation."""

import threading
from pathlib import Path

import pytest

from tests.support.live_doubles import FakeEars, HeldSpeaker, StuckEngine, Talk
from tests.support.turns import nothing_hangs, raising
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import LiveEvent, SessionEnded, TurnTaken
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.reader import keys_posted
from voxcli.chat.messages import Interrupt
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]


# Keys.


def speaking(talk: Talk) -> None:
    talk.said()
    talk.journal.wait(lambda: "speaking" in talk.journal.states())


def test_i_interrupts_the_reply() -> None:
    with Talk(FakeEngine([RAIN]), HeldSpeaker()) as talk:
        speaking(talk)
        commits = talk.fake_ears.commits
        talk.press("i")
        talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states()[-2:] == ["speaking", "listening"]
        assert talk.fake_ears.commits > commits
    assert talk.remembered == [("", True)]


class FakeKeys:
    """Keys that were pressed already; with none left, a defect."""

    supports_release = False

    def __init__(self, *keys: Key) -> None:
        self._keys = list(keys)

    def read(self, timeout: float) -> Key | None:
        return self._keys.pop(0)

    def read_line(self, prompt: str) -> str:
        return ""


def test_keys_reach_the_conversation_and_a_defect_of_their_thread_ends_it() -> None:
    talk = Talk(FakeEngine([RAIN]))
    with talk, keys_posted(FakeKeys(Key(" ")), talk.inbox.put), pytest.raises(IndexError):
        talk.join()
    assert talk.fake_ears.told == [("mute", True)]


def test_a_conversation_without_a_terminal_has_no_keys() -> None:
    before = threading.active_count()
    with keys_posted(None, raising(AssertionError())):
        assert threading.active_count() == before


def test_keys_that_interrupt_do_nothing_where_nothing_is_said() -> None:
    with Talk(FakeEngine([RAIN])) as talk:
        talk.press("i", "x", "\x1b")
        talk.put(Key("q", "release"), Key(" ", "release"), Key(" ", "repeat"), Key("i", "repeat"))
        talk.catch_up()
        assert talk.journal.states() == ["listening"]
        assert talk.fake_ears.told == []


def test_q_ends_it_and_what_was_heard_is_remembered() -> None:
    speaker = HeldSpeaker()
    with Talk(FakeEngine([RAIN]), speaker) as talk:
        speaking(talk)
        speaker.position = 0.4
        talk.press("q")
        talk.join()
    assert talk.remembered == [("It", True)]
    assert talk.ended == SessionEnded(1, talk.ended.latencies, 0, 0, 0, None, None)
    assert not talk.conversation.interrupted


def test_what_is_heard_after_q_begins_nothing() -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine) as talk:
        with talk.at_once():
            talk.press("q")
            talk.started()
            talk.paused()
            talk.finished()
        talk.join()
    assert (engine.asked, talk.remembered) == ([], [])


def test_q_in_a_pause_forgets_the_draft() -> None:
    engine = StuckEngine([RAIN])
    with Talk(engine, FakeSpeaker()) as talk:
        talk.started()
        talk.paused()
        engine.wait_until_asked()
        talk.press("q")
        engine.go_on.release(2)
        talk.join()
    assert talk.remembered == []
    assert (talk.ended.turns, talk.ended.dropped_speculative_replies) == (0, 1)


def test_overruns_and_underruns_are_told_at_the_end() -> None:
    with Talk(FakeEngine([]), ears=FakeEars(overruns=3, underruns=2)) as talk:
        talk.press("q")
        talk.join()
    assert (talk.ended.overruns, talk.ended.underruns) == (3, 2)


def test_ctrl_c_interrupts_the_reply_and_twice_ends() -> None:
    with Talk(FakeEngine([RAIN]), HeldSpeaker()) as talk:
        speaking(talk)
        talk.put(Interrupt())
        talk.journal.wait_for(TurnTaken)
        assert talk.notices == ["Ctrl-C again ends the conversation"]
        talk.put(Interrupt())
        talk.join()
    assert talk.conversation.interrupted
    assert talk.remembered == [("", True)]


def test_ctrl_c_once_is_no_end() -> None:
    with Talk(FakeEngine([RAIN])) as talk:
        talk.put(Interrupt())
        talk.said()
        talk.journal.wait_for(TurnTaken)
    assert not talk.conversation.interrupted
    assert talk.remembered == [("It rains. Take a coat.", False)]


def test_ctrl_c_while_it_ends_waits_for_no_engine() -> None:
    engine = StuckEngine([RAIN])
    talk = Talk(engine)
    with talk:
        talk.said()
        engine.wait_until_asked()
        talk.press("q")
        talk.put(Interrupt())
        talk.journal.wait_for(SessionEnded)
        assert engine.active == 1
        engine.go_on.release(1)
        talk.join()
    assert talk.conversation.interrupted


def test_space_mutes() -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine) as talk:
        talk.started()
        with talk.at_once():
            talk.press(" ")
            talk.finished()  # was on its way
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing", "muted"]
        talk.press(" ")
        talk.catch_up()
        assert talk.journal.states()[-1] == "listening"
        assert talk.fake_ears.told == [("mute", True), ("mute", False)]
        assert engine.asked == []
        talk.said()
        talk.journal.wait_for(TurnTaken)


def test_space_in_a_pause_drops_the_draft() -> None:
    engine = StuckEngine([RAIN])
    with Talk(engine) as talk:
        talk.started()
        talk.paused()
        engine.wait_until_asked()
        talk.press(" ")
        talk.catch_up()
        engine.go_on.release(1)
    assert talk.ended.dropped_speculative_replies == 1
    assert talk.remembered == []


def test_muted_while_it_speaks_it_is_muted_afterwards() -> None:
    speaker = HeldSpeaker()
    with Talk(FakeEngine([RAIN]), speaker) as talk:
        speaking(talk)
        talk.press(" ")
        talk.catch_up()
        assert talk.journal.states()[-1] == "speaking"
        assert talk.notices == ["the microphone is muted"]
        speaker.finish.set()
        talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states()[-1] == "muted"


def test_a_line_can_be_typed() -> None:
    engine = FakeEngine([RAIN])
    told_before: list[tuple[str, bool]] = []

    def read_line() -> str:
        told_before.extend(talk.fake_ears.told)
        return "  Will it rain? "

    talk = Talk(engine, FakeSpeaker(), read_line=read_line)
    with talk:
        talk.press("t")
        taken = talk.journal.wait_for(TurnTaken)
    assert taken.ended.turn.user == "Will it rain?"
    assert taken.clip is None
    assert told_before == [("mute", True)]
    assert talk.fake_ears.told[:2] == [("mute", True), ("mute", False)]


@pytest.mark.parametrize("line", ["", "  \t"])
def test_an_empty_line_asks_nothing(line: str) -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine, read_line=lambda: line) as talk:
        talk.press("t")
        talk.catch_up()
        assert talk.fake_ears.told == [("mute", True), ("mute", False)]
    assert engine.asked == []


def test_what_was_being_said_when_a_line_is_typed_is_forgotten() -> None:
    engine = FakeEngine([["Draft."], ["Typed."]])
    with Talk(engine, read_line=lambda: "Hello") as talk:
        talk.started()
        talk.paused(4000)
        talk.until(lambda: len(engine.asked) == 1)
        with talk.at_once():
            talk.press("t")
            talk.finished()  # was on its way
        talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states()[-1] == "listening"
    assert [taken.ended.turn.user for taken in talk.taken] == ["Hello"]


def test_typing_leaves_a_muted_microphone_muted() -> None:
    with Talk(FakeEngine([RAIN]), read_line=lambda: "Hello") as talk:
        talk.press(" ", "t")
        talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.fake_ears.told[-1] == ("mute", True)
        assert talk.journal.states() == ["listening", "muted", "thinking", "muted"]


def test_r_says_the_last_reply_again() -> None:
    engine, speaker = FakeEngine([RAIN]), FakeSpeaker()
    with Talk(engine, speaker) as talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
        once = speaker.position
        talk.press("r")
        talk.journal.wait(lambda: talk.journal.states().count("listening") == 3)
    assert speaker.position == pytest.approx(2 * once)
    assert len(engine.asked) == 1
    assert (len(talk.taken), talk.ended.turns) == (1, 1)
    assert talk.remembered == [("It rains. Take a coat.", False)]


def test_r_says_what_was_heard_of_the_reply_that_it_interrupts() -> None:
    speaker = HeldSpeaker()
    with Talk(FakeEngine([["Older."], RAIN]), speaker) as talk:
        speaker.finish.set()
        talk.said()
        talk.journal.wait_for(TurnTaken)
        speaker.finish.clear()
        talk.said()
        talk.journal.wait(lambda: talk.journal.states().count("speaking") == 2)
        talk.until(lambda: speaker.clips == 3)
        speaker.position += 0.95
        talk.press("r")
        talk.journal.wait(lambda: talk.journal.states().count("speaking") == 3)
    assert talk.remembered == [("Older.", False), ("It rains.", True)]
    assert [delta.text for delta in talk.journal.of(ReplyDelta)][-1] == "It rains."


def test_r_without_a_reply_says_nothing() -> None:
    speaker = FakeSpeaker()
    with Talk(FakeEngine([]), speaker) as talk:
        talk.press("r")
        talk.journal.wait(lambda: talk.journal.states().count("listening") == 2)
    assert speaker.queued == 0
    assert talk.ended.turns == 0


# Push-to-talk.


def test_space_begins_and_ends_an_utterance() -> None:
    with Talk(FakeEngine([RAIN]), options=ConversationOptions(push_to_talk="toggle")) as talk:
        talk.press(" ")
        talk.put(Key(" ", "release"))
        talk.press(" ")
        talk.catch_up()
        assert talk.fake_ears.told == [("talk", True), ("talk", False)]


def test_space_is_held() -> None:
    with Talk(FakeEngine([RAIN]), options=ConversationOptions(push_to_talk="hold")) as talk:
        talk.put(Key(" "), Key(" ", "repeat"), Key(" ", "repeat"))
        talk.catch_up()
        assert talk.fake_ears.told == [("talk", True)]
        talk.put(Key(" ", "release"))
        talk.catch_up()
        assert talk.fake_ears.told == [("talk", True), ("talk", False)]


def test_the_key_to_talk_stops_the_reply() -> None:
    with Talk(FakeEngine([RAIN]), HeldSpeaker(), options=ConversationOptions(push_to_talk="toggle")) as talk:
        speaking(talk)
        talk.press(" ")
        talk.journal.wait_for(TurnTaken)
    assert talk.remembered == [("", True)]


def test_nothing_said_is_no_turn() -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine, options=ConversationOptions(push_to_talk="hold")) as talk:
        talk.started()
        talk.finished(0)
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing", "listening"]
    assert engine.asked == []
    assert talk.notices == ["nothing was heard"]


def test_what_is_shown_is_shown_by_the_thread_that_runs_it() -> None:
    threads: set[str] = set()

    def show(_: LiveEvent) -> None:
        threads.add(threading.current_thread().name)

    with Talk(FakeEngine([RAIN]), FakeSpeaker(), show=show) as talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
    assert threads == {"conversation"}


def test_a_session_says_where_it_is(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        memory = Memory.resumed(store, "kitchen", "")
        with Talk(FakeEngine([]), memory=memory) as talk:
            talk.press("q")
            talk.join()
        assert (talk.ended.session, talk.ended.store) == ("kitchen", str(store.path))


def test_a_session_that_is_not_stored_is_nowhere() -> None:
    with Talk(FakeEngine([]), memory=Memory(Session())) as talk:
        talk.press("q")
        talk.join()
    assert (talk.ended.session, talk.ended.store) == (None, None)
