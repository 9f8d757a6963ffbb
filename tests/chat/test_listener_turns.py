"""The listener: push-to-talk, and the end-of-turn model."""

import threading

import numpy as np
import pytest

from tests.support.listener_harness import (
    BLOCK_SAMPLES,
    END,
    FakeMicrophone,
    ListenerHarness,
    running,
    silence,
    start_playback,
    voice,
)
from tests.support.listening import patient
from tests.support.live_doubles import PATIENCE_SECONDS
from voxcli.audio.clip import AudioClip
from voxcli.chat.events import Notice, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from voxcli.chat.messages import SpeechEvent, ThreadCrashed
from voxcli.errors import ModelError

# Push-to-talk.


def pushed() -> ListenerHarness:
    return ListenerHarness(settings=patient(by_voice=False), barge_in=False)


def test_an_utterance_ends_with_what_was_captured_until_the_key_was_released() -> None:
    with running(pushed()) as harness:
        harness.capture(voice(10))
        assert harness.events == []
        harness.listener.push_to_talk(True)
        harness.capture(voice(20))
        harness.release_key()
        harness.capture(voice(8))  # the first blocks were on their way
        assert harness.kinds == [SpeechStarted, SpeechEnded]
    ended = harness.events[-1]
    assert isinstance(ended, SpeechEnded)
    assert 3 * 512 < ended.at - 30 * 512 <= 5 * 512


def test_pressing_the_key_without_speaking_gives_an_utterance_without_voice() -> None:
    with running(pushed()) as harness:
        harness.listener.push_to_talk(True)
        harness.capture(silence(10))
        harness.release_key()
        harness.capture(silence(8))
    started, ended = harness.events
    assert isinstance(started, SpeechStarted)
    assert isinstance(ended, SpeechEnded)
    assert ended.last_voiced == started.start


def test_the_key_pressed_again_at_once_loses_nothing() -> None:
    with running(pushed()) as harness:
        harness.listener.push_to_talk(True)
        harness.capture(voice(10))
        harness.listener.push_to_talk(False)
        harness.listener.push_to_talk(True)
        harness.capture(voice(10))
        harness.release_key()
        harness.capture(silence(8))
        assert harness.kinds == [SpeechStarted, SpeechEnded, SpeechStarted, SpeechEnded]


def test_releasing_the_key_while_the_microphone_is_away_ends_the_utterance() -> None:
    with running(pushed()) as harness:
        harness.listener.push_to_talk(True)
        harness.capture(voice(10))
        harness.listener.push_to_talk(False)
        harness.microphone.miss()
        harness.microphone.catch_up()
        assert harness.kinds == [SpeechStarted, SpeechEnded]


def test_the_key_opens_the_microphone_while_a_reply_plays() -> None:
    with running(pushed()) as harness:
        start_playback(harness.speaker)
        harness.capture(voice(10))
        harness.listener.push_to_talk(True)
        harness.capture(voice(20))
        harness.release_key()
        harness.capture(silence(8))
        assert harness.kinds == [SpeechStarted, SpeechEnded]
        assert harness.speaker.ducks == []
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) >= 20 * 512


# The end-of-turn model.


def test_a_complete_utterance_ends_early() -> None:
    with running(ListenerHarness(is_complete=lambda _: True)) as harness:
        harness.capture(voice(20), silence(7))
        harness.wait_for(SpeechEvent)
        harness.capture(silence(1))
        with harness.news:
            assert harness.news.wait_for(lambda: SpeechEnded in harness.kinds, PATIENCE_SECONDS)


def test_an_incomplete_utterance_ends_late() -> None:
    with running(ListenerHarness(is_complete=lambda _: False)) as harness:
        harness.capture(voice(20), silence(7))
        assert harness.endpointer.has_verdict.wait(PATIENCE_SECONDS)
        harness.capture(silence(20))
        assert harness.kinds == [SpeechStarted, SpeechPaused]
        harness.capture(silence(10))
        assert harness.kinds[-1] is SpeechEnded


def test_a_verdict_on_a_past_pause_is_ignored() -> None:
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)
    verdicts = [True, False]

    def is_complete(_: AudioClip) -> bool:
        asked.release()
        assert answer.acquire(timeout=PATIENCE_SECONDS)
        return verdicts.pop(0)

    with running(ListenerHarness(is_complete=is_complete)) as harness:
        harness.capture(voice(20), silence(7))
        assert asked.acquire(timeout=PATIENCE_SECONDS)
        harness.capture(voice(10), silence(7))  # speech went on: another pause
        answer.release()
        assert asked.acquire(timeout=PATIENCE_SECONDS)  # the first verdict, "complete", was taken
        assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechResumed, SpeechPaused]
        answer.release()


def test_silence_ends_a_turn_where_the_end_of_turn_model_fails() -> None:
    def fail(_: AudioClip) -> bool:
        raise ModelError("no memory")

    with running(ListenerHarness(is_complete=fail)) as harness:
        harness.capture(voice(20), silence(7))
        harness.wait_for(Notice)
        harness.capture(silence(END), voice(20), silence(END))
    assert harness.kinds[-1] is SpeechEnded
    assert len([each for each in harness.posted if isinstance(each, Notice)]) == 1


@pytest.mark.parametrize("where", ["detector", "model"])
def test_a_defect_is_handed_to_the_conversation(where: str) -> None:
    def broken(_: object) -> float:
        raise ZeroDivisionError

    harness = (
        ListenerHarness(detect=broken)
        if where == "detector"
        else ListenerHarness(is_complete=lambda _: bool(broken(0)))
    )
    harness.listener.start()
    harness.microphone.capture(np.concatenate((voice(20), silence(7))))
    harness.wait_for(ThreadCrashed)
    harness.microphone.end()
    harness.listener.close()
    assert any(isinstance(each, ThreadCrashed) and isinstance(each.error, ZeroDivisionError) for each in harness.posted)


def test_blocks_of_the_double_are_those_of_the_device() -> None:
    microphone = FakeMicrophone()
    microphone.capture(voice(1))
    blocks = list(iter(lambda: microphone.read(0), None))
    assert {len(block.samples) for block in blocks[:-1]} == {BLOCK_SAMPLES}
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), voice(1))
