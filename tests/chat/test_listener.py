"""The listener: what it makes of the microphone, when it makes the loudspeaker silent, and what it ignores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hearing import END, TAIL, Broken, Clean, Listening, listening, playing, silence, voice
from voxcli.audio.clip import SAMPLE_RATE
from voxcli.chat.devices.microphone import KEPT_SECONDS
from voxcli.chat.events import InputLevel, Notice, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from voxcli.chat.messages import SpeechEvent

# What is heard.


def test_an_utterance_has_all_that_was_said_and_when() -> None:
    with listening(Listening()) as heard:
        heard.hear(silence(30), voice(20), silence(END))
        assert heard.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512
    spoken = [
        each.last_voiced_at - heard.microphone.opened_at for each in heard.posted if isinstance(each, SpeechEvent)
    ]
    assert spoken[1:] == [pytest.approx(50 * 0.032)] * 2  # of the pause and the end: when the voice ended


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_no_sample_is_lost_or_doubled_whatever_the_size_of_blocks(sizes: list[int], seed: int) -> None:
    """The microphone may deliver blocks of any size; frames are cut all the same."""
    spoken = np.random.default_rng(seed).uniform(0.1, 0.3, 12 * 512).astype(np.float32)
    sound = np.concatenate((silence(20), spoken, silence(END + 3)))
    with listening(Listening()) as heard:
        first = 0
        while first < len(sound):
            size = sizes[first % len(sizes)]
            heard.hear(sound[first : first + size])
            first += size
    (clip,) = heard.clips()
    (at,) = {event.at for event in heard.events if isinstance(event, SpeechEnded)}
    np.testing.assert_array_equal(clip.samples, sound[at - len(clip.samples) : at])
    assert np.isin(spoken, clip.samples).all()


def test_speech_that_goes_on_reopens_the_utterance_until_it_is_committed() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(20), silence(END), voice(10), silence(END))
        assert heard.kinds[-3:] == [SpeechResumed, SpeechPaused, SpeechEnded]
        assert heard.listener.commit()
        heard.hear(voice(10))
        assert heard.kinds[-1] is SpeechStarted
        assert not heard.listener.commit()


def test_voice_that_might_reopen_the_utterance_holds_the_reply_back() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(20), silence(END), voice(2))
        assert not heard.listener.commit()
        heard.hear(silence(3))
        assert heard.listener.commit()


def test_what_was_captured_before_the_start_is_passed_over_but_for_its_end() -> None:
    heard = Listening()
    heard.microphone.capture(np.concatenate((voice(40), silence(40), voice(8))))
    heard.speaker.underruns = 2
    with listening(heard):
        heard.microphone.catch_up()
        heard.microphone.overruns = 5
        heard.speaker.underruns = 3
        assert (heard.listener.overruns, heard.listener.underruns) == (5, 1)
        heard.hear(voice(10), silence(END))
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) == 18 * 512
    assert len(clip.samples) <= KEPT_SECONDS * SAMPLE_RATE + (10 + END + 1) * 512


def test_the_level_is_that_of_all_that_came_since_the_last_one() -> None:
    block = SAMPLE_RATE // 100
    click = np.concatenate((np.full(block, 0.5, np.float32), np.zeros(19 * block, np.float32)))
    with listening(Listening()) as heard:
        heard.hear(click, np.flip(click), np.zeros(20 * block, np.float32))
    levels = [each.dbfs for each in heard.posted if isinstance(each, InputLevel)]
    expected = 20 * np.log10(0.5) + 10 * np.log10(1 / 20)
    assert levels == [pytest.approx(expected, abs=0.01), pytest.approx(expected, abs=0.01), -96.0]


def test_the_level_and_the_time_since_speech_began_are_told() -> None:
    with listening(Listening()) as heard:
        heard.hear(silence(10), voice(40), silence(END + 10))
    levels = [each for each in heard.posted if isinstance(each, InputLevel)]
    assert levels[0] == InputLevel(-96.0, None)
    assert levels[-1] == InputLevel(-96.0, None)
    loud = [level for level in levels if level.speech_seconds]
    assert all(level.dbfs == pytest.approx(20 * np.log10(0.2), abs=0.1) for level in loud[:3])
    seconds = [level.speech_seconds or 0 for level in loud]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 40 * 0.032 - 0.2


def test_the_time_since_speech_began_goes_on_when_it_is_reopened() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(20), silence(END), voice(20))
    last = [each for each in heard.posted if isinstance(each, InputLevel)][-1]
    assert last.speech_seconds
    assert last.speech_seconds > (20 + END) * 0.032


# The loudspeaker falls silent.


def test_the_first_voiced_frame_makes_the_loudspeaker_silent_and_speech_keeps_it_so() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(silence(5))
        assert heard.speaker.ducks == []
        heard.hear(voice(1))
        assert heard.speaker.ducks == [True]
        heard.hear(voice(12))
        assert heard.kinds == [SpeechStarted]
        heard.speaker.is_playing = False
        heard.hear(silence(END + 20))
        assert heard.kinds[-1] is SpeechEnded
        assert (heard.speaker.ducks, heard.resumed) == ([True], 0)
        assert heard.listener.commit()  # the next reply is to be heard
        assert heard.speaker.ducks == [True, False]


def test_after_a_cough_the_reply_goes_on() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(voice(4), silence(5))
        assert heard.speaker.ducks == [True]
        heard.hear(silence(3))
        assert (heard.speaker.ducks, heard.resumed, heard.events) == ([True, False], 1, [])
        heard.hear(silence(40))
        assert (heard.speaker.ducks, heard.resumed) == ([True, False], 1)


def test_a_noise_that_comes_again_keeps_the_loudspeaker_silent() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(voice(2), silence(4), voice(2), silence(4), voice(2), silence(4))
        assert heard.speaker.ducks == [True]


def test_a_reply_that_begins_while_somebody_speaks_stays_silent() -> None:
    with listening(Listening(Clean())) as heard:
        heard.hear(voice(10))
        playing(heard.speaker)
        heard.hear(voice(2), silence(10))
        assert (heard.speaker.ducks, heard.resumed) == ([True], 0)


def test_a_noise_at_the_end_of_a_reply_resumes_nothing() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(voice(4))
        heard.speaker.is_playing = False  # a key has stopped it
        heard.hear(silence(10))
        assert (heard.speaker.ducks, heard.resumed) == ([True, False], 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40)), max_size=8))
def test_the_loudspeaker_is_silent_only_after_voice_and_never_for_good(sounds: list[tuple[int, int]]) -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        for loud, quiet in sounds:
            heard.hear(voice(loud))
            assert heard.speaker.ducks[-1:] == [True]
            heard.hear(silence(quiet))
        heard.hear(silence(END + 10))
        heard.listener.commit()
        assert heard.speaker.ducks[-1:] in ([], [False])
        assert all(first != second for first, second in zip(heard.speaker.ducks, heard.speaker.ducks[1:], strict=False))
        if SpeechStarted not in heard.kinds:
            assert heard.resumed == heard.speaker.ducks.count(False)


def test_a_microphone_that_goes_away_leaves_no_reply_silent() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(voice(2))
        for _ in range(3):
            heard.microphone.miss()
        heard.microphone.catch_up()
        assert (heard.speaker.ducks, heard.resumed) == ([True, False], 1)


def test_muting_leaves_no_reply_silent() -> None:
    with listening(Listening(Clean())) as heard:
        playing(heard.speaker)
        heard.hear(voice(12))
        heard.listener.mute(True)
        assert heard.speaker.ducks == [True, False]


def test_without_barge_in_a_reply_is_not_disturbed() -> None:
    with listening(Listening(Clean(), barge_in=False)) as heard:
        playing(heard.speaker)
        heard.hear(voice(30))
        heard.speaker.is_playing = False
        heard.hear(silence(TAIL))
        assert (heard.speaker.ducks, heard.events) == ([], [])
        heard.hear(voice(10))
        assert heard.kinds == [SpeechStarted]


# The microphone is ignored.


def test_half_duplex_ignores_the_microphone_while_a_reply_plays_and_a_tail_after_it() -> None:
    with listening(Listening()) as heard:
        playing(heard.speaker)
        heard.hear(voice(30))
        heard.speaker.is_playing = False
        heard.hear(voice(5), silence(TAIL))
        assert (heard.events, heard.speaker.ducks) == ([], [])
        heard.hear(voice(20), silence(END))
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512


def test_half_duplex_hears_an_open_utterance_to_its_end() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(10))
        playing(heard.speaker)
        heard.hear(voice(10), silence(END))
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512


def test_a_canceller_that_fails_is_replaced_by_half_duplex() -> None:
    with listening(Listening(Broken())) as heard:
        heard.hear(voice(20), silence(END))
        playing(heard.speaker)
        heard.hear(voice(20))
    assert heard.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]
    (notice,) = [each for each in heard.posted if isinstance(each, Notice)]
    assert notice.text == "the echo canceller fails: the microphone is ignored while a reply plays"


def test_who_answers_itself_three_times_goes_half_duplex() -> None:
    reply = np.random.default_rng(0).uniform(-0.6, 0.6, 20 * 512).astype(np.float32)
    heard = Listening(Clean())
    with listening(heard):
        for turn in range(4):
            assert [each for each in heard.posted if isinstance(each, Notice)] == [] or turn == 3
            heard.hear(silence(3))
            heard.played.write(heard.microphone.position, reply)
            playing(heard.speaker)
            heard.hear(reply)
            heard.speaker.is_playing = False
            heard.hear(silence(END + 20))
            heard.listener.commit()
    assert heard.kinds.count(SpeechEnded) == 3
    (notice,) = [each for each in heard.posted if isinstance(each, Notice)]
    assert notice.text.startswith("voxcli has heard itself three times")


def test_muted_it_hears_nothing_and_forgets_what_was_being_said() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(10))
        heard.listener.mute(True)
        heard.hear(voice(10), silence(END))
        assert heard.kinds == [SpeechStarted]
        heard.listener.mute(False)
        heard.hear(silence(3), voice(15), silence(END))
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) == 15 * 512


def test_what_was_being_said_is_forgotten_however_short_the_microphone_was_muted() -> None:
    with listening(Listening()) as heard:
        heard.hear(voice(10))
        heard.listener.mute(True)
        heard.listener.mute(False)
        heard.hear(silence(END))
        assert heard.kinds == [SpeechStarted]
