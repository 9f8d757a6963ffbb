"""The listener: what it makes of the microphone, when it makes the loudspeaker silent, and what it ignores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.listener_harness import (
    END,
    TAIL,
    AttenuatingCanceller,
    FailingCanceller,
    ListenerHarness,
    PassThroughCanceller,
    running,
    silence,
    start_playback,
    voice,
)
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.chat.devices.microphone import KEPT_SECONDS
from voxcli.chat.events import (
    EndpointEvent,
    InputLevel,
    Notice,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from voxcli.chat.listener import IDLE_FRAMES
from voxcli.chat.messages import SpeechEvent

# Utterances.


def test_an_utterance_has_every_voiced_sample_and_its_time() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(silence(30), voice(20), silence(END))
        assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512
    spoken = [
        each.last_voiced_at - harness.microphone.opened_at for each in harness.posted if isinstance(each, SpeechEvent)
    ]
    assert spoken[1:] == [pytest.approx(50 * 0.032)] * 2  # of the pause and the end: when the voice ended


def capture_in_blocks(harness: ListenerHarness, sound: Samples, sizes: list[int]) -> None:
    """Capture a sound in blocks of some of these sizes."""
    first = 0
    while first < len(sound):
        size = sizes[first % len(sizes)]
        harness.capture(sound[first : first + size])
        first += size


def assert_the_clip_holds(spoken: Samples, sound: Samples, harness: ListenerHarness) -> None:
    """Check that the only clip is a stretch of the sound, and holds what was spoken."""
    (clip,) = harness.clips()
    (at,) = {event.at for event in harness.events if isinstance(event, SpeechEnded)}
    np.testing.assert_array_equal(clip.samples, sound[at - len(clip.samples) : at])
    assert np.isin(spoken, clip.samples).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_no_sample_is_lost_or_doubled_whatever_the_size_of_blocks(sizes: list[int], seed: int) -> None:
    """The microphone may deliver blocks of any size; frames are cut all the same."""
    spoken = np.random.default_rng(seed).uniform(0.1, 0.3, 12 * 512).astype(np.float32)
    sound = np.concatenate((silence(20), spoken, silence(END + 3)))
    with running(ListenerHarness()) as harness:
        capture_in_blocks(harness, sound, sizes)
    assert_the_clip_holds(spoken, sound, harness)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_speech_that_was_taken_for_echo_is_restored_to_the_sample(sizes: list[int], seed: int) -> None:
    """So are the samples that wait for the rest of their frame."""
    spoken = np.random.default_rng(seed).uniform(0.2, 0.6, 30 * 512).astype(np.float32)
    sound = np.concatenate((silence(20), spoken, silence(END + 3)))
    with running(ListenerHarness(AttenuatingCanceller())) as harness:
        start_playback(harness.speaker)
        capture_in_blocks(harness, sound, sizes)
    assert_the_clip_holds(spoken, sound, harness)


def test_a_canceller_that_fails_to_restore_speech_leaves_the_utterance() -> None:
    with running(ListenerHarness(AttenuatingCanceller("it fails"))) as harness:
        harness.capture(voice(20), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512
    assert any(isinstance(each, Notice) and each.text.startswith("it fails: ") for each in harness.posted)


def test_speech_that_goes_on_reopens_the_utterance_until_it_is_committed() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(20), silence(END), voice(10), silence(END))
        assert harness.kinds[-3:] == [SpeechResumed, SpeechPaused, SpeechEnded]
        assert harness.listener.commit()
        harness.capture(voice(10))
        assert harness.kinds[-1] is SpeechStarted
        assert not harness.listener.commit()


def test_voice_that_might_reopen_the_utterance_holds_the_reply_back() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(20), silence(END), voice(2))
        assert not harness.listener.commit()
        harness.capture(silence(3))
        assert harness.listener.commit()


def test_of_samples_captured_before_the_start_only_the_last_are_used() -> None:
    harness = ListenerHarness()
    harness.microphone.capture(np.concatenate((voice(40), silence(40), voice(8))))
    harness.speaker.underruns = 2
    with running(harness):
        harness.microphone.catch_up()
        harness.microphone.overruns = 5
        harness.speaker.underruns = 3
        assert (harness.listener.overruns, harness.listener.underruns) == (5, 1)
        harness.capture(voice(10), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 18 * 512
    assert len(clip.samples) <= KEPT_SECONDS * SAMPLE_RATE + (10 + END + 1) * 512


def test_the_level_is_that_of_all_that_came_since_the_last_one() -> None:
    block = SAMPLE_RATE // 100
    click = np.concatenate((np.full(block, 0.5, np.float32), np.zeros(19 * block, np.float32)))
    with running(ListenerHarness()) as harness:
        harness.capture(click, np.flip(click), np.zeros(20 * block, np.float32))
    levels = [each.dbfs for each in harness.posted if isinstance(each, InputLevel)]
    expected = 20 * np.log10(0.5) + 10 * np.log10(1 / 20)
    assert levels == [pytest.approx(expected, abs=0.01), pytest.approx(expected, abs=0.01), -96.0]


def test_a_microphone_that_delivers_only_zeros_is_told_once() -> None:
    zeros = np.zeros(4 * SAMPLE_RATE, np.float32)
    with running(ListenerHarness()) as harness:
        harness.capture(zeros, silence(10), np.full(SAMPLE_RATE, 1e-4, np.float32), zeros)
    levels = [each.is_zero for each in harness.posted if isinstance(each, InputLevel)]
    assert not any(levels[:14])  # Each level spans 0.2 s.
    assert levels[15:20] == [True] * 5
    assert levels[-1]
    assert not levels[24]
    assert len([each for each in harness.posted if isinstance(each, Notice) and "zeros" in each.text]) == 1


def test_the_level_and_the_time_since_speech_began_are_posted() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(silence(10), voice(40), silence(END + 10))
    levels = [each for each in harness.posted if isinstance(each, InputLevel)]
    assert levels[0] == InputLevel(-96.0, None)
    assert levels[-1] == InputLevel(-96.0, None)
    loud = [level for level in levels if level.speech_seconds]
    assert all(level.dbfs == pytest.approx(20 * np.log10(0.2), abs=0.1) for level in loud[:3])
    seconds = [level.speech_seconds or 0 for level in loud]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 40 * 0.032 - 0.2


def test_the_time_since_speech_began_goes_on_when_it_is_reopened() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(20), silence(END), voice(20))
    last = [each for each in harness.posted if isinstance(each, InputLevel)][-1]
    assert last.speech_seconds
    assert last.speech_seconds > (20 + END) * 0.032


# How much is processed at once.


def test_several_frames_are_awaited_only_while_nobody_speaks() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        harness.capture(silence(5))
        assert harness.awaited_frames == IDLE_FRAMES > 1
        harness.capture(voice(1))
        assert harness.awaited_frames == 1
        harness.capture(silence(1))  # a gap, after which the voice may go on
        assert harness.awaited_frames == 1
        harness.capture(silence(3))  # it was a noise
        assert harness.awaited_frames == IDLE_FRAMES
        harness.capture(voice(20), silence(3))
        assert harness.awaited_frames == 1
        harness.capture(silence(END))  # the utterance has ended, but speech would reopen it
        assert harness.awaited_frames == 1
        harness.listener.commit()
        harness.capture(silence(1))
        assert harness.awaited_frames == IDLE_FRAMES


def test_frames_are_awaited_one_by_one_while_a_reply_plays() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(silence(5))
        assert harness.awaited_frames == 1
        harness.capture(voice(2))  # ducks the reply
        harness.speaker.is_playing = False
        harness.capture(silence(3))  # not yet undone
        assert harness.awaited_frames == 1
        harness.capture(silence(10))
        assert harness.awaited_frames == IDLE_FRAMES


def test_frames_are_awaited_one_by_one_while_the_microphone_is_ignored() -> None:
    with running(ListenerHarness()) as harness:
        start_playback(harness.speaker)
        harness.capture(silence(1))
        harness.speaker.is_playing = False
        harness.capture(silence(1))  # within the tail of half-duplex
        assert harness.awaited_frames == 1
        harness.capture(silence(TAIL))
        assert harness.awaited_frames == IDLE_FRAMES


def test_several_frames_are_awaited_while_the_microphone_is_muted() -> None:
    with running(ListenerHarness()) as harness:
        harness.listener.mute(True)
        harness.capture(silence(5))
        assert harness.awaited_frames == IDLE_FRAMES
        start_playback(harness.speaker)
        harness.capture(silence(5))
        assert harness.awaited_frames == 1


def test_several_frames_are_awaited_while_the_conversation_sleeps() -> None:
    with running(ListenerHarness(stays_asleep=lambda _samples, _speaking: True)) as harness:
        harness.capture(silence(5))
        assert harness.awaited_frames == IDLE_FRAMES


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=4), st.integers(0, 2000))
def test_how_many_frames_come_at_once_changes_no_event(sounds: list[tuple[int, int]], first: int) -> None:
    heard = np.concatenate([np.zeros(first, np.float32), *(each for n, m in sounds for each in (voice(n), silence(m)))])
    found = []
    for block_samples in (160, IDLE_FRAMES * 512):
        harness = ListenerHarness()
        harness.microphone.block_samples = block_samples
        with running(harness):
            harness.capture(heard)
        found.append([_without_audio(event) for event in harness.events])
    assert found[0] == found[1]


def _without_audio(event: EndpointEvent) -> tuple[object, ...]:
    return type(event), *(
        len(value.samples) if isinstance(value, AudioClip) else value for value in vars(event).values()
    )


# The loudspeaker is ducked.


def test_the_first_voiced_frame_ducks_the_loudspeaker_and_speech_keeps_it_ducked() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(silence(5))
        assert harness.speaker.ducks == []
        harness.capture(voice(1))
        assert harness.speaker.ducks == [True]
        harness.capture(voice(12))
        assert harness.kinds == [SpeechStarted]
        harness.speaker.is_playing = False
        harness.capture(silence(END + 20))
        assert harness.kinds[-1] is SpeechEnded
        assert (harness.speaker.ducks, harness.resumed) == ([True], 0)
        assert harness.listener.commit()  # the next reply is to be harness
        assert harness.speaker.ducks == [True, False]


def test_after_a_cough_the_reply_goes_on() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(4), silence(5))
        assert harness.speaker.ducks == [True]
        harness.capture(silence(3))
        assert (harness.speaker.ducks, harness.resumed, harness.events) == ([True, False], 1, [])
        harness.capture(silence(40))
        assert (harness.speaker.ducks, harness.resumed) == ([True, False], 1)


def test_a_noise_that_comes_again_keeps_the_loudspeaker_silent() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(2), silence(4), voice(2), silence(4), voice(2), silence(4))
        assert harness.speaker.ducks == [True]


def test_a_reply_that_begins_while_somebody_speaks_stays_silent() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        harness.capture(voice(10))
        start_playback(harness.speaker)
        harness.capture(voice(2), silence(10))
        assert (harness.speaker.ducks, harness.resumed) == ([True], 0)


def test_a_noise_at_the_end_of_a_reply_resumes_nothing() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(4))
        harness.speaker.is_playing = False  # a key has stopped it
        harness.capture(silence(10))
        assert (harness.speaker.ducks, harness.resumed) == ([True, False], 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40)), max_size=8))
def test_the_loudspeaker_is_ducked_only_after_voice_and_never_for_good(sounds: list[tuple[int, int]]) -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        for loud, quiet in sounds:
            harness.capture(voice(loud))
            assert harness.speaker.ducks[-1:] == [True]
            harness.capture(silence(quiet))
        harness.capture(silence(END + 10))
        harness.listener.commit()
        assert harness.speaker.ducks[-1:] in ([], [False])
        assert all(
            first != second for first, second in zip(harness.speaker.ducks, harness.speaker.ducks[1:], strict=False)
        )
        if SpeechStarted not in harness.kinds:
            assert harness.resumed == harness.speaker.ducks.count(False)


def test_a_microphone_that_goes_away_leaves_no_reply_silent() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(2))
        for _ in range(3):
            harness.microphone.miss()
        harness.microphone.catch_up()
        assert (harness.speaker.ducks, harness.resumed) == ([True, False], 1)


def test_muting_leaves_no_reply_silent() -> None:
    with running(ListenerHarness(PassThroughCanceller())) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(12))
        harness.listener.mute(True)
        assert harness.speaker.ducks == [True, False]


def test_without_barge_in_a_reply_is_not_disturbed() -> None:
    with running(ListenerHarness(PassThroughCanceller(), barge_in=False)) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(30))
        harness.speaker.is_playing = False
        harness.capture(silence(TAIL))
        assert (harness.speaker.ducks, harness.events) == ([], [])
        harness.capture(voice(10))
        assert harness.kinds == [SpeechStarted]


# The microphone is ignored.


def test_half_duplex_ignores_the_microphone_while_a_reply_plays_and_a_tail_after_it() -> None:
    with running(ListenerHarness()) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(30))
        harness.speaker.is_playing = False
        harness.capture(voice(5), silence(TAIL))
        assert (harness.events, harness.speaker.ducks) == ([], [])
        harness.capture(voice(20), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512


def test_half_duplex_captures_an_open_utterance_to_its_end() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(10))
        start_playback(harness.speaker)
        harness.capture(voice(10), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512


def test_a_canceller_that_fails_is_replaced_by_half_duplex() -> None:
    with running(ListenerHarness(FailingCanceller())) as harness:
        harness.capture(voice(20), silence(END))
        start_playback(harness.speaker)
        harness.capture(voice(20))
    assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]
    (notice,) = [each for each in harness.posted if isinstance(each, Notice)]
    assert notice.text == "the echo canceller fails: the microphone is ignored while a reply plays"


def test_answering_itself_three_times_switches_to_half_duplex() -> None:
    reply = np.random.default_rng(0).uniform(-0.6, 0.6, 20 * 512).astype(np.float32)
    harness = ListenerHarness(PassThroughCanceller())
    with running(harness):
        for turn in range(4):
            assert [each for each in harness.posted if isinstance(each, Notice)] == [] or turn == 3
            harness.capture(silence(3))
            harness.played.write(harness.microphone.position, reply)
            start_playback(harness.speaker)
            harness.capture(reply)
            harness.speaker.is_playing = False
            harness.capture(silence(END + 20))
            harness.listener.commit()
    assert harness.kinds.count(SpeechEnded) == 3
    (notice,) = [each for each in harness.posted if isinstance(each, Notice)]
    assert notice.text.startswith("voxcli has answered itself three times")


def test_muting_posts_nothing_and_discards_the_open_utterance() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(10))
        harness.listener.mute(True)
        harness.capture(voice(10), silence(END))
        assert harness.kinds == [SpeechStarted]
        harness.listener.mute(False)
        harness.capture(silence(3), voice(15), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 15 * 512


def test_muting_for_a_moment_discards_the_open_utterance() -> None:
    with running(ListenerHarness()) as harness:
        harness.capture(voice(10))
        harness.listener.mute(True)
        harness.listener.mute(False)
        harness.capture(silence(END))
        assert harness.kinds == [SpeechStarted]
