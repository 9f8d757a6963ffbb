"""The ears of a conversation: from blocks of the microphone to utterances.

One thread takes the microphone's blocks, removes what the loudspeaker plays, asks the voice-activity
detector frame by frame, and drives the end-pointer. What cannot wait it does itself: at the first
voiced frame during playback the loudspeaker falls silent, and goes on where it stopped if that was all.
Whether a reply is to be given up, and what is said next, is the conversation's business.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.levels import dbfs
from voxcli.audio.vad import FRAME_SAMPLES
from voxcli.chat.devices.microphone import MicrophoneBlock
from voxcli.chat.devices.speaker import ReferenceTap
from voxcli.chat.events import (
    EndpointEvent,
    InputLevel,
    Notice,
    Resumed,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from voxcli.chat.messages import Inbound, SpeechEvent, crashes_posted
from voxcli.chat.speech.echo import HalfDuplex, LoopBreaker, Timeline
from voxcli.chat.speech.endpointing import Endpointer
from voxcli.errors import AudioDeviceError, VoxError

log = logging.getLogger(__name__)

PLAYED_SECONDS = 5.0  # of what was played, kept beyond the longest utterance: the loop breaker looks back
READ_SECONDS = 0.1  # how long to wait for a block before looking whether to stop
LEVEL_SECONDS = 0.2  # between two reports of the level
NOISE_SECONDS = 0.2  # without voice, and what had made the reply fall silent was a noise
SILENCE_DBFS = -96.0  # the least that is reported: one bit of 16


class Source(Protocol):
    """What the listener needs of `voxcli.chat.devices.microphone.Microphone`."""

    overruns: int  # counted from the first read

    def read(self, timeout: float) -> MicrophoneBlock | None: ...


class Loudspeaker(Protocol):
    """What the listener needs of `voxcli.chat.devices.speaker.OutputSpeaker`."""

    reference: ReferenceTap
    underruns: int

    @property
    def is_playing(self) -> bool: ...

    def duck(self) -> None: ...

    def unduck(self) -> None: ...


class Canceller(Protocol):
    """What the listener needs of `voxcli.chat.speech.echo.EchoCanceller`."""

    def clean(self, samples: Samples) -> Samples: ...


class Listener(threading.Thread):
    """Implements `voxcli.chat.messages.ListenerControl`."""

    def __init__(
        self,
        microphone: Source,
        speaker: Loudspeaker | None,
        detect: Callable[[Samples], float],
        endpointer: Endpointer,
        canceller: Canceller | None,
        played: Timeline,
        post: Callable[[Inbound], None],
        *,
        barge_in: bool = True,
        is_complete: Callable[[AudioClip], bool] | None = None,
    ) -> None:
        """Wire the parts; `start` begins, `close` ends.

        Args:
            detect: the probability that a frame of FRAME_SAMPLES has speech.
            canceller: None for half-duplex.
            played: what `canceller` reads; written here.
            post: takes what was heard, from any thread.
            barge_in: voice makes the loudspeaker fall silent; False where it is not listened to while a reply
                plays, or where a key says when to listen.
            is_complete: an end-of-turn model, asked in the first pause on a thread of its own.
        """
        super().__init__(name="listener", daemon=True)
        self._microphone = microphone
        self._speaker = speaker
        self._detect = detect
        self._endpointer = endpointer
        self._canceller = canceller
        self._played = played
        self._post = post
        self._barge_in = barge_in
        self._is_complete = is_complete
        self._judging = ThreadPoolExecutor(1, "end of turn")
        self._half_duplex = HalfDuplex()
        self._breaker = LoopBreaker()
        self._pending = np.zeros(0, np.float32)  # less than a frame
        self._position = 0  # samples taken from the microphone
        self._captured_at = 0.0  # monotonic seconds, of the sample at `_position`
        self._underruns_before = 0  # while nobody could listen yet
        self._unreported_samples = 0  # since the last report of the level
        self._unreported_energy = 0.0  # the sum of their squares
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the end-pointer and all below: commands come from other threads
        self._framed = 0  # samples that the end-pointer knows of
        self._is_open = False  # an utterance is
        self._speech_start = 0
        self._pauses = 0
        self._ducked = False
        self._may_be_noise = False  # what made the loudspeaker fall silent
        self._quiet_seconds = 0.0  # since the last voiced frame
        self._muted = False
        self._let_go_at: float | None = None  # when the key of push-to-talk was let go, monotonic seconds

    # What the conversation asks; from any thread.

    @property
    def overruns(self) -> int:
        return self._microphone.overruns

    @property
    def underruns(self) -> int:
        return self._speaker.underruns - self._underruns_before if self._speaker else 0

    def commit(self) -> bool:
        """Settle the last utterance; False while one is open, or the present voice might open it again."""
        with self._lock:
            if (self._barge_in and self._endpointer.voiced) or not self._endpointer.commit():
                return False
            self._unduck()
            return True

    def mute(self, muted: bool) -> None:
        """Forget what is being said and hear nothing, or hear again."""
        with self._lock:
            self._muted = muted
            if muted:
                self._skip(0)
                self._unduck()

    def talk(self, talking: bool) -> None:
        """Push-to-talk: open an utterance, or end it with what the microphone has captured until now."""
        with self._lock:
            if talking:
                self._let_go()
                self._tell(self._endpointer.begin())
            else:
                self._let_go_at = time.monotonic()

    def close(self) -> None:
        """Stop listening; the microphone is its owner's to close."""
        self._closed.set()
        self.join()
        self._judging.shutdown(cancel_futures=True)

    # The thread.

    def run(self) -> None:
        with crashes_posted(self._post):
            if self._speaker:  # what it did while the program got ready is nobody's business
                self._speaker.reference.read()
                self._underruns_before = self._speaker.underruns
            while not self._closed.is_set():
                if block := self._microphone.read(READ_SECONDS):
                    self._take(block)
                else:
                    self._miss()

    def _miss(self) -> None:
        """Nothing was captured: the device is slow, or away."""
        with self._lock:
            if self._let_go_at is not None:
                self._let_go()
            self._be_quiet(READ_SECONDS)

    def _take(self, block: MicrophoneBlock) -> None:
        self._note_played()
        self._position += len(block.samples)
        self._captured_at = block.captured_at
        playing = self._speaker is not None and self._speaker.is_playing
        cleaned = self._cleaned(block.samples)
        self._report(block.samples)
        with self._lock:
            if self._is_shut(playing=playing):
                self._skip(len(self._pending) + len(cleaned))
                self._pending = cleaned[:0]
                return
        pending = np.concatenate((self._pending, cleaned))
        whole = len(pending) // FRAME_SAMPLES * FRAME_SAMPLES
        self._pending = pending[whole:]
        for frame in pending[:whole].reshape(-1, FRAME_SAMPLES):
            self._hear(frame, self._detect(frame), playing=playing)

    def _note_played(self) -> None:
        if self._speaker:
            for block in self._speaker.reference.read():
                self._played.follow(self._position, block.samples)

    def _cleaned(self, samples: Samples) -> Samples:
        canceller = self._canceller  # asked once: whoever ends an utterance may find it useless
        if canceller is None:
            return samples
        try:
            return canceller.clean(samples)
        except AudioDeviceError as error:
            self._go_half_duplex(error.message)
            return samples

    def _hear(self, frame: Samples, probability: float, *, playing: bool) -> None:
        with self._lock:
            if self._muted:  # meanwhile
                self._skip(len(frame))
                return
            self._framed += len(frame)
            self._tell(self._endpointer.push(frame, probability, playing))
            if self._endpointer.voiced:
                self._quiet_seconds = 0.0
                self._duck(playing=playing)
            else:
                self._be_quiet(len(frame) / SAMPLE_RATE)
            if self._let_go_at is not None and self._time_of(self._framed) >= self._let_go_at:
                self._let_go()

    def _report(self, samples: Samples) -> None:
        self._unreported_samples += len(samples)
        self._unreported_energy += float(np.sum(np.square(samples, dtype=np.float64)))
        if self._unreported_samples < LEVEL_SECONDS * SAMPLE_RATE:
            return
        level_dbfs = max(SILENCE_DBFS, dbfs(self._unreported_energy / self._unreported_samples))
        self._unreported_samples, self._unreported_energy = 0, 0.0
        seconds = (self._framed - self._speech_start) / SAMPLE_RATE if self._is_open else None
        self._post(InputLevel(level_dbfs, seconds))

    # With the lock held.

    def _is_shut(self, *, playing: bool) -> bool:
        """Whether the microphone is not listened to now. An utterance that is open is heard to its end."""
        is_free = self._half_duplex.is_open(self._position, playing=playing)
        return self._muted or not (is_free or self._is_open or (self._canceller and self._barge_in))

    def _skip(self, samples: int) -> None:
        """Be deaf to samples, and forget what was heard before them."""
        self._framed += samples
        self._is_open, self._let_go_at = False, None
        self._endpointer.reset(samples)
        self._be_quiet(samples / SAMPLE_RATE)

    def _let_go(self) -> None:
        self._let_go_at = None
        self._tell(self._endpointer.flush())

    def _duck(self, *, playing: bool) -> None:
        """Fall silent at the first voice."""
        if self._speaker and self._barge_in and playing and not self._ducked:
            self._ducked, self._may_be_noise = True, not self._is_open
            log.debug("playback ducked")
            self._speaker.duck()

    def _be_quiet(self, seconds: float) -> None:
        """Count time without voice; go on with the reply if what was heard did not become speech."""
        self._quiet_seconds += seconds
        if self._ducked and self._may_be_noise and self._quiet_seconds >= NOISE_SECONDS:
            self._unduck()
            if self._speaker and self._speaker.is_playing:
                self._post(Resumed())

    def _unduck(self) -> None:
        if self._ducked and self._speaker:
            self._ducked = False
            log.debug("playback no longer ducked")
            self._speaker.unduck()

    def _tell(self, events: list[EndpointEvent]) -> None:
        for event in events:
            log.debug("%s at %.2f s", type(event).__name__, self._framed / SAMPLE_RATE)
            self._post(SpeechEvent(event, self._time_of(_last_voiced(event, self._framed))))
            self._follow(event)

    def _follow(self, event: EndpointEvent) -> None:
        match event:
            case SpeechStarted():
                self._is_open, self._speech_start = True, event.start
                self._may_be_noise = False
            case SpeechResumed():
                self._is_open = True
                self._may_be_noise = False
            case SpeechPaused() if self._is_complete:
                self._pauses += 1
                self._judging.submit(self._judge, self._is_complete, event.clip, self._pauses)
            case SpeechEnded():
                self._is_open = False
                self._break_loop(event)

    def _break_loop(self, event: SpeechEnded) -> None:
        start = event.at - len(event.clip.samples)
        if self._canceller and self._breaker.answers_itself(event.clip.samples, start, self._played):
            self._go_half_duplex("voxcli has heard itself three times")

    def _go_half_duplex(self, reason: str) -> None:
        self._canceller = None
        self._post(Notice(f"{reason}: the microphone is ignored while a reply plays"))

    def _time_of(self, position: int) -> float:
        """Return when a sample was captured, in monotonic seconds."""
        return min(self._captured_at - (self._position - position) / SAMPLE_RATE, time.monotonic())

    # The thread of the end-of-turn model.

    def _judge(self, is_complete: Callable[[AudioClip], bool], clip: AudioClip, pause: int) -> None:
        """Ask the model of the present pause; what it says of one that is past is worth nothing."""
        with crashes_posted(self._post):
            try:
                complete = pause == self._pauses and is_complete(clip)
            except VoxError as error:
                self._is_complete = None
                self._post(Notice(f"{error.message}: silence alone ends a turn from now on"))
                return
            with self._lock:
                if pause == self._pauses:
                    self._tell(self._endpointer.ends_early(complete))


def _last_voiced(event: EndpointEvent, now: int) -> int:
    return event.last_voiced if isinstance(event, SpeechPaused | SpeechEnded) else now
