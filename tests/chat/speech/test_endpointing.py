"""Tests of endpointing on scripted speech probabilities."""

import numpy as np
import pytest

from tests.support.listening import (
    END_FRAMES,
    FRAME,
    MIN_SPEECH_FRAMES,
    PAUSE_FRAMES,
    SILENCE,
    VOICE,
    Listening,
    kinds,
    patient,
    span,
)
from voxcli.audio.clip import SAMPLE_RATE
from voxcli.chat.events import SpeechEnded, SpeechGoesOn, SpeechPaused, SpeechResumed, SpeechStarted, SpeechTooLong
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.chat.speech.silence import TurnSilence
from voxcli.errors import ConfigError

# One utterance.


def test_an_utterance_starts_pauses_and_ends() -> None:
    listening = Listening()
    listening.hear(SILENCE, 100)
    ended = listening.utterance(frames=20)
    started, paused, last = listening.events
    assert started == SpeechStarted(100 * FRAME)
    assert isinstance(paused, SpeechPaused)
    assert last is ended
    pre_roll = SAMPLE_RATE // 2
    assert span(paused.clip) == (100 * FRAME - pre_roll, (120 + PAUSE_FRAMES) * FRAME)
    assert span(ended.clip) == (100 * FRAME - pre_roll, (120 + END_FRAMES) * FRAME)
    assert paused.last_voiced == ended.last_voiced == 120 * FRAME
    assert ended.at == (120 + END_FRAMES) * FRAME


def test_there_may_be_less_than_a_pre_roll() -> None:
    assert span(Listening().utterance().clip)[0] == 0


@pytest.mark.parametrize("frames", range(1, MIN_SPEECH_FRAMES))
def test_a_short_noise_is_voice_but_no_speech(frames: int) -> None:
    listening = Listening()
    listening.hear(SILENCE, 10)
    listening.hear(VOICE, frames)
    assert listening.end_pointer.voiced
    listening.hear(SILENCE, 2)
    assert not listening.end_pointer.voiced
    listening.hear(SILENCE, 40)
    assert listening.events == []


def test_while_a_reply_plays_it_takes_longer_to_begin() -> None:
    end_pointer, frame = Endpointer(EndpointingSettings()), np.full(FRAME, 0.5, np.float32)
    events = [end_pointer.push(frame, VOICE, playing=True) for _ in range(10)]  # 300 ms
    assert events == [[]] * 9 + [[SpeechStarted(0)]]


def test_a_reply_that_plays_never_makes_it_easier_to_begin() -> None:
    settings = EndpointingSettings(min_speech_ms=400, barge_in_ms=100)
    for playing in (False, True):
        end_pointer, frame = Endpointer(settings), np.full(FRAME, 0.5, np.float32)
        events = [end_pointer.push(frame, VOICE, playing) for _ in range(13)]  # 400 ms
        assert events == [[]] * 12 + [[SpeechStarted(0)]]


def test_noises_do_not_add_up_to_speech() -> None:
    listening = Listening()
    for _ in range(50):
        listening.hear(VOICE, 4)
        listening.hear(SILENCE, 2)
    assert listening.events == []


def test_one_unvoiced_frame_does_not_break_speech() -> None:
    listening = Listening()
    for _ in range(MIN_SPEECH_FRAMES - 1):
        listening.hear(VOICE)
        listening.hear(SILENCE)
    assert listening.hear(VOICE) == [SpeechStarted(0)]


def test_voice_holds_down_to_the_lower_threshold() -> None:
    listening = Listening()
    assert listening.hear(0.4, 50) == []
    listening.hear(VOICE)
    assert kinds(listening.hear(0.4, 50)) == [SpeechStarted]
    assert kinds(listening.hear(0.3, END_FRAMES)) == [SpeechPaused, SpeechEnded]


def test_pauses_of_350_ms_do_not_end_an_utterance() -> None:
    listening = Listening()
    for _ in range(50):
        listening.hear(VOICE, 15)
        listening.hear(SILENCE, 11)
    listening.utterance()
    assert kinds(listening.events) == [SpeechStarted] + [SpeechPaused, SpeechResumed] * 50 + [SpeechPaused, SpeechEnded]
    ended = listening.events[-1]
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (0, listening.position)


def test_a_pause_just_short_of_the_end_goes_on() -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, END_FRAMES - 1)
    assert listening.hear(VOICE, 2) == [SpeechResumed((20 + END_FRAMES - 1) * FRAME)]


def test_a_blip_in_a_pause_neither_resumes_speech_nor_delays_the_end_by_much() -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, END_FRAMES - 1)
    listening.hear(VOICE)
    listening.hear(SILENCE, 2)
    assert kinds(listening.events) == [SpeechStarted, SpeechPaused, SpeechEnded]
    ended = listening.events[-1]
    assert isinstance(ended, SpeechEnded)
    assert ended.last_voiced == 20 * FRAME


def test_pauses_are_reported_only_for_speculative_replies() -> None:
    listening = Listening(patient(speculative_replies=False))
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, 15)
    listening.utterance()
    assert kinds(listening.events) == [SpeechStarted, SpeechEnded]


def test_a_clip_keeps_its_samples() -> None:
    end_pointer, frame = Endpointer(EndpointingSettings()), np.full(FRAME, 0.5, np.float32)
    for _ in range(20):
        end_pointer.push(frame, VOICE, playing=False)
    frame[:] = 0  # The caller may reuse its buffer.
    (ended,) = end_pointer.flush()
    assert isinstance(ended, SpeechEnded)
    assert np.array_equal(ended.clip.samples, np.full(20 * FRAME, 0.5))


# After the end.


def test_speech_after_the_end_reopens_the_utterance() -> None:
    listening = Listening()
    first = listening.utterance()
    listening.hear(SILENCE, 30)
    assert listening.hear(VOICE, MIN_SPEECH_FRAMES) == [SpeechResumed(first.at + 30 * FRAME)]
    second = listening.utterance()
    assert span(second.clip) == (span(first.clip)[0], listening.position)


def test_a_cough_after_the_end_does_not_reopen_it() -> None:
    listening = Listening()
    listening.utterance()
    assert listening.hear(VOICE, 4) + listening.hear(SILENCE, 30) == []


def test_what_is_committed_stays_closed() -> None:
    listening = Listening()
    first = listening.utterance()
    assert listening.end_pointer.commit()
    assert listening.end_pointer.commit()  # Nothing is left to commit.
    listening.hear(SILENCE, 2)
    second = listening.utterance()
    assert span(second.clip)[0] == first.at  # The pre-roll does not reach into the first one.
    assert SpeechStarted(first.at + 2 * FRAME) in listening.events


def test_speech_under_way_at_the_commit_is_whole_in_the_next_utterance() -> None:
    listening = Listening()
    first = listening.utterance()
    listening.hear(VOICE, 3)
    assert listening.end_pointer.commit()
    second = listening.utterance()
    assert SpeechStarted(first.at) in listening.events
    assert span(second.clip) == (first.at, listening.position)


def test_an_open_utterance_can_not_be_committed() -> None:
    listening = Listening()
    assert listening.end_pointer.commit()  # There is no utterance yet.
    listening.hear(VOICE, 20)
    assert not listening.end_pointer.commit()
    assert span(listening.utterance().clip) == (0, listening.position)


def test_an_utterance_that_was_reopened_can_not_be_committed() -> None:
    listening = Listening()
    first = listening.utterance()
    listening.hear(VOICE, MIN_SPEECH_FRAMES)
    assert not listening.end_pointer.commit()
    assert span(listening.utterance().clip) == (span(first.clip)[0], listening.position)


def test_speech_long_after_the_end_is_another_utterance() -> None:
    listening = Listening()
    listening.utterance()
    listening.hear(SILENCE, 157)  # 5.02 s
    listening.utterance()
    assert kinds(listening.events) == [SpeechStarted, SpeechPaused, SpeechEnded] * 2


def test_what_would_grow_beyond_the_limit_is_not_reopened() -> None:
    listening = Listening(patient(max_utterance_seconds=3))
    listening.utterance()
    for _ in range(90):  # 2.9 s, less than `reopen_ms`
        assert listening.hear(SILENCE) == []
        assert listening.end_pointer.kept_samples <= 3 * SAMPLE_RATE
    listening.utterance()
    assert kinds(listening.events) == [SpeechStarted, SpeechPaused, SpeechEnded] * 2


# The verdict of an end-of-turn model.


@pytest.mark.parametrize("frames_until_verdict", [0, 1, 5])
def test_a_complete_turn_ends_in_its_pause(frames_until_verdict: int) -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, PAUSE_FRAMES + frames_until_verdict)
    events = listening.end_pointer.apply_verdict(complete=True)
    if frames_until_verdict == 0:  # 224 ms of silence, and 250 are needed.
        assert events == []
        events = listening.hear(SILENCE)
    (ended,) = events
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (0, listening.position)
    assert listening.hear(SILENCE, 100) == []


def test_an_incomplete_turn_waits_longer_in_this_pause_only() -> None:
    listening = Listening()
    for silence_frames in (31, END_FRAMES - 1):  # 1 s
        listening.hear(VOICE, 20)
        assert kinds(listening.hear(SILENCE, PAUSE_FRAMES)) == [SpeechPaused]
        if silence_frames == 31:
            assert listening.end_pointer.apply_verdict(complete=False) == []
        assert listening.hear(SILENCE, silence_frames - PAUSE_FRAMES) == []
    assert kinds(listening.hear(SILENCE)) == [SpeechEnded]


@pytest.mark.parametrize("silence", [None, TurnSilence(600)], ids=["fixed", "learned"])
def test_an_incomplete_turn_never_ends_sooner_than_by_silence_alone(silence: TurnSilence | None) -> None:
    listening = Listening(patient(max_silence_ms=300, min_silence_ms=300 if silence else 600), silence)
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, PAUSE_FRAMES)
    assert listening.end_pointer.apply_verdict(complete=False) == []
    assert listening.hear(SILENCE, END_FRAMES - 1 - PAUSE_FRAMES) == []
    assert kinds(listening.hear(SILENCE)) == [SpeechEnded]


def test_a_verdict_is_dropped_when_speech_has_gone_on() -> None:
    listening = Listening()
    assert listening.end_pointer.apply_verdict(complete=True) == []
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, PAUSE_FRAMES)
    listening.hear(VOICE, 2)
    assert listening.end_pointer.apply_verdict(complete=True) == []
    listening.utterance()
    assert listening.end_pointer.apply_verdict(complete=True) == []


def test_a_verdict_while_voice_sets_in_waits_for_the_voice() -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    listening.hear(SILENCE, PAUSE_FRAMES)
    listening.hear(VOICE)
    assert listening.end_pointer.apply_verdict(complete=True) == []
    assert kinds(listening.hear(SILENCE, 2)) == [SpeechEnded]


# Push-to-talk.


def test_a_key_opens_and_ends_an_utterance() -> None:
    listening = Listening(patient(by_voice=False))
    assert listening.hear(VOICE, 100) == []
    assert listening.end_pointer.begin() == [SpeechStarted(100 * FRAME)]
    assert kinds(listening.hear(VOICE, 20)) == []
    assert kinds(listening.hear(SILENCE, 200)) == [SpeechPaused]  # Push-to-talk gets speculative replies too.
    assert listening.end_pointer.apply_verdict(complete=True) == []
    listening.hear(VOICE, 20)
    (ended,) = listening.end_pointer.flush()
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (100 * FRAME - SAMPLE_RATE // 2, listening.position)
    assert ended.last_voiced == listening.position


def test_what_is_said_with_the_key_up_is_not_kept() -> None:
    listening = Listening(patient(by_voice=False))
    listening.end_pointer.begin()
    listening.hear(VOICE, 20)
    listening.end_pointer.flush()
    assert listening.hear(VOICE, 100) == []
    assert listening.end_pointer.kept_samples <= SAMPLE_RATE // 2
    listening.end_pointer.begin()
    (ended,) = listening.end_pointer.flush()
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (listening.position - SAMPLE_RATE // 2, listening.position)


def test_a_key_press_without_voice_can_be_recognised() -> None:
    listening = Listening()
    listening.hear(SILENCE, 20)
    (started,) = listening.end_pointer.begin()
    listening.hear(SILENCE, 20)
    (ended,) = listening.end_pointer.flush()
    assert isinstance(started, SpeechStarted)
    assert isinstance(ended, SpeechEnded)
    assert ended.last_voiced == started.start


def test_a_key_takes_over_an_utterance_that_voice_began() -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    assert listening.end_pointer.begin() == []
    assert kinds(listening.hear(SILENCE, 200)) == [SpeechPaused]
    (ended,) = listening.end_pointer.flush()
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (0, listening.position)


def test_a_flush_is_final_and_ends_only_an_open_utterance() -> None:
    listening = Listening()
    assert listening.end_pointer.flush() == []
    listening.hear(VOICE, MIN_SPEECH_FRAMES - 1)
    assert listening.end_pointer.flush() == []  # not speech yet
    listening.hear(VOICE, 10)
    assert kinds(listening.end_pointer.flush()) == [SpeechEnded]
    end = listening.position
    assert listening.end_pointer.flush() == []
    assert listening.hear(VOICE, MIN_SPEECH_FRAMES) == [SpeechStarted(end)]


# The limit.


def test_a_long_utterance_is_reported_while_it_grows() -> None:
    listening = Listening()
    listening.hear(SILENCE, 40)
    listening.hear(VOICE, 400)
    grown = [event.clip for event in listening.events if isinstance(event, SpeechGoesOn)]
    assert [round(clip.seconds, 1) for clip in grown] == [5.0, 10.0]
    ended = listening.utterance()
    assert all(np.array_equal(clip.samples, ended.clip.samples[: len(clip.samples)]) for clip in grown)


def test_an_utterance_ends_at_its_limit_and_the_next_one_follows_on() -> None:
    listening = Listening(patient(max_utterance_seconds=20))
    listening.hear(VOICE, 1100)
    limit_frames = 20 * SAMPLE_RATE // FRAME
    assert kinds(listening.events) == [SpeechStarted, SpeechTooLong, SpeechEnded, SpeechStarted, SpeechTooLong]
    _, warning, ended, started, _ = (event for event in listening.events if not isinstance(event, SpeechGoesOn))
    assert isinstance(warning, SpeechTooLong)
    assert warning.seconds == pytest.approx(15, abs=0.04)  # a quarter before the end
    assert isinstance(ended, SpeechEnded)
    assert span(ended.clip) == (0, limit_frames * FRAME)
    assert started == SpeechStarted(ended.at)
    (rest,) = listening.end_pointer.flush()
    assert isinstance(rest, SpeechEnded)
    assert span(rest.clip) == (ended.at, listening.position)


def test_a_long_utterance_is_warned_of_ten_seconds_before_its_limit() -> None:
    listening = Listening(patient(max_utterance_seconds=60))
    warnings = [event for event in listening.hear(VOICE, 1700) if isinstance(event, SpeechTooLong)]
    assert [warning.seconds for warning in warnings] == [pytest.approx(50, abs=0.04)]


def test_a_held_key_goes_on_after_the_limit() -> None:
    listening = Listening(patient(by_voice=False, max_utterance_seconds=4))
    listening.end_pointer.begin()
    _, ended, started = listening.hear(SILENCE, 130)
    assert isinstance(ended, SpeechEnded)
    assert started == SpeechStarted(ended.at)


# Reset, and bad input.


def test_reset_forgets_an_utterance_and_what_was_before_it() -> None:
    listening = Listening()
    listening.hear(VOICE, 20)
    listening.end_pointer.reset(skipped=1000)
    assert listening.end_pointer.kept_samples == 0
    assert not listening.end_pointer.voiced
    listening.position += 1000
    at = listening.position
    ended = listening.utterance()
    assert listening.events[1] == SpeechStarted(at)
    assert span(ended.clip) == (at, listening.position)
    assert ended.at == listening.position


def test_frames_that_are_no_numbers_or_empty_are_no_voice() -> None:
    end_pointer = Endpointer(EndpointingSettings())
    for frame in (np.full(FRAME, np.nan, np.float32), np.full(FRAME, np.inf, np.float32), np.empty(0, np.float32)):
        for _ in range(20):
            assert end_pointer.push(frame, VOICE, playing=False) == []
    loud = np.full(FRAME, 0.1, np.float32)
    assert end_pointer.push(loud, float("nan"), playing=False) == []
    events = [event for _ in range(20) for event in end_pointer.push(loud, VOICE, playing=False)]
    assert kinds(events) == [SpeechStarted]


@pytest.mark.parametrize(
    "wrong",
    [
        {"off_threshold": 0.6},
        {"threshold": 1.1},
        {"off_threshold": 0.0},
        {"threshold": float("nan")},
        {"min_speech_ms": 0},
        {"barge_in_ms": 0},
        {"speculate_after_ms": 0},
        {"pre_roll_ms": -1},
        {"reopen_ms": -1},
        {"retract_ms": -1},
        {"max_utterance_seconds": 1.5},
        {"max_utterance_seconds": float("inf")},
        {"max_utterance_seconds": float("nan")},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EndpointingSettings(**wrong)  # type: ignore[arg-type]
