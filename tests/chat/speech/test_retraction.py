"""Speech that goes on soon after its reply has begun continues the utterance; later speech starts another one."""

import numpy as np
import pytest

from tests.support.listening import FRAME, MIN_SPEECH_FRAMES, SILENCE, VOICE, Listening, kinds, patient, span
from voxcli.audio.clip import Samples
from voxcli.chat.events import SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from voxcli.chat.speech.endpointing import FEW_WORDS_MS, EndpointingSettings

BARGE_IN_FRAMES = 10  # 300 ms, rounded up to whole frames
WINDOW_FRAMES = 31  # the last frame that begins within 1000 ms of the end


def answered(settings: EndpointingSettings | None = None) -> tuple[Listening, SpeechEnded]:
    """Return an endpointer after an utterance whose reply has begun, and the end of the utterance."""
    listening = Listening(settings)
    ended = listening.utterance()
    assert listening.end_pointer.begin_reply()
    return listening, ended


def test_speech_soon_after_the_reply_has_begun_continues_the_utterance() -> None:
    listening, first = answered()
    listening.hear(SILENCE, 15, playing=True)
    assert listening.hear(VOICE, BARGE_IN_FRAMES, playing=True) == [SpeechResumed(first.at + 15 * FRAME)]
    whole = listening.utterance()
    assert span(whole.clip) == (span(first.clip)[0], listening.position)


@pytest.mark.parametrize("frames", [0, 1, WINDOW_FRAMES])
def test_the_window_counts_from_the_end_of_the_turn_to_the_onset_of_the_voice(frames: int) -> None:
    listening, _ = answered()
    listening.hear(SILENCE, frames, playing=True)
    assert kinds(listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)) == [SpeechResumed]


def test_speech_after_the_window_is_another_utterance() -> None:
    listening, first = answered()
    listening.hear(SILENCE, WINDOW_FRAMES + 1, playing=True)
    start = listening.position
    assert listening.hear(VOICE, BARGE_IN_FRAMES, playing=True) == [SpeechStarted(start)]
    assert span(listening.utterance().clip)[0] > first.at


def test_speech_after_more_than_a_few_words_is_another_utterance() -> None:
    listening, _ = answered(patient(retract_ms=5000))
    listening.hear(SILENCE, FEW_WORDS_MS // 32 + 1, playing=True)
    assert kinds(listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)) == [SpeechStarted]


def test_a_reply_that_does_not_play_yet_has_played_no_words() -> None:
    listening, _ = answered(patient(retract_ms=5000))
    listening.hear(SILENCE, FEW_WORDS_MS // 32 + 1)
    assert kinds(listening.hear(VOICE, MIN_SPEECH_FRAMES)) == [SpeechResumed]


def test_a_cough_while_the_reply_plays_continues_nothing() -> None:
    listening, _ = answered()
    listening.hear(SILENCE, 5, playing=True)
    listening.hear(VOICE, BARGE_IN_FRAMES - 1, playing=True)
    listening.hear(SILENCE, 40, playing=True)
    assert kinds(listening.events) == [SpeechStarted, SpeechPaused, SpeechEnded]
    assert listening.end_pointer.is_final


def test_retraction_can_be_turned_off() -> None:
    listening, first = answered(patient(retract_ms=0))
    assert kinds(listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)) == [SpeechStarted]
    assert span(listening.utterance().clip)[0] == first.at


def test_an_utterance_is_final_once_nothing_can_continue_it() -> None:
    listening = Listening()
    assert listening.end_pointer.is_final
    listening.hear(VOICE, 20)
    assert not listening.end_pointer.begin_reply()
    listening, _ = answered()
    listening.hear(SILENCE, WINDOW_FRAMES, playing=True)
    assert not listening.end_pointer.is_final
    listening.hear(SILENCE, 1, playing=True)
    assert listening.end_pointer.is_final


def test_voice_under_way_when_the_window_ends_may_still_become_speech() -> None:
    listening, _ = answered()
    listening.hear(SILENCE, WINDOW_FRAMES, playing=True)
    listening.hear(VOICE, 5, playing=True)
    assert not listening.end_pointer.is_final


def test_an_utterance_may_be_continued_again_and_again() -> None:
    listening, first = answered()
    for _ in range(5):
        listening.hear(SILENCE, 10, playing=True)
        listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)
        whole = listening.utterance()
        assert span(whole.clip) == (span(first.clip)[0], listening.position)
        assert listening.end_pointer.begin_reply()
    assert kinds(listening.events).count(SpeechStarted) == 1


def test_what_would_grow_beyond_the_limit_is_not_continued() -> None:
    listening, first = answered(patient(max_utterance_seconds=3))
    listening.hear(VOICE, 25, playing=True)
    listening.hear(SILENCE, 19)
    assert listening.end_pointer.begin_reply()
    listening.hear(SILENCE, 20, playing=True)
    assert listening.end_pointer.is_final
    assert first.at < 3 * 16000


def test_a_key_is_never_taken_back() -> None:
    listening = Listening(patient(by_voice=False))
    listening.end_pointer.begin()
    listening.hear(VOICE, 20)
    listening.end_pointer.flush()
    assert listening.end_pointer.begin_reply()
    assert listening.end_pointer.is_final
    assert listening.hear(VOICE, 30, playing=True) == []


# Samples without echo cancellation replace those that no clip holds yet.


def negative(samples: int) -> Samples:
    return np.full(samples, -1, np.float32)


def test_replaced_samples_are_in_the_utterance_and_nothing_moves() -> None:
    listening, first = answered()
    listening.hear(SILENCE, 10, playing=True)
    listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)
    listening.end_pointer.replace_end(negative(12 * FRAME + 100))
    replaced_to = listening.position
    begin = int(first.clip.samples[0])
    samples = listening.utterance().clip.samples
    expected = np.arange(begin, listening.position, dtype=np.float32)
    expected[replaced_to - begin - 12 * FRAME - 100 : replaced_to - begin] = -1
    np.testing.assert_array_equal(samples, expected)


def test_what_a_clip_holds_is_never_replaced() -> None:
    """A later clip still begins with an earlier one of the same utterance."""
    listening, first = answered()
    listening.hear(SILENCE, 10, playing=True)
    listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)
    listening.end_pointer.replace_end(negative(60 * FRAME))
    samples = listening.utterance().clip.samples
    np.testing.assert_array_equal(samples[: len(first.clip.samples)], first.clip.samples)
    assert (samples[len(first.clip.samples) :][: (10 + BARGE_IN_FRAMES) * FRAME] == -1).all()


def test_the_pre_roll_of_an_interruption_is_replaced_too() -> None:
    listening = Listening()
    listening.hear(SILENCE, 50, playing=True)
    listening.hear(VOICE, BARGE_IN_FRAMES, playing=True)
    kept = listening.end_pointer.kept_samples
    listening.end_pointer.replace_end(negative(100 * FRAME))
    samples = listening.utterance().clip.samples
    assert kept == 500 * 16 + BARGE_IN_FRAMES * FRAME
    assert np.flatnonzero(samples != -1)[0] == kept


@pytest.mark.parametrize("samples", [0, 1])
def test_nothing_is_replaced_where_nothing_is_kept(samples: int) -> None:
    listening = Listening()
    listening.end_pointer.replace_end(negative(samples))
    assert listening.end_pointer.kept_samples == 0
    span(listening.utterance().clip)
