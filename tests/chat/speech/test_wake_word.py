"""Sleep and the wake word: what wakes a chat, what puts it to sleep, and what of the sound is kept."""

import sys

import numpy as np
import pytest

from tests.support.listener_harness import (
    END,
    ListenerHarness,
    PassThroughCanceller,
    running,
    silence,
    start_playback,
    voice,
)
from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.control import Control
from voxcli.chat.events import SpeechEnded, SpeechPaused, SpeechStarted, State, StateChanged, TurnRetracted
from voxcli.chat.listener import WAKE_SAMPLES
from voxcli.chat.messages import SleepChanged
from voxcli.chat.speech.wake_word import SleepControl, Spotter, is_sleep_command, load
from voxcli.core.protocols import Transcript
from voxcli.errors import ModelError

WORD = np.full(512, -0.9, np.float32)  # the sound that wakes in these tests
SECOND = np.zeros(SAMPLE_RATE, np.float32)


def new_spotter() -> Spotter:
    return lambda samples: bool((samples < -0.5).any())


class SleepHarness(ListenerHarness):
    """A listener with a wake word."""

    def __init__(self) -> None:
        self.frames: list[Samples] = []
        self.sleep = SleepControl(new_spotter, 2.0, self._post)
        super().__init__(PassThroughCanceller(), detect=self._detect, stays_asleep=self.sleep.stays_asleep)

    def _detect(self, frame: Samples) -> float:
        self.frames.append(frame)
        return 0.9 if float(np.abs(frame).mean()) > 0.05 else 0.05

    @property
    def changes(self) -> list[bool]:
        return [each.asleep for each in self.posted if isinstance(each, SleepChanged)]

    def in_state(self, state: State) -> None:
        self.sleep.show(StateChanged(state))


def test_asleep_nothing_reaches_the_detector_and_no_utterance_opens() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(voice(60), silence(END))
    assert harness.frames == []
    assert (harness.kinds, harness.changes) == ([], [])


def test_the_wake_word_and_what_follows_are_one_utterance() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(silence(100), voice(20), WORD, voice(20), silence(END))
    assert harness.changes == [False]
    assert harness.kinds == [SpeechStarted, SpeechPaused, SpeechEnded]
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 41 * 512


def test_of_what_was_said_before_the_wake_word_only_the_pre_roll_is_kept() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(voice(200), WORD, silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) <= WAKE_SAMPLES + len(WORD)


def test_positions_go_on_while_it_sleeps() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(silence(300), WORD, voice(20), silence(END))
    (started,) = [each for each in harness.events if isinstance(each, SpeechStarted)]
    assert started.start == pytest.approx(300 * 512, abs=512)


def test_it_sleeps_again_after_a_time_without_speech_and_forgets_the_utterance() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(WORD, voice(20), silence(END), SECOND, voice(10), silence(END), SECOND)
        assert harness.changes == [False]
        harness.capture(SECOND)
        assert harness.changes == [False, True]
        before = len(harness.events)
        harness.capture(voice(60), silence(END))
        assert len(harness.events) == before
        harness.capture(WORD, voice(20))
        assert harness.changes == [False, True, False]


@pytest.mark.parametrize("state", ["thinking", "speaking"])
def test_it_stays_awake_while_there_is_a_reply_so_that_speech_interrupts_it(state: State) -> None:
    with running(SleepHarness()) as harness:
        harness.capture(WORD, voice(20), silence(END))
        harness.in_state(state)
        harness.capture(SECOND, SECOND, SECOND)
        assert harness.changes == [False]
        harness.in_state("listening")
        harness.capture(SECOND, SECOND)
        assert harness.changes == [False, True]


def test_a_voice_ducks_a_reply_while_it_is_awake() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(WORD, voice(20), silence(END))
        harness.listener.commit()
        harness.in_state("speaking")
        start_playback(harness.speaker)
        harness.capture(SECOND, SECOND, SECOND, voice(1))
        assert harness.speaker.ducks == [True]
    assert harness.changes == [False]


def test_a_command_puts_it_to_sleep_and_is_undone() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(WORD, voice(20), silence(END))
        harness.sleep.show(Transcript("Hey Jarvis, go to sleep."))
        assert [each.command for each in harness.posted if isinstance(each, Control)] == ["undo"]
        harness.in_state("thinking")
        harness.capture(silence(1))
        assert harness.changes == [False, True]


def test_a_command_to_sleep_that_goes_on_is_none_and_undoes_nothing() -> None:
    posted: list[Control | SleepChanged] = []
    sleep = SleepControl(new_spotter, 2.0, posted.append)
    assert not sleep.stays_asleep(WORD, False)
    sleep.show(Transcript("Stop."))
    sleep.show(TurnRetracted(""))
    assert not sleep.stays_asleep(SECOND[:512], True)
    assert [each.is_withdrawn for each in posted if isinstance(each, Control)] == [True]


def test_an_utterance_that_a_key_opens_wakes_it() -> None:
    with running(SleepHarness()) as harness:
        harness.capture(silence(10))
        harness.listener.push_to_talk(True)
        harness.capture(voice(20))
        assert harness.changes == [False]
        harness.release_key()
        harness.capture(silence(5))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 20 * 512


def test_a_muted_microphone_wakes_nothing() -> None:
    with running(SleepHarness()) as harness:
        harness.listener.mute(True)
        harness.capture(voice(20), WORD, voice(20))
        assert harness.changes == []
        harness.listener.mute(False)
        harness.capture(WORD, voice(20), silence(END))
    (clip,) = harness.clips()
    assert np.count_nonzero(clip.samples) == 21 * 512


@pytest.mark.parametrize(
    "text", ["Stop.", "stop", "Go to sleep!", "Hey, Jarvis, stop.", "Alexa, go to sleep", "Please stop"]
)
def test_commands_to_sleep(text: str) -> None:
    assert is_sleep_command(text)


@pytest.mark.parametrize("text", ["", "Stop the timer.", "When do you go to sleep?", "Don't stop.", "Hey Jarvis."])
def test_other_utterances(text: str) -> None:
    assert not is_sleep_command(text)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymicro_wakeword", None)
    with pytest.raises(ModelError) as caught:
        load("hey_jarvis")
    assert caught.value.hint == "pip install 'voxcli[wake]'"


def test_a_name_that_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="hey_you"):
        load("hey_you")
