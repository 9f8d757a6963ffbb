"""Tests of the microphone, the loudspeaker and hot-plug on PulseAudio, by what is captured and recorded."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

import numpy as np
import pytest

from tests.support.live_doubles import RunningConversation
from tests.support.virtual_audio import RATE, SoundCard, missing_program
from tests.support.virtual_microphone import plug_in_loudspeaker, restarted, say, studio, unplug_loudspeaker, wait_until
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.vad import FRAME_SAMPLES
from voxcli.chat.devices.hotplug import AudioDevices
from voxcli.chat.devices.microphone import Microphone
from voxcli.chat.devices.portaudio import DeviceStream, find_device
from voxcli.chat.devices.speaker import OutputSpeaker, open_speaker
from voxcli.chat.events import DevicesChanged, LiveEvent, Notice, SentenceSpoken, SpeechEnded, TurnTaken
from voxcli.chat.listener import Listener as ChatListener
from voxcli.chat.messages import Inbound, SpeechEvent, ThreadCrashed
from voxcli.chat.speech.echo import Timeline
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.core.testing import FakeEngine
from voxcli.errors import AudioDeviceError

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is not installed")

GO_ON = threading.Event()
WINDOW_SECONDS = 0.05

# A sound server that has just been started drops a block now and then; the test is then repeated once.
DROPS_BLOCKS = pytest.mark.flaky(reruns=1)


@pytest.fixture(scope="module")
def card() -> Iterator[SoundCard]:
    with studio() as card:
        yield card


def babble(seconds: float, seed: int, rate: int = SAMPLE_RATE) -> AudioClip:
    """Return noise below 4 kHz, which unlike a tone correlates with itself at one place only."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * rate)))
    spectrum[round(4_000 * seconds) :] = 0
    samples = np.fft.irfft(spectrum, round(seconds * rate))
    return AudioClip((samples / np.abs(samples).max() * 0.7).astype(np.float32), rate)


def find(clip: Samples, recording: Samples) -> int:
    """Return where a clip begins in a recording."""
    size = len(recording) + len(clip)
    match = np.fft.irfft(np.fft.rfft(recording, size) * np.fft.rfft(clip, size).conj(), size)
    return int(match[: len(recording)].argmax())


def correlations(clip: Samples, recording: Samples, start: int, rate: int) -> list[float]:
    """Return the correlation of a clip with a recording from `start`, window by window."""
    size = round(WINDOW_SECONDS * rate)
    return [
        float(np.corrcoef(clip[first : first + size], recording[start + first : start + first + size])[0, 1])
        for first in range(0, len(clip) - size + 1, size)
    ]


def longest_silence(samples: Samples) -> int:
    """Return the length of the longest stretch without sound, in samples."""
    sounding = np.flatnonzero(np.abs(samples) > 0.001)
    return int(np.diff(sounding, prepend=0, append=len(samples)).max())


@contextmanager
def speaker_at(rate: int) -> Iterator[OutputSpeaker]:
    """Open the default loudspeaker at the recording's rate, so that samples can be compared one by one."""
    speaker = OutputSpeaker(replace(find_device("output"), sample_rate=rate))
    try:
        yield speaker
    finally:
        speaker.close()


@pytest.fixture(autouse=True)
def _no_listener_left() -> Iterator[None]:
    """Finish the listeners of a test that failed, so that they disturb no later one."""
    yield
    while Listener.running:
        Listener.running.pop().finish()


class Listener(threading.Thread):
    """Reads a microphone until `finish`."""

    running: ClassVar[list["Listener"]] = []

    def __init__(self, microphone: Microphone) -> None:
        super().__init__(name="listener", daemon=True)
        self.running.append(self)
        self._microphone = microphone
        self._done = threading.Event()
        self.parts: list[Samples] = []
        self.moments: list[tuple[int, float]] = []
        self.start()
        wait_until(lambda: self.parts)

    @property
    def captured(self) -> Samples:
        return np.concatenate(self.parts)

    def run(self) -> None:
        position = 0
        while not self._done.is_set():
            if block := self._microphone.read(0.1):
                assert block.position == position
                position += len(block.samples)
                self.parts.append(block.samples)
                self.moments.append((position, block.captured_at))

    def finish(self) -> Samples:
        self._done.set()
        self.join()
        return self.captured


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (44_100, 1)])
def test_every_sample_is_captured(card: SoundCard, rate: int, channels: int) -> None:
    said = babble(0.6, seed=rate)
    microphone = Microphone(replace(find_device("input"), sample_rate=rate, channels=channels))
    listener = Listener(microphone)
    say(card, said)
    wait_until(lambda: len(listener.captured) > find(said.samples, listener.captured) + len(said.samples) + 800)
    microphone.close()
    captured = listener.finish()
    start = find(said.samples, captured)
    assert min(correlations(said.samples, captured, start, SAMPLE_RATE)) > 0.95
    loud = np.flatnonzero(np.abs(captured) > 0.02)
    assert start - 40 <= loud[0] <= start + 20  # Only the filter's ripple precedes the first sample.
    assert abs(loud[-1] - start - len(said.samples)) < 40
    assert microphone.overruns == 0
    positions, moments = np.array(listener.moments).T
    assert np.median(np.abs(moments - moments[0] - (positions - positions[0]) / SAMPLE_RATE)) < 0.1


def test_a_slow_reader_loses_the_oldest_blocks_and_keeps_the_time(card: SoundCard) -> None:
    microphone = Microphone(find_device("input"), queue_seconds=0.5)
    first = microphone.read(10)
    assert first
    wait_until(lambda: microphone.overruns > 20)
    microphone.close()
    position, lengths = len(first.samples), []
    while block := microphone.read(0):
        assert block.position == position
        position += len(block.samples)
        lengths.append(len(block.samples))
    assert len(lengths) == 50  # The capacity of the queue.
    assert max(lengths) > SAMPLE_RATE * 0.2  # The silence that replaces lost blocks.
    blocks = 1 + microphone.overruns + len(lengths)
    assert position / SAMPLE_RATE == pytest.approx(blocks * 0.01, abs=0.011)


def test_a_reader_of_whole_frames_is_woken_once_per_frame(card: SoundCard) -> None:
    microphone = Microphone(find_device("input"))
    first = microphone.read(10, FRAME_SAMPLES)
    assert first
    position = len(first.samples)
    for _ in range(20):
        block = microphone.read(10, FRAME_SAMPLES)
        assert block
        assert block.position == position
        assert FRAME_SAMPLES - 1 <= len(block.samples) < FRAME_SAMPLES + 0.011 * SAMPLE_RATE
        position += len(block.samples)
    microphone.close()


def test_ducking_holds_the_queue_and_loses_nothing(card: SoundCard) -> None:
    clip = babble(1.2, seed=1, rate=RATE)
    with card.recording() as recording, speaker_at(RATE) as speaker:
        assert not speaker.is_playing
        end = speaker.play(AudioClip(clip.samples[: RATE // 2], RATE), GO_ON)
        speaker.wait(0.3, GO_ON)
        speaker.duck()
        recording.wait_for(0.4)
        held = speaker.position
        assert speaker.is_playing
        recording.wait_for(0.2)
        assert speaker.position == held < end
        speaker.unduck()
        end = speaker.play(AudioClip(clip.samples[RATE // 2 :], RATE), GO_ON)
        speaker.wait(end, GO_ON)
        assert not speaker.is_playing
        recording.wait_for(0.1)
    whole = recording.samples
    cut = round(held * RATE)  # The sample where the fade-out ended.
    before, after = clip.samples[: cut - RATE // 100], clip.samples[cut + RATE // 100 :]
    first, second = find(before, whole), find(after, whole)
    assert min(correlations(before, whole, first, RATE)) > 0.95
    assert min(correlations(after, whole, second, RATE)) > 0.95
    silence = whole[first + cut : second - RATE // 100]
    assert len(silence) > RATE * 0.4
    assert np.abs(silence).max() < 0.001
    faded = whole[first + len(before) : first + cut]
    assert 0.3 < np.std(faded) / np.std(before) < 0.9
    fading_in, wanted = whole[second - RATE // 100 : second], clip.samples[cut : cut + RATE // 100]
    assert np.corrcoef(fading_in, wanted * np.linspace(0, 1, len(wanted)))[0, 1] > 0.95


def test_a_reply_interrupted_while_ducked_is_never_played(card: SoundCard) -> None:
    interrupt = threading.Event()
    with card.recording() as recording, open_speaker() as speaker:
        speaker.play(babble(0.8, seed=2), interrupt)
        speaker.wait(0.2, interrupt)
        speaker.duck()
        recording.wait_for(0.3)
        interrupt.set()
        wait_until(lambda: not speaker.is_playing)
        recording.wait_for(0.1)
        quiet_from = len(recording.samples)
        speaker.unduck()
        recording.wait_for(0.3)
        assert np.abs(recording.samples[quiet_from:]).max() < 0.001


def test_the_tap_gives_what_is_played(card: SoundCard) -> None:
    clip = babble(0.5, seed=3)
    with open_speaker() as speaker:
        asked = time.monotonic()
        speaker.wait(speaker.play(clip, GO_ON), GO_ON)
        over = time.monotonic()
        blocks = speaker.reference.read()
    tapped = np.concatenate([block.samples for block in blocks])
    assert [block.position for block in blocks[1:]] == [block.position + len(block.samples) for block in blocks[:-1]]
    start = find(clip.samples, tapped)
    assert min(correlations(clip.samples, tapped, start, SAMPLE_RATE)) > 0.98
    ends = np.cumsum([len(block.samples) for block in blocks])
    first = blocks[int(np.searchsorted(ends, start, side="right"))]
    assert asked - 0.02 < first.handed_at <= first.sounds_at < over


def notices(posted: list[Notice | ThreadCrashed]) -> list[str]:
    return [each.text for each in posted if isinstance(each, Notice)]


@DROPS_BLOCKS
def test_devices_come_back_after_the_sound_server(card: SoundCard) -> None:
    posted: list[Notice | ThreadCrashed] = []
    with studio() as own, AudioDevices(posted.append) as devices:
        assert devices.speaker
        listener = Listener(devices.microphone)
        devices.speaker.wait(devices.speaker.play(babble(0.2, seed=4), GO_ON), GO_ON)
        position = devices.speaker.position
        with restarted(own):
            with pytest.raises(AudioDeviceError, match="takes no more sound"):
                devices.speaker.wait(devices.speaker.play(babble(5, seed=5), GO_ON), GO_ON)
            wait_until(lambda: posted and notices(posted)[-1].endswith("back"))
            said = babble(1, seed=6)
            before = len(listener.captured)
            wait_until(lambda: len(listener.captured) > before + 3 * 160)
            say(own, said)
            wait_until(lambda: len(listener.captured) > find(said.samples, listener.captured) + len(said.samples) + 800)
            captured = listener.finish()
            assert min(correlations(said.samples, captured, find(said.samples, captured), SAMPLE_RATE)) > 0.95
            with own.recording() as recording:
                end = devices.speaker.play(said, GO_ON)
                devices.speaker.wait(end, GO_ON)
                recording.wait_for(0.1)
            assert position < end - 0.9
    loud = said.resampled(RATE).samples
    assert min(correlations(loud, recording.samples, find(loud, recording.samples), RATE)) > 0.95
    assert "the microphone 'default'" in notices(posted)[0]
    assert "gone; waiting for a device" in notices(posted)[0]
    assert "back" in notices(posted)[-1]


@DROPS_BLOCKS
def test_a_loudspeaker_that_is_lost_alone_comes_back_alone(card: SoundCard, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[Notice | ThreadCrashed] = []
    monkeypatch.setenv("PULSE_SINK", "speaker")
    with studio(default_sink="room") as own, AudioDevices(posted.append) as devices:
        speaker = devices.speaker
        assert speaker
        listener = Listener(devices.microphone)
        said = babble(9, seed=8)  # Longer than the search for new devices.
        speaking = threading.Thread(target=say, args=(own, said))
        speaking.start()
        speaker.play(babble(0.9, seed=7), GO_ON)
        speaker.wait(0.2, GO_ON)
        unplug_loudspeaker(own)
        wait_until(lambda: not speaker.is_playing)  # Otherwise half-duplex would never listen again.
        wait_until(lambda: notices(posted))
        assert not speaker.is_playing
        speaking.join()
        plug_in_loudspeaker(own)
        wait_until(lambda: len(notices(posted)) == 2)
        wait_until(lambda: len(listener.captured) > find(said.samples, listener.captured) + len(said.samples) + 800)
        captured = listener.finish()
        start = find(said.samples, captured)
        assert longest_silence(captured[start : start + len(said.samples)]) < SAMPLE_RATE // 50
        assert devices.microphone.overruns == 0
        with own.recording() as recording:
            speaker.wait(speaker.play(babble(0.5, seed=9), GO_ON), GO_ON)
            recording.wait_for(0.1)
    assert np.abs(recording.samples).max() > 0.3
    assert posted == [
        DevicesChanged("the loudspeaker 'default' is gone; waiting for a device", ("output",)),
        DevicesChanged("the loudspeaker 'default' is back"),
    ]


def test_a_crash_of_the_hotplug_thread_is_posted(card: SoundCard) -> None:
    crashed: list[BaseException] = []

    def post(posted: Notice | ThreadCrashed) -> None:
        if isinstance(posted, Notice):
            raise ZeroDivisionError
        crashed.append(posted.error)

    with studio() as own, AudioDevices(post):
        own.server.kill()
        wait_until(lambda: crashed)
    assert [type(error) for error in crashed] == [ZeroDivisionError]


def test_an_exception_in_a_callback_is_raised_by_failure(card: SoundCard) -> None:
    def broken(_block: memoryview, _moment: float, _lost: bool) -> None:
        raise ZeroDivisionError

    stream = DeviceStream(find_device("output"), broken, 0.06)
    with closing(stream), pytest.raises(ZeroDivisionError):
        wait_until(lambda: stream.failure)


def test_a_word_said_at_ready_is_in_the_utterance_from_its_first_sample(card: SoundCard) -> None:
    said = babble(1.5, seed=10)
    microphone, other = Microphone(find_device("input")), Microphone(find_device("input"))
    early = Listener(other)  # Captures the start of the word; the chat does not read its own microphone yet.
    posted: list[Inbound] = []
    with closing(microphone):
        speaking = threading.Thread(target=say, args=(card, said))
        speaking.start()
        wait_until(lambda: np.abs(early.parts[-1]).max() > 0.1)
        chat_listener = ChatListener(
            *(microphone, None, loudness, Endpointer(EndpointingSettings()), None, Timeline(1.0), posted.append)
        )
        chat_listener.start()
        wait_until(
            lambda: any(isinstance(each, SpeechEvent) and isinstance(each.event, SpeechEnded) for each in posted)
        )
        chat_listener.close()
        speaking.join()
    other.close()
    early.finish()
    (clip,) = [
        each.event.clip for each in posted if isinstance(each, SpeechEvent) and isinstance(each.event, SpeechEnded)
    ]
    # Compared at the device's rate, whose samples are close enough for a shift by a part of one not to matter.
    expected, captured = said.resampled(RATE).samples, clip.resampled(RATE).samples
    assert min(correlations(expected, captured, find(expected, captured), RATE)) > 0.95


def loudness(frame: Samples) -> float:
    """Treat loud frames as speech."""
    return 0.9 if float(np.abs(frame).mean()) > 0.01 else 0.0


def test_a_sentence_is_announced_within_a_tenth_of_a_second(card: SoundCard) -> None:
    sentences = ["It rains in Paris. ", "The trains in the north are late again. ", "Take a coat. ", "Goodbye."]
    late: list[float] = []
    ends = accumulate(len(sentence.strip()) / 10 for sentence in sentences)  # The rate of the fake voice.

    def note(event: LiveEvent) -> None:
        if isinstance(event, SentenceSpoken):
            late.append(speaker.position - next(ends))

    with open_speaker() as speaker, RunningConversation(FakeEngine([sentences]), speaker, show=note) as talk:
        talk.utterance()
        talk.journal.wait_for(TurnTaken)
    assert len(late) == len(sentences)
    assert min(late) >= -0.002
    assert max(late) < 0.1
