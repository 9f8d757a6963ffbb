"""The conversation: turns, interruptions, what goes wrong, and what is remembered."""

import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support.live_doubles import (
    FailingPrefillEngine,
    HeldSpeaker,
    RunningConversation,
    StuckEngine,
    clip_of,
    utterance_samples,
)
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
from voxcli.chat.responses.response import FirstAudio, Responder, Response, ResponseOver
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta, SpeechFailed
from voxcli.errors import AudioDeviceError, ModelError, StoreError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
NO_SPECULATION = ConversationOptions(speculative_replies=False)


# An utterance and its answer.


def test_an_utterance_is_answered_aloud_and_remembered() -> None:
    speaker = FakeSpeaker()
    with RunningConversation(FakeEngine([RAIN]), speaker) as live:
        live.utterance()
        taken = live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing", "thinking", "speaking", "listening"]
    assert taken.number == 1
    assert taken.clip
    assert len(taken.clip.samples) == 16000
    assert live.remembered == [("It rains. Take a coat.", False)]
    assert speaker.position > 0
    assert (taken.latency.speculative_reply, taken.latency.dropped_speculative_replies) == ("none", 0)
    assert live.fake_listener.begun == 1


def test_latency_counts_from_the_last_voiced_sample() -> None:
    with RunningConversation(FakeEngine([RAIN]), FakeSpeaker()) as live:
        live.silent_seconds = 100.0
        live.utterance()
        latency = live.journal.wait_for(TurnTaken).latency
    assert latency.endpoint_ms
    assert latency.first_token_ms
    assert latency.first_audio_ms
    assert 100_000 <= latency.endpoint_ms <= latency.first_token_ms <= latency.first_audio_ms


def test_without_a_loudspeaker_the_reply_is_shown() -> None:
    with RunningConversation(FakeEngine([RAIN])) as live:
        live.utterance()
        taken = live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing", "thinking", "listening"]
    assert [delta.text for delta in live.journal.of(ReplyDelta)] == RAIN
    assert taken.latency.first_audio_ms is None


def test_each_turn_sees_those_before_it() -> None:
    engine = FakeEngine([["One."], ["Two."], ["Three."]])
    with RunningConversation(engine, FakeSpeaker()) as live:
        for count in (1, 2, 3):
            live.utterance()
            live.journal.wait_for(TurnTaken, count)
    assert [[turn.reply for turn in session.turns] for session, _ in engine.asked] == [[], ["One."], ["One.", "Two."]]
    assert [taken.number for taken in live.taken] == [1, 2, 3]


def has_settled(engine: FakeEngine, count: int) -> bool:
    return len(engine.prefilled) == count


def test_the_history_is_prefilled_once_a_turn_is_remembered() -> None:
    engine = FakeEngine([["One."], ["Two."]])
    with RunningConversation(engine, FakeSpeaker()) as live:
        for count in (1, 2):
            live.utterance()
            live.journal.wait_for(TurnTaken, count)
            live.until(partial(has_settled, engine, count))
    assert [[turn.reply for turn in session.turns] for session in engine.prefilled] == [["One."], ["One.", "Two."]]


def test_nothing_is_prefilled_while_a_response_waits() -> None:
    engine, posted = FakeEngine([["One."]]), SimpleQueue[object]()
    responder = Responder(engine, None, posted.put)
    responder.prefill_history(Session("passed over"))
    response = Response(Utterance(None, "Well?"), 0.0)
    response.release()
    responder.submit(response, Session())
    responder.start()
    while not isinstance(posted.get(), ResponseOver):
        pass
    responder.finish()
    assert engine.prefilled == []
    assert len(engine.asked) == 1


def test_an_engine_may_encode_an_open_utterance() -> None:
    engine = FakeEngine([["One."]])
    with RunningConversation(engine) as live:
        live.speech_started()
        live.put(SpeechEvent(SpeechGoesOn(clip_of(80_000)), 0.0))
        live.until(lambda: bool(engine.partial_clips))
        live.speech_ended()
        live.journal.wait_for(TurnTaken)
    assert [len(clip.samples) for clip in engine.partial_clips] == [80_000]
    assert len(engine.asked) == 1


def test_a_reply_that_was_cut_off_is_told_of() -> None:
    with RunningConversation(FakeEngine([["One."]], finish_reason="length"), FakeSpeaker()) as live:
        live.utterance()
        assert "cut off" in live.journal.wait_for(Notice).text
    assert live.remembered == [("One.", False)]


def test_the_conversation_goes_on_if_prefilling_fails() -> None:
    engine = FailingPrefillEngine([["One."], ["Two."]], failure=ModelError("out of memory"))
    with RunningConversation(engine, FakeSpeaker()) as live:
        live.utterance()
        notice = live.journal.wait_for(Notice)
        live.utterance()
        live.journal.wait_for(TurnTaken, 2)
    assert notice.text == "out of memory"
    assert live.remembered == [("One.", False), ("Two.", False)]


def test_a_defect_in_prefilling_is_raised() -> None:
    engine = FailingPrefillEngine([["One."]], failure=ZeroDivisionError())
    with RunningConversation(engine, FakeSpeaker()) as live:
        live.utterance()
        with pytest.raises(ZeroDivisionError):
            live.join()


def test_it_ends_after_as_many_turns_as_asked_for() -> None:
    live = RunningConversation(FakeEngine([["One."], ["Two."]]), options=ConversationOptions(max_turns=2))
    with live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.utterance()
        live.join()
    assert (live.ended.turns, len(live.ended.latencies)) == (2, 2)


# Barge-in.


def test_a_reply_is_remembered_up_to_the_last_word_that_was_played() -> None:
    speaker = HeldSpeaker()
    engine = FakeEngine([RAIN, ["Gladly."]])
    with RunningConversation(engine, speaker) as live:
        live.utterance()
        live.journal.wait_for(StateChanged, 4)
        live.until(lambda: speaker.clips == 2)
        speaker.position = 1.5
        live.speech_started()
        taken = live.journal.wait_for(TurnTaken)
        live.catch_up()
        assert live.journal.states()[-2:] == ["speaking", "hearing"]
        speaker.finish.set()
        live.speech_ended()
        live.journal.wait_for(TurnTaken, 2)
    assert taken.ended.turn.reply == "It rains. Take"
    assert live.journal.of(BargeIn) == [BargeIn("It rains. Take")]
    assert live.remembered == [("It rains. Take", True), ("Gladly.", False)]
    assert engine.asked[1][0].turns[0].interrupted


def test_a_sentence_is_announced_when_the_loudspeaker_passes_its_end_and_no_other_is() -> None:
    waiting = threading.Event()

    def wait_for_room(interrupt: threading.Event) -> None:
        if speaker.queued:  # the second sentence has no room yet
            waiting.set()
            interrupt.wait()

    speaker = LoudSpeaker(on_play=wait_for_room)
    with RunningConversation(FakeEngine([RAIN]), speaker) as live:
        live.utterance()
        live.until(waiting.is_set)
        for speaker.position in (0.0, 0.89):
            live.catch_up()
            assert live.journal.of(SentenceSpoken) == []
        speaker.position = 0.9
        assert live.journal.wait_for(SentenceSpoken).text == "It rains. "
        speaker.position = 1.5
        live.speech_started()
        live.journal.wait_for(TurnTaken)
        speaker.position = 100.0  # the next reply
        live.catch_up()
        assert len(live.journal.of(SentenceSpoken)) == 1
    assert live.remembered == [("It rains. Take", True)]


def test_sentences_are_announced_before_the_turn_ends() -> None:
    with RunningConversation(FakeEngine([RAIN]), FakeSpeaker()) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
    shown = [type(event) for event in live.journal.events]
    assert shown.count(SentenceSpoken) == 2
    assert SentenceSpoken not in shown[shown.index(TurnTaken) :]


def test_a_reply_can_be_interrupted_before_its_first_delta() -> None:
    engine = StuckEngine([["Never."], ["Yes."]])
    with RunningConversation(engine, FakeSpeaker(), options=NO_SPECULATION) as live:
        live.utterance()
        engine.wait_until_asked()
        live.speech_started()
        live.catch_up()
        engine.go_on.release(2)
        live.journal.wait_for(TurnTaken)
        live.speech_ended()
        live.journal.wait_for(TurnTaken, 2)
    assert live.remembered == [("", True), ("Yes.", False)]
    assert live.journal.of(BargeIn) == [BargeIn("")]


def test_a_turn_that_was_interrupted_before_its_pass_began_is_remembered_in_its_place() -> None:
    engine = StuckEngine([["One."], ["Three."]])
    with RunningConversation(engine, options=NO_SPECULATION) as live:
        live.utterance(8000)
        engine.wait_until_asked()
        live.utterance(9000)
        live.utterance(10000)
        live.catch_up()
        engine.go_on.release(2)
        live.journal.wait_for(TurnTaken, 3)
    assert [taken.clip and len(taken.clip.samples) for taken in live.taken] == [8000, 9000, 10000]
    assert live.remembered == [("", True), ("", True), ("Three.", False)]
    assert [taken.ended.report.model_passes for taken in live.taken] == [1, 0, 1]
    assert utterance_samples(engine) == [8000, 10000]


def test_the_first_audio_of_a_stopped_turn_changes_nothing() -> None:
    with RunningConversation(FakeEngine([])) as live:
        live.speech_started()
        live.put(FirstAudio(Response(Utterance(clip_of(1000)), 0.0)))
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing"]


# What goes wrong.


def test_a_failed_turn_is_shown_and_the_next_one_is_answered() -> None:
    error = ModelError("out of memory")
    with RunningConversation(FakeEngine([error, RAIN]), FakeSpeaker()) as live:
        live.utterance()
        assert live.journal.wait_for(TurnFailed).error is error
        live.catch_up()
        assert live.journal.states() == ["listening", "hearing", "thinking", "listening"]
        assert live.fake_listener.commits == 1  # further speech is a new utterance
        live.utterance()
        live.journal.wait_for(TurnTaken)
    assert live.remembered == [("It rains. Take a coat.", False)]
    assert live.ended.turns == 1


def test_a_turn_that_can_not_be_stored_is_shown_and_stays_in_memory(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    memory = Memory.resumed(store, "kitchen", "")
    store.close()
    with RunningConversation(FakeEngine([["One."], ["Two."]]), memory=memory) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
        live.utterance()
        live.journal.wait_for(TurnTaken, 2)
    assert [type(failed.error) for failed in live.journal.of(TurnFailed)] == [StoreError, StoreError]
    assert live.remembered == [("One.", False), ("Two.", False)]


def test_a_defect_of_the_engine_ends_the_conversation() -> None:
    with RunningConversation(FakeEngine([ZeroDivisionError()])) as live:
        live.utterance()
        with pytest.raises(ZeroDivisionError):
            live.join()


def test_a_defect_of_another_thread_ends_it_and_what_plays() -> None:
    with RunningConversation(FakeEngine([RAIN]), HeldSpeaker()) as live:
        live.utterance()
        live.journal.wait_for(StateChanged, 4)
        live.put(ThreadCrashed(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            live.join()


def test_a_loudspeaker_that_is_gone_leaves_the_text() -> None:
    with RunningConversation(FakeEngine([RAIN]), LoudSpeaker(on_play=raising(AudioDeviceError("gone")))) as live:
        live.utterance()
        live.journal.wait_for(TurnTaken)
    assert len(live.journal.of(SpeechFailed)) == 1
    assert live.remembered == [("It rains. Take a coat.", False)]


def test_a_long_utterance_gives_a_notice() -> None:
    with RunningConversation(FakeEngine([])) as live:
        live.put(SpeechEvent(SpeechTooLong(110.0), 0.0))
        live.catch_up()
    assert live.notices == ["110 s without a pause; the utterance will be cut soon"]
