"""A listener under test, with doubles of the microphone and the loudspeaker."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tests.support.live_doubles import PATIENCE_SECONDS
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.vad import FRAME_SAMPLES
from voxcli.chat.devices.microphone import KEPT_SECONDS, MicrophoneBlock
from voxcli.chat.devices.speaker import ReferenceTap
from voxcli.chat.events import EndpointEvent, Resumed, SpeechEnded
from voxcli.chat.listener import Canceller, Listener
from voxcli.chat.messages import Inbound, SpeechEvent
from voxcli.chat.speech.echo import Timeline
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.chat.speech.half_duplex import TAIL_MS
from voxcli.errors import AudioDeviceError

BLOCK_SAMPLES = SAMPLE_RATE // 100
END = 20  # frames: one more than the silence that ends an utterance
TAIL = TAIL_MS // 32 + 2  # frames for which the microphone is ignored after a reply


class FakeMicrophone:
    """A microphone that captures the samples a test gives it; until the first read it keeps only the latest."""

    def __init__(self) -> None:
        self.overruns = 0
        self._is_read = False
        self._blocks: deque[MicrophoneBlock | None] = deque()
        self._news = threading.Condition()
        self._given = self._taken = self._done = 0
        self.position = 0
        self.block_samples = BLOCK_SAMPLES
        self.wanted_samples = 0  # What the last read has asked for.
        self.opened_at = time.monotonic() - 1000  # long ago, so that every block was captured in the past
        self._over = False

    def read(self, timeout: float, wanted_samples: int = 1) -> MicrophoneBlock | None:
        """Return the next block. Time-outs happen only when the test calls `miss`, except that 0 never waits."""
        with self._news:
            self._is_read = True
            self.wanted_samples = wanted_samples
            self._done = self._taken
            self._news.notify_all()
            if timeout:
                self._news.wait_for(lambda: self._blocks or self._over)
            if not self._blocks:
                return None
            self._taken += 1
            return self._blocks.popleft()

    def be_late(self, seconds: float) -> None:
        """Date the next samples back by so many seconds."""
        self.opened_at = time.monotonic() - seconds - self.position / SAMPLE_RATE

    def capture(self, samples: Samples) -> None:
        """Capture samples in blocks of `block_samples`, 10 ms; return at once."""
        with self._news:
            for first in range(0, len(samples), self.block_samples):
                block = samples[first : first + self.block_samples]
                end = self.position + len(block)
                self._blocks.append(MicrophoneBlock(block, self.position, self.opened_at + end / SAMPLE_RATE))
                self.position = end
                self._given += 1
                if not self._is_read and len(self._blocks) > KEPT_SECONDS * SAMPLE_RATE // BLOCK_SAMPLES:
                    self._blocks.popleft()
                    self._taken += 1
            self._news.notify_all()

    def miss(self) -> None:
        """Let the next read time out."""
        with self._news:
            self._blocks.append(None)
            self._given += 1
            self._news.notify_all()

    def catch_up(self) -> None:
        """Wait until the reader has processed every block."""
        with self._news:
            assert self._news.wait_for(lambda: self._done == self._given, PATIENCE_SECONDS)

    def end(self) -> None:
        with self._news:
            self._over = True
            self._news.notify_all()


@dataclass
class FakeLoudspeaker:
    """A loudspeaker that records when it was ducked and unducked."""

    is_playing: bool = False
    ducks: list[bool] = field(default_factory=list)
    reference: ReferenceTap = field(default_factory=ReferenceTap)
    underruns: int = 0

    def duck(self) -> None:
        self.ducks.append(True)

    def unduck(self) -> None:
        self.ducks.append(False)


class PassThroughCanceller:
    """An echo canceller that changes nothing."""

    def clean(self, samples: Samples) -> Samples:
        return samples

    def restore_speech(self, most: int) -> Samples | None:
        return None


def detect(frame: Samples) -> float:
    """Return a high probability of speech for loud frames."""
    return 0.9 if float(np.abs(frame).mean()) > 0.05 else 0.05


def voice(frames: int) -> Samples:
    return np.full(frames * FRAME_SAMPLES, 0.2, np.float32)


def silence(frames: int) -> Samples:
    return np.zeros(frames * FRAME_SAMPLES, np.float32)


class AttenuatingCanceller:
    """An echo canceller that attenuates all voice until it is asked for what it took for echo."""

    def __init__(self, error: str = "") -> None:
        self._error = error
        self._captured = np.zeros(0, np.float32)
        self._is_aside = False

    def clean(self, samples: Samples) -> Samples:
        self._captured = np.concatenate((self._captured, samples))
        return samples if self._is_aside else samples * np.float32(0.5)

    def restore_speech(self, most: int) -> Samples | None:
        if self._error:
            raise AudioDeviceError(self._error)
        if self._is_aside:
            return None
        self._is_aside = True
        return self._captured[max(0, len(self._captured) - most) :]


class FailingCanceller:
    """An echo canceller that fails."""

    def clean(self, samples: Samples) -> Samples:
        raise AudioDeviceError("the echo canceller fails")

    def restore_speech(self, most: int) -> Samples | None:
        raise AssertionError("it has failed before")


class WatchedEndpointer(Endpointer):
    """An endpointer that says when the end-of-turn model's verdict has reached it."""

    def __init__(self, settings: EndpointingSettings) -> None:
        super().__init__(settings)
        self.has_verdict = threading.Event()

    def apply_verdict(self, complete: bool) -> list[EndpointEvent]:
        events = super().apply_verdict(complete)
        self.has_verdict.set()
        return events


class ListenerHarness:
    """A listener, doubles of its devices, and the messages that it posted."""

    def __init__(
        self,
        canceller: Canceller | None = None,
        *,
        detect: Callable[[Samples], float] = detect,
        settings: EndpointingSettings | None = None,
        barge_in: bool = True,
        is_complete: Callable[[AudioClip], bool] | None = None,
        stays_asleep: Callable[[Samples, bool], bool] | None = None,
    ) -> None:
        self.microphone = FakeMicrophone()
        self.speaker = FakeLoudspeaker()
        self.posted: list[Inbound] = []
        self.news = threading.Condition()
        self.played = Timeline(10.0)
        self.endpointer = WatchedEndpointer(settings or EndpointingSettings())
        self.listener = Listener(
            self.microphone,
            self.speaker,
            detect,
            self.endpointer,
            canceller,
            self.played,
            self._post,
            barge_in=barge_in,
            is_complete=is_complete,
            stays_asleep=stays_asleep,
        )

    def _post(self, inbound: Inbound) -> None:
        with self.news:
            self.posted.append(inbound)
            self.news.notify_all()

    def capture(self, *sounds: Samples) -> None:
        for sound in sounds:
            self.microphone.capture(sound)
        self.microphone.catch_up()

    def release_key(self) -> None:
        """Release the push-to-talk key; date the next samples back by 100 ms, a little more than three frames."""
        self.listener.push_to_talk(False)
        self.microphone.be_late(0.1)

    def wait_for(self, kind: type) -> None:
        with self.news:
            assert self.news.wait_for(lambda: any(isinstance(each, kind) for each in self.posted), PATIENCE_SECONDS)

    @property
    def events(self) -> list[EndpointEvent]:
        return [each.event for each in self.posted if isinstance(each, SpeechEvent)]

    @property
    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]

    @property
    def awaited_frames(self) -> int:
        """The frames that the listener wants at once."""
        return -(-self.microphone.wanted_samples // FRAME_SAMPLES)

    @property
    def resumed(self) -> int:
        return sum(isinstance(each, Resumed) for each in self.posted)

    def clips(self) -> list[AudioClip]:
        return [event.clip for event in self.events if isinstance(event, SpeechEnded)]


H = TypeVar("H", bound=ListenerHarness)


@contextmanager
def running(harness: H) -> Iterator[H]:
    harness.listener.start()
    try:
        yield harness
    finally:
        harness.microphone.end()
        harness.listener.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("listener", "end of turn"))]


def start_playback(speaker: FakeLoudspeaker) -> None:
    speaker.is_playing = True
