"""Drafts, and turns that are taken back because the user speaks on."""

import pytest

from tests.support.live_doubles import FakeEars, StuckEngine, Talk, heard_samples
from tests.support.turns import nothing_hangs
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import StateChanged, TurnFailed, TurnTaken
from voxcli.core.testing import FakeEngine, FakeSpeaker
from voxcli.core.turn import ReplyDelta
from voxcli.errors import ModelError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

RAIN = ["It rains.", " Take a coat."]
NO_DRAFTS = ConversationOptions(speculative_replies=False)


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
    assert taken.latency.speculative_reply == "used"
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
        assert talk.journal.wait_for(TurnTaken).latency.speculative_reply == "used"
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
    assert (taken.latency.speculative_reply, taken.latency.dropped_speculative_replies) == ("used", 1)
    assert talk.ended.dropped_speculative_replies == 1
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
    assert [(latency.speculative_reply, latency.dropped_speculative_replies) for latency in latencies] == [
        ("dropped", 1),
        ("none", 0),
    ]


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
    assert (latency.speculative_reply, latency.dropped_speculative_replies) == ("dropped", 2)
    assert talk.ended.dropped_speculative_replies == 2


def test_drafts_can_be_switched_off() -> None:
    engine = FakeEngine([RAIN])
    with Talk(engine, options=NO_DRAFTS) as talk:
        talk.started()
        talk.paused()
        talk.catch_up()
        assert engine.asked == []
        talk.finished()
        assert talk.journal.wait_for(TurnTaken).latency.speculative_reply == "none"


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
    assert taken.latency.dropped_speculative_replies == 1
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
