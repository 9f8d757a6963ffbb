"""Speculative replies, and turns that are dropped because the user continues the utterance."""

import pytest

from tests.support.live_doubles import FakeListener, RunningConversation, StuckEngine, utterance_samples
from tests.support.turns import nothing_hangs
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import StateChanged, TurnFailed, TurnTaken
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta
from voxcli.errors import ModelError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
NO_SPECULATION = ConversationOptions(speculative_replies=False)


def test_a_speculative_reply_is_silent_until_the_end_of_the_utterance() -> None:
    speaker = FakeSpeaker()
    engine = StuckEngine([RAIN])
    with RunningConversation(engine, speaker) as live:
        live.speech_started()
        live.speech_paused()
        engine.wait_until_asked()
        engine.go_on.release(2)
        live.until(lambda: engine.active == 0)  # the whole reply is generated
        live.catch_up()
        assert live.journal.of(ReplyDelta) == []
        assert speaker.queued == 0
        assert live.journal.states() == ["listening", "hearing"]
        live.speech_ended()
        taken = live.journal.wait_for(TurnTaken)
    assert taken.latency.speculative_reply == "used"
    assert taken.latency.first_token_ms
    assert taken.latency.endpoint_ms
    assert [delta.text for delta in live.journal.of(ReplyDelta)] == RAIN
    assert len(engine.asked) == 1
    assert live.remembered == [("It rains. Take a coat.", False)]
    shown = [type(event) for event in live.journal.events]
    assert shown.index(ReplyDelta) > live.journal.events.index(StateChanged("thinking"))  # "thinking" clears the view.


def test_without_a_loudspeaker_a_speculative_reply_waits_before_its_end() -> None:
    engine = StuckEngine([RAIN])
    with RunningConversation(engine) as live:
        live.speech_started()
        live.speech_paused()
        engine.wait_until_asked()
        engine.go_on.release(2)
        live.catch_up()
        assert live.journal.of(ReplyDelta) == []
        live.speech_ended()
        assert live.journal.wait_for(TurnTaken).latency.speculative_reply == "used"
    assert len(engine.asked) == 1


def test_a_speculative_reply_is_dropped_when_speech_resumes() -> None:
    engine = StuckEngine([["Half."], ["Whole."]])
    with RunningConversation(engine, FakeSpeaker()) as live:
        live.speech_started()
        live.speech_paused(8000)
        engine.wait_until_asked()
        live.speech_resumed()
        live.speech_paused(12000)
        live.catch_up()
        assert len(engine.asked) == 1  # the first pass is not over yet
        engine.go_on.release(1)
        engine.wait_until_asked()
        live.speech_ended()
        engine.go_on.release(1)
        taken = live.journal.wait_for(TurnTaken)
    assert utterance_samples(engine) == [8000, 12000]
    assert engine.most_active == 1
    assert live.remembered == [("Whole.", False)]
    assert (taken.latency.speculative_reply, taken.latency.dropped_speculative_replies) == ("used", 1)
    assert live.ended.dropped_speculative_replies == 1
    assert [delta.text for delta in live.journal.of(ReplyDelta)] == ["Whole."]


def test_dropped_speculative_replies_count_for_their_turn_alone() -> None:
    with RunningConversation(FakeEngine([["a"]] * 4)) as live:
        live.speech_started()
        live.speech_paused()
        live.speech_resumed()
        live.speech_ended()
        live.journal.wait_for(TurnTaken)
        live.utterance()
        live.journal.wait_for(TurnTaken, 2)
    latencies = [taken.latency for taken in live.taken]
    assert [(latency.speculative_reply, latency.dropped_speculative_replies) for latency in latencies] == [
        ("dropped", 1),
        ("none", 0),
    ]


def test_a_dropped_turn_counts_with_the_speculative_replies_before_it() -> None:
    with RunningConversation(
        FakeEngine([["a"]] * 3), FakeSpeaker(), listener=(listener := FakeListener(is_open=True))
    ) as live:
        live.speech_started()
        live.speech_paused()
        live.speech_resumed()
        live.speech_ended()
        live.speech_resumed()
        live.catch_up()
        listener.is_open = False
        live.speech_ended()
        latency = live.journal.wait_for(TurnTaken).latency
    assert (latency.speculative_reply, latency.dropped_speculative_replies) == ("dropped", 2)
    assert live.ended.dropped_speculative_replies == 2


def test_speculative_replies_can_be_switched_off() -> None:
    engine = FakeEngine([RAIN])
    with RunningConversation(engine, options=NO_SPECULATION) as live:
        live.speech_started()
        live.speech_paused()
        live.catch_up()
        assert engine.asked == []
        live.speech_ended()
        assert live.journal.wait_for(TurnTaken).latency.speculative_reply == "none"


def test_a_speculative_reply_that_fails_is_tried_again_at_the_end() -> None:
    engine = FakeEngine([ModelError("out of memory"), RAIN])
    with RunningConversation(engine) as live:
        live.speech_started()
        live.speech_paused()
        live.until(lambda: live.responses_over == 1)
        live.catch_up()
        live.speech_ended()
        live.journal.wait_for(TurnTaken)
    assert live.journal.of(TurnFailed) == []
    assert live.remembered == [("It rains. Take a coat.", False)]
    assert live.journal.states() == ["listening", "hearing", "thinking", "listening"]


def test_a_speculative_reply_answers_no_other_utterance() -> None:
    engine = FakeEngine([["Old."], ["New."]])
    with RunningConversation(engine, options=ConversationOptions(push_to_talk="toggle")) as live:
        live.speech_started()
        live.speech_paused(8000)
        live.until(lambda: len(engine.asked) == 1)
        live.utterance(12000)
        live.journal.wait_for(TurnTaken)
    assert utterance_samples(engine)[-1] == 12000
    assert live.remembered == [("New.", False)]


# Speech resumes before anything was played.


def test_speech_that_resumes_before_the_first_audio_drops_the_turn() -> None:
    engine = StuckEngine([["Half."], ["Whole."]])
    speaker = FakeSpeaker()
    with RunningConversation(engine, speaker, options=NO_SPECULATION) as live:
        live.utterance(8000)
        engine.wait_until_asked()
        live.speech_resumed()
        live.speech_ended(16000)
        live.catch_up()
        assert len(engine.asked) == 1
        engine.go_on.release(2)
        taken = live.journal.wait_for(TurnTaken)
    assert engine.most_active == 1
    assert engine.asked[1][0].turns == ()
    assert utterance_samples(engine) == [8000, 16000]
    assert live.remembered == [("Whole.", False)]
    assert taken.latency.dropped_speculative_replies == 1
    assert live.journal.states() == ["listening", "hearing", "thinking", "hearing", "thinking", "speaking", "listening"]


@pytest.mark.parametrize("aloud", [True, False])
def test_a_finished_reply_waits_while_the_user_continues(aloud: bool) -> None:
    """The listener knows first that speech resumed; nothing is played or remembered before the conversation knows."""
    listener, speaker = FakeListener(is_open=True), FakeSpeaker()
    engine = FakeEngine([["Half."], ["Whole."]])
    with RunningConversation(engine, speaker if aloud else None, listener=listener, options=NO_SPECULATION) as live:
        live.utterance(8000)
        live.until(lambda: listener.asked > 3)
        live.catch_up()
        assert (live.taken, speaker.queued) == ([], 0)
        live.speech_resumed()
        live.catch_up()
        listener.is_open = False
        live.speech_ended(16000)
        live.journal.wait_for(TurnTaken)
    assert live.remembered == [("Whole.", False)]
    assert utterance_samples(engine) == [8000, 16000]


def test_a_noise_only_delays_the_reply() -> None:
    listener = FakeListener(is_open=True)
    with RunningConversation(FakeEngine([RAIN]), FakeSpeaker(), listener=listener) as live:
        live.utterance()
        live.until(lambda: listener.asked > 3)
        listener.is_open = False
        live.journal.wait_for(TurnTaken)
    assert live.remembered == [("It rains. Take a coat.", False)]
