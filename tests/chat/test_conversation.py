"""The conversation: turns, interruptions, what goes wrong, and what is remembered."""

import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support.live_doubles import HeldSpeaker, StuckEngine, Talk, UnsettledEngine, clip_of, heard_samples
from tests.support.turns import LoudSpeaker, nothing_hangs, raising
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import (
    BargeIn,
    Notice,
    SentenceSpoken,
    SpeechGoesOn,
    SpeechTooLong,
    StateChanged,
    TurnFailed,
    TurnTaken,
)
from voxcli.chat.messages import SpeechEvent, ThreadCrashed
from voxcli.chat.response import FirstAudio, Responder, Response, ResponseOver
from voxcli.core.memory import Memory
from voxcli.core.session import Session
from voxcli.core.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta, SpeechFailed, Utterance
from voxcli.errors import AudioDeviceError, ModelError, StoreError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
NO_DRAFTS = ConversationOptions(speculative_replies=False)


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
    assert (taken.latency.speculative_reply, taken.latency.dropped_speculative_replies) == ("none", 0)
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


def has_settled(engine: FakeEngine, count: int) -> bool:
    return len(engine.prefilled) == count


def test_the_engine_reads_a_turn_ahead_once_it_is_remembered() -> None:
    engine = FakeEngine([["One."], ["Two."]])
    with Talk(engine, FakeSpeaker()) as talk:
        for count in (1, 2):
            talk.said()
            talk.journal.wait_for(TurnTaken, count)
            talk.until(partial(has_settled, engine, count))
    assert [[turn.reply for turn in session.turns] for session in engine.prefilled] == [["One."], ["One.", "Two."]]


def test_nothing_is_read_ahead_while_somebody_waits_for_an_answer() -> None:
    engine, posted = FakeEngine([["One."]]), SimpleQueue[object]()
    answering = Responder(engine, None, lambda: True, posted.put)
    answering.prefill_history(Session("passed over"))
    response = Response(Utterance(None, "Well?"), 0.0)
    response.release()
    answering.begin(response, Session())
    answering.start()
    while not isinstance(posted.get(), ResponseOver):
        pass
    answering.finish()
    assert engine.prefilled == []
    assert len(engine.asked) == 1


def test_an_engine_may_begin_on_what_is_still_being_said() -> None:
    engine = FakeEngine([["One."]])
    with Talk(engine) as talk:
        talk.started()
        talk.put(SpeechEvent(SpeechGoesOn(clip_of(80_000)), 0.0))
        talk.until(lambda: bool(engine.partial_clips))
        talk.finished()
        talk.journal.wait_for(TurnTaken)
    assert [len(clip.samples) for clip in engine.partial_clips] == [80_000]
    assert len(engine.asked) == 1


def test_a_session_that_can_not_be_read_ahead_is_no_reason_to_end() -> None:
    engine = UnsettledEngine([["One."], ["Two."]], failure=ModelError("out of memory"))
    with Talk(engine, FakeSpeaker()) as talk:
        talk.said()
        notice = talk.journal.wait_for(Notice)
        talk.said()
        talk.journal.wait_for(TurnTaken, 2)
    assert notice.text == "out of memory"
    assert talk.remembered == [("One.", False), ("Two.", False)]


def test_a_defect_in_reading_ahead_is_not_hidden() -> None:
    engine = UnsettledEngine([["One."]], failure=ZeroDivisionError())
    with Talk(engine, FakeSpeaker()) as talk:
        talk.said()
        with pytest.raises(ZeroDivisionError):
            talk.join()


def test_it_ends_after_as_many_turns_as_asked_for() -> None:
    talk = Talk(FakeEngine([["One."], ["Two."]]), options=ConversationOptions(max_turns=2))
    with talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
        talk.said()
        talk.join()
    assert (talk.ended.turns, len(talk.ended.latencies)) == (2, 2)


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


def test_a_sentence_is_announced_when_the_loudspeaker_passes_its_end_and_no_other_is() -> None:
    waiting = threading.Event()

    def wait_for_room(interrupt: threading.Event) -> None:
        if speaker.queued:  # the second sentence has no room yet
            waiting.set()
            interrupt.wait()

    speaker = LoudSpeaker(on_play=wait_for_room)
    with Talk(FakeEngine([RAIN]), speaker) as talk:
        talk.said()
        talk.until(waiting.is_set)
        for speaker.position in (0.0, 0.89):
            talk.catch_up()
            assert talk.journal.of(SentenceSpoken) == []
        speaker.position = 0.9
        assert talk.journal.wait_for(SentenceSpoken).text == "It rains. "
        speaker.position = 1.5
        talk.started()
        talk.journal.wait_for(TurnTaken)
        speaker.position = 100.0  # the next reply
        talk.catch_up()
        assert len(talk.journal.of(SentenceSpoken)) == 1
    assert talk.remembered == [("It rains. Take", True)]


def test_sentences_are_announced_before_the_turn_ends() -> None:
    with Talk(FakeEngine([RAIN]), FakeSpeaker()) as talk:
        talk.said()
        talk.journal.wait_for(TurnTaken)
    shown = [type(event) for event in talk.journal.events]
    assert shown.count(SentenceSpoken) == 2
    assert SentenceSpoken not in shown[shown.index(TurnTaken) :]


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
        talk.put(FirstAudio(Response(Utterance(clip_of(1000)), 0.0)))
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
        talk.put(ThreadCrashed(ZeroDivisionError()))
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
        talk.put(SpeechEvent(SpeechTooLong(110.0), 0.0))
        talk.catch_up()
    assert talk.notices == ["110 s without a pause; the utterance will be cut soon"]
