"""The conversation: drafts, turns, interruptions, keys, and what is remembered."""

import threading
from pathlib import Path

import pytest

from tests.live_doubles import FakeEars, HeldSpeaker, StuckEngine, Talk, clip_of
from tests.turns import LoudSpeaker, nothing_hangs, raising
from voxcli.errors import AudioDeviceError, ModelError, StoreError
from voxcli.live.attempt import Attempt, FirstAudio
from voxcli.live.conversation import ConversationOptions
from voxcli.live.events import (
    BargeIn,
    LiveEvent,
    Notice,
    SessionEnded,
    SpeechTooLong,
    StateChanged,
    TurnFailed,
    TurnTaken,
)
from voxcli.live.inbound import Crashed, Heard, Interrupt
from voxcli.live.keys import Key
from voxcli.memory import Memory
from voxcli.session import Session
from voxcli.store import Store
from voxcli.testing import FakeEngine, FakeSpeaker
from voxcli.turn import ReplyDelta, SpeechFailed, Utterance

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
NO_DRAFTS = ConversationOptions(drafts=False)


def notices(talk: Talk) -> list[str]:
    return [notice.text for notice in talk.journal.of(Notice) if not notice.text.startswith(("barrier", "hold"))]


def heard_samples(engine: FakeEngine | StuckEngine) -> list[int]:
    return [len(utterance.clip.samples) for _, utterance in engine.asked if utterance.clip]


# An utterance and its answer.


def test_an_utterance_is_answered_aloud_and_remembered() -> None:
    speaker = FakeSpeaker()
    with Talk(FakeEngine([RAIN]), speaker) as talk:
        talk.said()
        taken = talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing", "thinking", "speaking", "listening"]
    assert taken.number == 1
    assert taken.clip
    assert len(taken.clip.samples) == 16000
    assert talk.remembered == [("It rains. Take a coat.", False)]
    assert speaker.position > 0
    assert (taken.latency.draft, taken.latency.dropped_drafts) == ("none", 0)
    assert talk.fake_ears.commits == 1


def test_what_a_turn_took_counts_from_the_last_voiced_sample() -> None:
    with Talk(FakeEngine([RAIN]), FakeSpeaker()) as talk:
        talk.silent_seconds = 100.0
        talk.said()
        latency = talk.journal.wait_for(TurnTaken).latency
    assert latency.endpoint_ms
    assert latency.first_token_ms
    assert latency.first_audio_ms
    assert 100_000 <= latency.endpoint_ms <= latency.first_token_ms <= latency.first_audio_ms


def test_without_a_loudspeaker_the_reply_is_shown() -> None:
    with Talk(FakeEngine([RAIN])) as talk:
        talk.said()
        taken = talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing", "thinking", "listening"]
    assert [delta.text for delta in talk.journal.of(ReplyDelta)] == RAIN
    assert taken.latency.first_audio_ms is None


def test_each_turn_sees_those_before_it() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Three."]])
    with Talk(engine, FakeSpeaker()) as talk:
        for count in (1, 2, 3):
            talk.said()
            talk.journal.wait_for(TurnTaken, count)
    assert [[turn.reply for turn in session.turns] for session, _ in engine.asked] == [[], ["One."], ["One.", "Two."]]
    assert [taken.number for taken in talk.taken] == [1, 2, 3]


def test_it_ends_after_as_many_turns_as_asked_for() -> None:
    talk = Talk(FakeEngine([["One."], ["Two."]]), options=ConversationOptions(max_turns=2))
    with talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
        talk.said()
        talk.join()
    assert (talk.ended.turns, len(talk.ended.latencies)) == (2, 2)


# Drafts.


def test_a_draft_is_silent_until_the_end_of_the_utterance() -> None:
    speaker = FakeSpeaker()
    engine = StuckEngine([RAIN])
    with Talk(engine, speaker) as talk:
        talk.started()
        talk.paused()
        engine.wait_until_asked()
        engine.go_on.release(2)
        talk.until(lambda: engine.active == 0)  # it has said all
        talk.catch_up()
        assert talk.journal.of(ReplyDelta) == []
        assert speaker.queued == 0
        assert talk.journal.states() == ["listening", "hearing"]
        talk.finished()
        taken = talk.journal.wait_for(TurnTaken)
    assert taken.latency.draft == "used"
    assert taken.latency.first_token_ms
    assert taken.latency.endpoint_ms
    assert [delta.text for delta in talk.journal.of(ReplyDelta)] == RAIN
    assert len(engine.asked) == 1
    assert talk.remembered == [("It rains. Take a coat.", False)]
    shown = [type(event) for event in talk.journal.events]
    assert shown.index(ReplyDelta) > talk.journal.events.index(StateChanged("thinking"))  # which clears the view


def test_a_draft_without_a_loudspeaker_waits_with_its_end() -> None:
    engine = StuckEngine([RAIN])
    with Talk(engine) as talk:
        talk.started()
        talk.paused()
        engine.wait_until_asked()
        engine.go_on.release(2)
        talk.catch_up()
        assert talk.journal.of(ReplyDelta) == []
        talk.finished()
        assert talk.journal.wait_for(TurnTaken).latency.draft == "used"
    assert len(engine.asked) == 1


def test_a_draft_is_dropped_when_speech_goes_on() -> None:
    engine = StuckEngine([["Half."], ["Whole."]])
    with Talk(engine, FakeSpeaker()) as talk:
        talk.started()
        talk.paused(8000)
        engine.wait_until_asked()
        talk.resumed()
        talk.paused(12000)
        talk.catch_up()
        assert len(engine.asked) == 1  # the first pass is not over yet
        engine.go_on.release(1)
        engine.wait_until_asked()
        talk.finished()
        engine.go_on.release(1)
        taken = talk.journal.wait_for(TurnTaken)
    assert heard_samples(engine) == [8000, 12000]
    assert engine.most_active == 1
    assert talk.remembered == [("Whole.", False)]
    assert (taken.latency.draft, taken.latency.dropped_drafts) == ("used", 1)
    assert talk.ended.dropped_drafts == 1
    assert [delta.text for delta in talk.journal.of(ReplyDelta)] == ["Whole."]


def test_drafts_that_were_dropped_count_for_their_turn_alone() -> None:
    with Talk(FakeEngine([["a"]] * 4)) as talk:
        talk.started()
        talk.paused()
        talk.resumed()
        talk.finished()
        talk.journal.wait_for(TurnTaken)
        talk.said()
        talk.journal.wait_for(TurnTaken, 2)
    latencies = [taken.latency for taken in talk.taken]
    assert [(latency.draft, latency.dropped_drafts) for latency in latencies] == [("dropped", 1), ("none", 0)]


def test_a_turn_that_is_taken_back_counts_with_the_drafts_before_it() -> None:
    with Talk(FakeEngine([["a"]] * 3), FakeSpeaker(), ears=(ears := FakeEars(is_open=True))) as talk:
        talk.started()
        talk.paused()
        talk.resumed()
        talk.finished()
        talk.resumed()
        talk.catch_up()
        ears.is_open = False
        talk.finished()
        latency = talk.journal.wait_for(TurnTaken).latency
    assert (latency.draft, latency.dropped_drafts) == ("dropped", 2)
    assert talk.ended.dropped_drafts == 2


def test_drafts_can_be_switched_off() -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine, options=NO_DRAFTS) as talk:
        talk.started()
        talk.paused()
        talk.catch_up()
        assert engine.asked == []
        talk.finished()
        assert talk.journal.wait_for(TurnTaken).latency.draft == "none"


def test_a_draft_that_fails_is_tried_again_at_the_end() -> None:
    engine = FakeEngine([ModelError("out of memory"), RAIN])
    with Talk(engine) as talk:
        talk.started()
        talk.paused()
        talk.until(lambda: talk.attempts_over == 1)
        talk.catch_up()
        talk.finished()
        talk.journal.wait_for(TurnTaken)
    assert talk.journal.of(TurnFailed) == []
    assert talk.remembered == [("It rains. Take a coat.", False)]
    assert talk.journal.states() == ["listening", "hearing", "thinking", "listening"]


def test_a_draft_of_an_utterance_that_was_forgotten_answers_no_other() -> None:
    engine = FakeEngine([["Old."], ["New."]])
    with Talk(engine, options=ConversationOptions(push_to_talk="toggle")) as talk:
        talk.started()
        talk.paused(8000)
        talk.until(lambda: len(engine.asked) == 1)
        talk.said(12000)
        talk.journal.wait_for(TurnTaken)
    assert heard_samples(engine)[-1] == 12000
    assert talk.remembered == [("New.", False)]


# Speech goes on before anything was played.


def test_speech_that_goes_on_before_a_sound_takes_the_turn_back() -> None:
    engine = StuckEngine([["Half."], ["Whole."]])
    speaker = FakeSpeaker()
    with Talk(engine, speaker, options=NO_DRAFTS) as talk:
        talk.said(8000)
        engine.wait_until_asked()
        talk.resumed()
        talk.finished(16000)
        talk.catch_up()
        assert len(engine.asked) == 1
        engine.go_on.release(2)
        taken = talk.journal.wait_for(TurnTaken)
    assert engine.most_active == 1
    assert engine.asked[1][0].turns == ()
    assert heard_samples(engine) == [8000, 16000]
    assert talk.remembered == [("Whole.", False)]
    assert taken.latency.dropped_drafts == 1
    assert talk.journal.states() == ["listening", "hearing", "thinking", "hearing", "thinking", "speaking", "listening"]


@pytest.mark.parametrize("aloud", [True, False])
def test_a_reply_that_is_ready_waits_while_the_user_speaks_on(aloud: bool) -> None:
    """The listener knows first; the reply must neither be heard nor remembered before the conversation does."""
    ears, speaker = FakeEars(is_open=True), FakeSpeaker()
    engine = FakeEngine([["Half."], ["Whole."]])
    with Talk(engine, speaker if aloud else None, ears=ears, options=NO_DRAFTS) as talk:
        talk.said(8000)
        talk.until(lambda: ears.commits > 3)
        talk.catch_up()
        assert (talk.taken, speaker.queued) == ([], 0)
        talk.resumed()
        talk.catch_up()
        ears.is_open = False
        talk.finished(16000)
        talk.journal.wait_for(TurnTaken)
    assert talk.remembered == [("Whole.", False)]
    assert heard_samples(engine) == [8000, 16000]


def test_a_noise_only_delays_the_reply() -> None:
    ears = FakeEars(is_open=True)
    with Talk(FakeEngine([RAIN]), FakeSpeaker(), ears=ears) as talk:
        talk.said()
        talk.until(lambda: ears.commits > 3)
        ears.is_open = False
        talk.journal.wait_for(TurnTaken)
    assert talk.remembered == [("It rains. Take a coat.", False)]


# Barge-in.


def test_a_reply_is_remembered_up_to_the_last_word_that_was_played() -> None:
    speaker = HeldSpeaker()
    engine = FakeEngine([RAIN, ["Gladly."]])
    with Talk(engine, speaker) as talk:
        talk.said()
        talk.journal.wait_for(StateChanged, 4)
        talk.until(lambda: speaker.clips == 2)
        speaker.position = 1.5
        talk.started()
        taken = talk.journal.wait_for(TurnTaken)
        talk.catch_up()
        assert talk.journal.states()[-2:] == ["speaking", "hearing"]
        speaker.finish.set()
        talk.finished()
        talk.journal.wait_for(TurnTaken, 2)
    assert taken.ended.turn.reply == "It rains. Take"
    assert talk.journal.of(BargeIn) == [BargeIn("It rains. Take")]
    assert talk.remembered == [("It rains. Take", True), ("Gladly.", False)]
    assert engine.asked[1][0].turns[0].interrupted


def test_a_reply_can_be_interrupted_while_it_is_thought_of() -> None:
    engine = StuckEngine([["Never."], ["Yes."]])
    with Talk(engine, FakeSpeaker(), options=NO_DRAFTS) as talk:
        talk.said()
        engine.wait_until_asked()
        talk.started()
        talk.catch_up()
        engine.go_on.release(2)
        talk.journal.wait_for(TurnTaken)
        talk.finished()
        talk.journal.wait_for(TurnTaken, 2)
    assert talk.remembered == [("", True), ("Yes.", False)]
    assert talk.journal.of(BargeIn) == [BargeIn("")]


def test_a_turn_that_was_interrupted_before_its_pass_began_is_remembered_in_its_place() -> None:
    engine = StuckEngine([["One."], ["Three."]])
    with Talk(engine, options=NO_DRAFTS) as talk:
        talk.said(8000)
        engine.wait_until_asked()
        talk.said(9000)
        talk.said(10000)
        talk.catch_up()
        engine.go_on.release(2)
        talk.journal.wait_for(TurnTaken, 3)
    assert [taken.clip and len(taken.clip.samples) for taken in talk.taken] == [8000, 9000, 10000]
    assert talk.remembered == [("", True), ("", True), ("Three.", False)]
    assert [taken.ended.report.model_passes for taken in talk.taken] == [1, 0, 1]
    assert heard_samples(engine) == [8000, 10000]


def test_the_first_sound_of_a_turn_that_made_way_changes_nothing() -> None:
    with Talk(FakeEngine([])) as talk:
        talk.started()
        talk.put(FirstAudio(Attempt(Utterance(clip_of(1000)), 0.0)))
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing"]


# What goes wrong.


def test_a_turn_that_fails_is_told_and_the_next_one_is_answered() -> None:
    error = ModelError("out of memory")
    with Talk(FakeEngine([error, RAIN]), FakeSpeaker()) as talk:
        talk.said()
        assert talk.journal.wait_for(TurnFailed).error is error
        talk.catch_up()
        assert talk.journal.states() == ["listening", "hearing", "thinking", "listening"]
        assert talk.fake_ears.commits == 1  # what is said next is not more of the same
        talk.said()
        talk.journal.wait_for(TurnTaken)
    assert talk.remembered == [("It rains. Take a coat.", False)]
    assert talk.ended.turns == 1


def test_a_turn_that_can_not_be_stored_is_told_and_goes_on_in_memory(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    memory = Memory.resumed(store, "kitchen", "")
    store.close()
    with Talk(FakeEngine([["One."], ["Two."]]), memory=memory) as talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
        talk.said()
        talk.journal.wait_for(TurnTaken, 2)
    assert [type(failed.error) for failed in talk.journal.of(TurnFailed)] == [StoreError, StoreError]
    assert talk.remembered == [("One.", False), ("Two.", False)]


def test_a_defect_of_the_engine_ends_the_conversation() -> None:
    with Talk(FakeEngine([ZeroDivisionError()])) as talk:
        talk.said()
        with pytest.raises(ZeroDivisionError):
            talk.join()


def test_a_defect_of_another_thread_ends_it_and_what_plays() -> None:
    with Talk(FakeEngine([RAIN]), HeldSpeaker()) as talk:
        talk.said()
        talk.journal.wait_for(StateChanged, 4)
        talk.put(Crashed(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            talk.join()


def test_a_loudspeaker_that_is_gone_leaves_the_text() -> None:
    with Talk(FakeEngine([RAIN]), LoudSpeaker(on_play=raising(AudioDeviceError("gone")))) as talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
    assert len(talk.journal.of(SpeechFailed)) == 1
    assert talk.remembered == [("It rains. Take a coat.", False)]


def test_a_long_utterance_is_warned_of() -> None:
    with Talk(FakeEngine([])) as talk:
        talk.put(Heard(SpeechTooLong(110.0), 0.0))
        talk.catch_up()
    assert notices(talk) == ["110 s without a pause; the utterance will be cut soon"]


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
    assert talk.ended == SessionEnded(1, talk.ended.latencies, 0, 0, None, None)
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
    assert (talk.ended.turns, talk.ended.dropped_drafts) == (0, 1)


def test_overruns_are_told_at_the_end() -> None:
    with Talk(FakeEngine([]), ears=FakeEars(overruns=3)) as talk:
        talk.press("q")
        talk.join()
    assert talk.ended.overruns == 3


def test_ctrl_c_interrupts_the_reply_and_twice_ends() -> None:
    with Talk(FakeEngine([RAIN]), HeldSpeaker()) as talk:
        speaking(talk)
        talk.put(Interrupt())
        talk.journal.wait_for(TurnTaken)
        assert notices(talk) == ["Ctrl-C again ends the conversation"]
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
    assert talk.ended.dropped_drafts == 1
    assert talk.remembered == []


def test_muted_while_it_speaks_it_is_muted_afterwards() -> None:
    speaker = HeldSpeaker()
    with Talk(FakeEngine([RAIN]), speaker) as talk:
        speaking(talk)
        talk.press(" ")
        talk.catch_up()
        assert talk.journal.states()[-1] == "speaking"
        assert notices(talk) == ["the microphone is muted"]
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
    assert notices(talk) == ["nothing was heard"]


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
