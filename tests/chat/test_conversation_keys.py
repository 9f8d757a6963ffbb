"""Keys, Ctrl-C and push-to-talk, and what each leaves of a conversation."""

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.support.live_doubles import FakeListener, HeldSpeaker, RunningConversation, StuckEngine
from tests.support.turns import nothing_hangs, raising
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import LiveEvent, SessionEnded, StateChanged, TurnTaken
from voxcli.chat.keyboard.keys import Key
from voxcli.chat.keyboard.reader import keys_posted
from voxcli.chat.messages import Interrupt
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta
from voxcli.errors import ConfigError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]


# Keys.


def speaking(live: RunningConversation) -> None:
    live.utterance()
    live.journal.wait(lambda: "speaking" in live.journal.states())


def test_i_interrupts_the_reply() -> None:
    with RunningConversation(FakeEngine([RAIN]), HeldSpeaker()) as live:
        speaking(live)
        commits = live.fake_listener.commits
        live.press("i")
        live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states()[-2:] == ["speaking", "listening"]
        assert live.fake_listener.commits > commits
    assert live.remembered == [("", True)]


class FakeKeys:
    """Keys that were pressed already; with none left, a defect."""

    supports_release = False

    def __init__(self, *keys: Key) -> None:
        self._keys = list(keys)

    def read(self, timeout: float) -> Key | None:
        return self._keys.pop(0)

    def read_line(self, prompt: str, *, erase: bool = False) -> str:
        return ""

    def released(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_keys_reach_the_conversation_and_a_defect_of_their_thread_ends_it() -> None:
    live = RunningConversation(FakeEngine([RAIN]))
    with live, keys_posted(FakeKeys(Key(" ")), live.inbox.put), pytest.raises(IndexError):
        live.join()
    assert live.fake_listener.calls == [("mute", True)]


def test_a_conversation_without_a_terminal_has_no_keys() -> None:
    before = threading.active_count()
    with keys_posted(None, raising(AssertionError())):
        assert threading.active_count() == before


def test_keys_that_interrupt_do_nothing_without_a_reply() -> None:
    with RunningConversation(FakeEngine([RAIN])) as live:
        live.press("i", "x", "\x1b")
        live.put(Key("q", "release"), Key(" ", "release"), Key(" ", "repeat"), Key("i", "repeat"))
        live.catch_up()
        assert live.journal.states() == ["listening"]
        assert live.fake_listener.calls == []


def test_q_ends_it_and_the_spoken_text_is_remembered() -> None:
    speaker = HeldSpeaker()
    with RunningConversation(FakeEngine([RAIN]), speaker) as live:
        speaking(live)
        speaker.position = 0.4
        live.press("q")
        live.join()
    assert live.remembered == [("It", True)]
    assert live.ended == SessionEnded(1, live.ended.latencies, 0, 0, 0, None, None)
    assert not live.conversation.interrupted


def test_speech_after_q_starts_nothing() -> None:
    engine = FakeEngine([RAIN])
    with RunningConversation(engine) as live:
        with live.at_once():
            live.press("q")
            live.speech_started()
            live.speech_paused()
            live.speech_ended()
        live.join()
    assert (engine.asked, live.remembered) == ([], [])


def test_q_in_a_pause_drops_the_speculative_reply() -> None:
    engine = StuckEngine([RAIN])
    with RunningConversation(engine, FakeSpeaker()) as live:
        live.speech_started()
        live.speech_paused()
        engine.wait_until_asked()
        live.press("q")
        engine.go_on.release(2)
        live.join()
    assert live.remembered == []
    assert (live.ended.turns, live.ended.dropped_speculative_replies) == (0, 1)


def test_overruns_and_underruns_are_reported_at_the_end() -> None:
    with RunningConversation(FakeEngine([]), listener=FakeListener(overruns=3, underruns=2)) as live:
        live.press("q")
        live.join()
    assert (live.ended.overruns, live.ended.underruns) == (3, 2)


def test_ctrl_c_interrupts_the_reply_and_twice_ends() -> None:
    with RunningConversation(FakeEngine([RAIN]), HeldSpeaker()) as live:
        speaking(live)
        live.put(Interrupt())
        live.journal.wait_for(TurnTaken)
        assert live.notices == ["Ctrl-C again ends the conversation"]
        live.put(Interrupt())
        live.join()
    assert live.conversation.interrupted
    assert live.remembered == [("", True)]


def test_ctrl_c_once_is_no_end() -> None:
    with RunningConversation(FakeEngine([RAIN])) as live:
        live.put(Interrupt())
        live.utterance()
        live.journal.wait_for(TurnTaken)
    assert not live.conversation.interrupted
    assert live.remembered == [("It rains. Take a coat.", False)]


def test_ctrl_c_while_it_ends_waits_for_no_engine() -> None:
    engine = StuckEngine([RAIN])
    live = RunningConversation(engine)
    with live:
        live.utterance()
        engine.wait_until_asked()
        live.press("q")
        live.put(Interrupt())
        live.journal.wait_for(SessionEnded)
        assert engine.active == 1
        engine.go_on.release(1)
        live.join()
    assert live.conversation.interrupted


def test_space_mutes() -> None:
    engine = FakeEngine([RAIN])
    with RunningConversation(engine) as live:
        live.speech_started()
        with live.at_once():
            live.press(" ")
            live.speech_ended()  # was on its way
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing", "muted"]
        live.press(" ")
        live.catch_up()
        assert live.journal.states()[-1] == "listening"
        assert live.fake_listener.calls == [("mute", True), ("mute", False)]
        assert engine.asked == []
        live.utterance()
        live.journal.wait_for(TurnTaken)


def test_space_in_a_pause_drops_the_speculative_reply() -> None:
    engine = StuckEngine([RAIN])
    with RunningConversation(engine) as live:
        live.speech_started()
        live.speech_paused()
        engine.wait_until_asked()
        live.press(" ")
        live.catch_up()
        engine.go_on.release(1)
    assert live.ended.dropped_speculative_replies == 1
    assert live.remembered == []


def test_muted_while_it_speaks_it_is_muted_afterwards() -> None:
    speaker = HeldSpeaker()
    with RunningConversation(FakeEngine([RAIN]), speaker) as live:
        speaking(live)
        live.press(" ")
        live.catch_up()
        assert live.journal.of(StateChanged)[-1] == StateChanged("speaking", muted=True)
        speaker.finish.set()
        live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states()[-1] == "muted"


@pytest.mark.parametrize("key", ["t", "e"])
def test_a_line_can_be_typed(key: str) -> None:
    engine = FakeEngine([RAIN])
    calls_before: list[tuple[str, bool]] = []

    def read_line() -> str:
        calls_before.extend(live.fake_listener.calls)
        return "  Will it rain? "

    live = RunningConversation(engine, FakeSpeaker(), read_line=read_line)
    with live:
        live.press(key)
        taken = live.journal.wait_for(TurnTaken)
    assert taken.ended.turn.user == "Will it rain?"
    assert taken.clip is None
    assert calls_before == [("mute", True)]
    assert live.fake_listener.calls[:2] == [("mute", True), ("mute", False)]


def test_an_editor_that_fails_is_told_and_the_microphone_is_open_again() -> None:
    failing = raising(ConfigError("there is no editor", hint="set EDITOR"))
    with RunningConversation(FakeEngine([RAIN]), read_line=lambda: str(failing(None))) as live:
        live.press("e")
        live.catch_up()
        assert live.notices == ["there is no editor (set EDITOR)"]
        assert live.fake_listener.calls == [("mute", True), ("mute", False)]


@pytest.mark.parametrize("line", ["", "  \t"])
def test_an_empty_line_asks_nothing(line: str) -> None:
    engine = FakeEngine([RAIN])
    with RunningConversation(engine, read_line=lambda: line) as live:
        live.press("t")
        live.catch_up()
        assert live.fake_listener.calls == [("mute", True), ("mute", False)]
    assert engine.asked == []


def test_typing_a_line_discards_the_open_utterance() -> None:
    engine = FakeEngine([["Speculative."], ["Typed."]])
    with RunningConversation(engine, read_line=lambda: "Hello") as live:
        live.speech_started()
        live.speech_paused(4000)
        live.until(lambda: len(engine.asked) == 1)
        with live.at_once():
            live.press("t")
            live.speech_ended()  # was on its way
        live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states()[-1] == "listening"
    assert [taken.ended.turn.user for taken in live.taken] == ["Hello"]


def test_typing_leaves_a_muted_microphone_muted() -> None:
    with RunningConversation(FakeEngine([RAIN]), read_line=lambda: "Hello") as live:
        live.press(" ", "t")
        live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.fake_listener.calls[-1] == ("mute", True)
        assert live.journal.states() == ["listening", "muted", "thinking", "muted"]


def test_r_repeats_the_last_reply() -> None:
    engine, speaker = FakeEngine([RAIN]), FakeSpeaker()
    with RunningConversation(engine, speaker) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        once = speaker.position
        live.press("r")
        live.journal.wait(lambda: live.journal.states().count("listening") == 3)
    assert speaker.position == pytest.approx(2 * once)
    assert len(engine.asked) == 1
    assert (len(live.taken), live.ended.turns) == (1, 1)
    assert live.remembered == [("It rains. Take a coat.", False)]


def test_r_repeats_the_spoken_text_of_the_reply_that_it_interrupts() -> None:
    speaker = HeldSpeaker()
    with RunningConversation(FakeEngine([["Older."], RAIN]), speaker) as live:
        speaker.finish.set()
        live.utterance()
        live.journal.wait_for(TurnTaken)
        speaker.finish.clear()
        live.utterance()
        live.journal.wait(lambda: live.journal.states().count("speaking") == 2)
        live.until(lambda: speaker.clips == 3)
        speaker.position += 0.95
        live.press("r")
        live.journal.wait(lambda: live.journal.states().count("speaking") == 3)
    assert live.remembered == [("Older.", False), ("It rains.", True)]
    assert [delta.text for delta in live.journal.of(ReplyDelta)][-1] == "It rains."


def test_r_without_a_reply_plays_nothing() -> None:
    speaker = FakeSpeaker()
    with RunningConversation(FakeEngine([]), speaker) as live:
        live.press("r")
        live.journal.wait(lambda: live.journal.states().count("listening") == 2)
    assert speaker.queued == 0
    assert live.ended.turns == 0


# Push-to-talk.


def test_space_begins_and_ends_an_utterance() -> None:
    with RunningConversation(FakeEngine([RAIN]), options=ConversationOptions(push_to_talk="toggle")) as live:
        live.press(" ")
        live.put(Key(" ", "release"))
        live.press(" ")
        live.catch_up()
        assert live.fake_listener.calls == [("push_to_talk", True), ("push_to_talk", False)]


def test_space_is_held() -> None:
    with RunningConversation(FakeEngine([RAIN]), options=ConversationOptions(push_to_talk="hold")) as live:
        live.put(Key(" "), Key(" ", "repeat"), Key(" ", "repeat"))
        live.catch_up()
        assert live.fake_listener.calls == [("push_to_talk", True)]
        live.put(Key(" ", "release"))
        live.catch_up()
        assert live.fake_listener.calls == [("push_to_talk", True), ("push_to_talk", False)]


def test_the_key_to_talk_stops_the_reply() -> None:
    with RunningConversation(
        FakeEngine([RAIN]), HeldSpeaker(), options=ConversationOptions(push_to_talk="toggle")
    ) as live:
        speaking(live)
        live.press(" ")
        live.journal.wait_for(TurnTaken)
    assert live.remembered == [("", True)]


def test_an_utterance_without_voice_is_no_turn() -> None:
    engine = FakeEngine([RAIN])
    with RunningConversation(engine, options=ConversationOptions(push_to_talk="hold")) as live:
        live.speech_started()
        live.speech_ended(0)
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing", "listening"]
    assert engine.asked == []
    assert live.notices == ["no speech was detected"]


def test_events_are_shown_on_the_thread_that_runs_the_conversation() -> None:
    threads: set[str] = set()

    def show(_: LiveEvent) -> None:
        threads.add(threading.current_thread().name)

    with RunningConversation(FakeEngine([RAIN]), FakeSpeaker(), show=show) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
    assert threads == {"conversation"}


def test_the_last_event_names_the_session_and_its_store(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        memory = Memory.resumed(store, "kitchen", "")
        with RunningConversation(FakeEngine([]), memory=memory) as live:
            live.press("q")
            live.join()
        assert (live.ended.session, live.ended.store) == ("kitchen", str(store.path))


def test_the_last_event_names_no_store_for_an_unnamed_session() -> None:
    with RunningConversation(FakeEngine([]), memory=Memory(Session())) as live:
        live.press("q")
        live.join()
    assert (live.ended.session, live.ended.store) == (None, None)
