"""The listener: push-to-talk, and the end-of-turn model."""

import threading

import numpy as np
import pytest

from tests.support.hearing import BLOCK_SAMPLES, END, FakeMicrophone, Listening, listening, playing, silence, voice
from tests.support.live_doubles import PATIENCE_SECONDS
from voxcli.audio.clip import AudioClip
from voxcli.chat.events import Notice, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted
from voxcli.chat.messages import SpeechEvent, ThreadCrashed
from voxcli.chat.speech.endpointing import EndpointingSettings
from voxcli.errors import ModelError

# Push-to-talk.


def pushed() -> Listening:
    return Listening(settings=EndpointingSettings(by_voice=False), barge_in=False)


def test_an_utterance_ends_with_what_was_said_as_the_key_was_let_go() -> None:
    with listening(pushed()) as heard:
        heard.hear(voice(10))
        assert heard.events == []
        heard.listener.talk(True)
        heard.hear(voice(20))
        heard.let_go()
        heard.hear(voice(8))  # the first blocks were on their way
        assert heard.kinds == [SpeechStarted, SpeechEnded]
    ended = heard.events[-1]
    assert isinstance(ended, SpeechEnded)
    assert 3 * 512 < ended.at - 30 * 512 <= 5 * 512


def test_the_key_without_a_voice_is_told_as_nothing_said() -> None:
    with listening(pushed()) as heard:
        heard.listener.talk(True)
        heard.hear(silence(10))
        heard.let_go()
        heard.hear(silence(8))
    started, ended = heard.events
    assert isinstance(started, SpeechStarted)
    assert isinstance(ended, SpeechEnded)
    assert ended.last_voiced == started.start


def test_the_key_pressed_again_at_once_loses_nothing() -> None:
    with listening(pushed()) as heard:
        heard.listener.talk(True)
        heard.hear(voice(10))
        heard.listener.talk(False)
        heard.listener.talk(True)
        heard.hear(voice(10))
        heard.let_go()
        heard.hear(silence(8))
        assert heard.kinds == [SpeechStarted, SpeechEnded, SpeechStarted, SpeechEnded]


def test_the_key_let_go_while_the_microphone_is_away_ends_the_utterance() -> None:
    with listening(pushed()) as heard:
        heard.listener.talk(True)
        heard.hear(voice(10))
        heard.listener.talk(False)
        heard.microphone.miss()
        heard.microphone.catch_up()
        assert heard.kinds == [SpeechStarted, SpeechEnded]


def test_the_key_opens_the_microphone_while_a_reply_plays() -> None:
    with listening(pushed()) as heard:
        playing(heard.speaker)
        heard.hear(voice(10))
        heard.listener.talk(True)
        heard.hear(voice(20))
        heard.let_go()
        heard.hear(silence(8))
        assert heard.kinds == [SpeechStarted, SpeechEnded]
        assert heard.speaker.ducks == []
    (clip,) = heard.clips()
    assert np.count_nonzero(clip.samples) >= 20 * 512


# The end-of-turn model.


def test_a_complete_utterance_ends_early() -> None:
    with listening(Listening(is_complete=lambda _: True)) as heard:
        heard.hear(voice(20), silence(7))
        heard.wait_for(SpeechEvent)
        heard.hear(silence(1))
        with heard.news:
            assert heard.news.wait_for(lambda: SpeechEnded in heard.kinds, PATIENCE_SECONDS)


def test_an_incomplete_one_is_waited_for() -> None:
    judged = threading.Event()

    def is_complete(_: AudioClip) -> bool:
        judged.set()
        return False

    with listening(Listening(is_complete=is_complete)) as heard:
        heard.hear(voice(20), silence(7))
        assert judged.wait(PATIENCE_SECONDS)
        heard.listener._judging.submit(lambda: None).result(PATIENCE_SECONDS)  # the verdict was taken
        heard.hear(silence(30))
        assert heard.kinds == [SpeechStarted, SpeechPaused]
        heard.hear(silence(30))
        assert heard.kinds[-1] is SpeechEnded


def test_a_verdict_on_a_pause_that_is_past_is_worth_nothing() -> None:
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)
    verdicts = [True, False]

    def is_complete(_: AudioClip) -> bool:
        asked.release()
        assert answer.acquire(timeout=PATIENCE_SECONDS)
        return verdicts.pop(0)

    with listening(Listening(is_complete=is_complete)) as heard:
        heard.hear(voice(20), silence(7))
        assert asked.acquire(timeout=PATIENCE_SECONDS)
        heard.hear(voice(10), silence(7))  # speech went on: another pause
        answer.release()
        assert asked.acquire(timeout=PATIENCE_SECONDS)  # the first verdict, "complete", was taken
        assert heard.kinds == [SpeechStarted, SpeechPaused, SpeechResumed, SpeechPaused]
        answer.release()


def test_an_end_of_turn_model_that_fails_leaves_silence() -> None:
    def fail(_: AudioClip) -> bool:
        raise ModelError("no memory")

    with listening(Listening(is_complete=fail)) as heard:
        heard.hear(voice(20), silence(7))
        heard.wait_for(Notice)
        heard.hear(silence(END), voice(20), silence(END))
    assert heard.kinds[-1] is SpeechEnded
    assert len([each for each in heard.posted if isinstance(each, Notice)]) == 1


@pytest.mark.parametrize("where", ["detector", "model"])
def test_a_defect_is_handed_to_the_conversation(where: str) -> None:
    def broken(_: object) -> float:
        raise ZeroDivisionError

    heard = Listening(detect=broken) if where == "detector" else Listening(is_complete=lambda _: bool(broken(0)))
    heard.listener.start()
    heard.microphone.capture(np.concatenate((voice(20), silence(7))))
    heard.wait_for(ThreadCrashed)
    heard.microphone.end()
    heard.listener.close()
    assert any(isinstance(each, ThreadCrashed) and isinstance(each.error, ZeroDivisionError) for each in heard.posted)


def test_blocks_of_the_double_are_those_of_the_device() -> None:
    microphone = FakeMicrophone()
    microphone.capture(voice(1))
    blocks = list(iter(lambda: microphone.read(0), None))
    assert {len(block.samples) for block in blocks[:-1]} == {BLOCK_SAMPLES}
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), voice(1))
