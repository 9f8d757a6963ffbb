"""Listens to the microphone and turns its blocks into utterances.

One thread reads the microphone, cancels the echo of the loudspeaker, runs voice-activity detection on each frame
and feeds the endpointer. It ducks the loudspeaker itself, at the first voiced frame during playback, because that
can't wait; if the voice was only a noise, playback continues where it stopped. The conversation decides whether a
reply is interrupted.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.vad import FRAME_SAMPLES
from voxcli.chat.devices.microphone import MicrophoneBlock
from voxcli.chat.devices.speaker import ReferenceTap
from voxcli.chat.events import (
    EndpointEvent,
    Notice,
    Resumed,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from voxcli.chat.input_meter import InputMeter
from voxcli.chat.messages import Inbound, SpeechEvent, crashes_posted
from voxcli.chat.speech.echo import Timeline
from voxcli.chat.speech.endpointing import Endpointer
from voxcli.chat.speech.half_duplex import HalfDuplex
from voxcli.chat.speech.loop_breaker import LoopBreaker
from voxcli.errors import AudioDeviceError, VoxError

log = logging.getLogger(__name__)

PLAYED_SECONDS = 5.0  # Playback kept for the loop breaker, beyond the longest utterance.
# The frames processed at once, 128 ms, while nothing plays and no utterance is open or might be reopened. By default an
# utterance needs more voice than that to start, and from the first voiced frame on each is processed as it comes.
IDLE_FRAMES = 4
READ_SECONDS = 0.2  # how long to wait for these before checking whether to stop
NOISE_SECONDS = 0.2  # A voice that ducked the reply is a noise if so long a silence follows.
WAKE_SAMPLES = SAMPLE_RATE * 3 // 2  # Kept while asleep; a slow "hey Jarvis" takes 1.1 s until it is found.
MISSING_SECONDS = 1.0  # Without a block for so long, nothing continues an utterance that has ended.


class MicrophoneSource(Protocol):
    """The part of `voxcli.chat.devices.microphone.Microphone` that the listener uses."""

    overruns: int  # counted from the first read

    def read(self, timeout: float, wanted_samples: int = 1) -> MicrophoneBlock | None: ...


class Loudspeaker(Protocol):
    """The part of `voxcli.chat.devices.speaker.OutputSpeaker` that the listener uses."""

    reference: ReferenceTap
    underruns: int

    @property
    def is_playing(self) -> bool: ...

    def duck(self) -> None: ...

    def unduck(self) -> None: ...


class Canceller(Protocol):
    """The part of `voxcli.chat.speech.echo.EchoCanceller` that the listener uses."""

    def clean(self, samples: Samples) -> Samples: ...

    def restore_speech(self, most: int) -> Samples | None: ...


class Listener(threading.Thread):
    """Implements `voxcli.chat.messages.ListenerControl`."""

    def __init__(
        self,
        microphone: MicrophoneSource,
        speaker: Loudspeaker | None,
        detect: Callable[[Samples], float],
        endpointer: Endpointer,
        canceller: Canceller | None,
        played: Timeline,
        post: Callable[[Inbound], None],
        *,
        barge_in: bool = True,
        is_complete: Callable[[AudioClip], bool] | None = None,
        stays_asleep: Callable[[Samples, bool], bool] | None = None,
    ) -> None:
        """Connect the parts. `start` begins to listen, `close` stops.

        Args:
            detect: returns the probability that a frame of FRAME_SAMPLES contains speech.
            canceller: None for half-duplex.
            played: what was played, written here and read by `canceller`.
            post: receives messages; called on several threads.
            barge_in: whether voice ducks the loudspeaker; False if the microphone is ignored while a reply
                plays, or with push-to-talk.
            is_complete: the end-of-turn model, called on a thread of its own when an utterance pauses.
            stays_asleep: receives the next samples and whether an utterance is open; returns whether the
                conversation waits for its wake word, so that all but the last WAKE_SAMPLES are discarded.
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
        self._stays_asleep = stays_asleep
        self._turn_detection = ThreadPoolExecutor(1, "end of turn")
        self._half_duplex = HalfDuplex()
        self._breaker = LoopBreaker()
        self._pending = np.zeros(0, np.float32)  # samples of an incomplete frame
        self._position = 0  # samples read from the microphone
        self._captured_at = 0.0  # monotonic seconds when the sample at `_position` was captured
        self._underruns_before = 0  # those before the listener started
        self._meter = InputMeter()
        self._missing_seconds = 0.0  # since the last block
        self._is_idle = False  # No frame has to be processed as soon as it comes.
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards the endpointer and all fields below
        self._framed = 0  # samples that the endpointer has received
        self._utterance_is_open = False
        self._speech_start = 0
        self._checked_until = 0  # The position up to which utterances were searched for what was played.
        self._pauses = 0
        self._ducked = False
        self._may_be_noise = False  # the voice that ducked the loudspeaker
        self._quiet_seconds = 0.0  # since the last voiced frame
        self._muted = False
        self._key_released_at: float | None = None  # monotonic seconds; of the push-to-talk key

    # Called by the conversation, on any thread.

    @property
    def overruns(self) -> int:
        return self._microphone.overruns

    @property
    def underruns(self) -> int:
        return self._speaker.underruns - self._underruns_before if self._speaker else 0

    def begin_reply(self) -> bool:
        """Let the reply play; return False while the last utterance is open or present voice might reopen it."""
        return self._unless_continued(self._endpointer.begin_reply)

    def is_final(self) -> bool:
        """Return whether no speech can continue the last utterance any more, and none is open."""
        with self._lock:
            return self._endpointer.is_final

    def commit(self) -> bool:
        """Close the last utterance for good; return False while it is open or present voice might reopen it."""
        return self._unless_continued(self._endpointer.commit)

    def _unless_continued(self, close: Callable[[], bool]) -> bool:
        """Call a method of the endpointer unless there is voice now; if it returns True, the next reply is audible."""
        with self._lock:
            if (self._barge_in and self._endpointer.voiced) or not close():
                return False
            self._unduck()
            return True

    def mute(self, muted: bool) -> None:
        """Discard the open utterance and ignore the microphone, or listen again."""
        with self._lock:
            self._muted = muted
            if muted:
                self._discard(0)
                self._unduck()

    def push_to_talk(self, pressed: bool) -> None:
        """Start an utterance when the key is pressed; end it with the samples captured until the key is released."""
        with self._lock:
            if pressed:
                self._end_key_utterance()
                self._post_speech(self._endpointer.begin())
            else:
                self._key_released_at = time.monotonic()

    def close(self) -> None:
        """Stop listening; the owner of the microphone closes it."""
        self._closed.set()
        self.join()
        self._turn_detection.shutdown(cancel_futures=True)

    # On the listener's thread.

    def run(self) -> None:
        with crashes_posted(self._post):
            if self._speaker:  # forget what was played before
                self._speaker.reference.read()
                self._underruns_before = self._speaker.underruns
            while not self._closed.is_set():
                wanted = FRAME_SAMPLES * (IDLE_FRAMES if self._is_idle else 1) - len(self._pending) % FRAME_SAMPLES
                if block := self._microphone.read(READ_SECONDS, wanted):
                    self._process_block(block)
                else:
                    self._on_no_block()

    def _on_no_block(self) -> None:
        """Count time without a block: the device is slow, or unplugged."""
        with self._lock:
            if self._key_released_at is not None:
                self._end_key_utterance()
            self._count_silence(READ_SECONDS)
            self._missing_seconds += READ_SECONDS
            if self._missing_seconds >= MISSING_SECONDS:
                self._endpointer.commit()

    def _process_block(self, block: MicrophoneBlock) -> None:
        self._missing_seconds, self._is_idle = 0.0, False
        self._record_playback()
        self._position += len(block.samples)
        self._captured_at = block.captured_at
        playing = self._speaker is not None and self._speaker.is_playing
        cleaned = self._cancel_echo(block.samples)
        seconds = (self._framed - self._speech_start) / SAMPLE_RATE if self._utterance_is_open else None
        for report in self._meter.push(block.samples, seconds):
            self._post(report)
        with self._lock:
            if self._ignores_microphone(playing=playing):
                self._discard(len(self._pending) + len(cleaned))
                self._pending, self._is_idle = cleaned[:0], self._muted and not playing
                return
        pending = np.concatenate((self._pending, cleaned))
        if self._stays_asleep and self._discard_asleep(self._stays_asleep, cleaned, pending):
            self._is_idle = not playing
            return
        self._pending = pending
        while len(self._pending) >= FRAME_SAMPLES:  # Processing a frame may replace the samples after it.
            frame, self._pending = self._pending[:FRAME_SAMPLES], self._pending[FRAME_SAMPLES:]
            self._process_frame(frame, self._detect(frame), playing=playing)
        with self._lock:
            self._is_idle = self._endpointer.is_idle and not (playing or self._ducked)

    def _discard_asleep(
        self, stays_asleep: Callable[[Samples, bool], bool], cleaned: Samples, pending: Samples
    ) -> bool:
        """Keep the end of `pending` while the conversation is asleep; return whether it is."""
        with self._lock:
            if not stays_asleep(cleaned, self._utterance_is_open or self._endpointer.voiced):
                return False
            excess = max(0, len(pending) - WAKE_SAMPLES)
            self._discard(excess)
            self._pending = pending[excess:]
            return True

    def _record_playback(self) -> None:
        if self._speaker:
            for block in self._speaker.reference.read():
                self._played.append_playback(self._position, block.samples)

    def _cancel_echo(self, samples: Samples) -> Samples:
        canceller = self._canceller  # read once: another thread may set it to None
        if canceller is None:
            return samples
        try:
            return canceller.clean(samples)
        except AudioDeviceError as error:
            self._go_half_duplex(error.message)
            return samples

    def _process_frame(self, frame: Samples, probability: float, *, playing: bool) -> None:
        with self._lock:
            if self._muted:  # since the block was read
                self._discard(len(frame))
                return
            self._framed += len(frame)
            events = self._endpointer.push(frame, probability, playing)
            if any(isinstance(event, SpeechStarted | SpeechResumed) for event in events):
                self._restore_speech()
            self._post_speech(events)
            if self._endpointer.voiced:
                self._quiet_seconds = 0.0
                self._duck(playing=playing)
            else:
                self._count_silence(len(frame) / SAMPLE_RATE)
            if self._key_released_at is not None and self._time_of(self._framed) >= self._key_released_at:
                self._end_key_utterance()

    # With the lock held.

    def _ignores_microphone(self, *, playing: bool) -> bool:
        """Return whether the microphone is ignored now. An open utterance is recorded to its end."""
        is_free = self._half_duplex.is_open(self._position, playing=playing)
        return self._muted or not (is_free or self._utterance_is_open or (self._canceller and self._barge_in))

    def _restore_speech(self) -> None:
        """Replace speech that the canceller took for echo, in the utterance and in the samples after it."""
        canceller, waiting = self._canceller, len(self._pending)
        if canceller is None:
            return
        try:
            restored = canceller.restore_speech(self._endpointer.kept_samples + waiting)
        except AudioDeviceError as error:
            self._go_half_duplex(error.message)
            return
        if restored is not None and len(restored) > waiting:
            split = len(restored) - waiting
            self._endpointer.replace_end(restored[:split])
            self._pending = restored[split:]

    def _discard(self, samples: int) -> None:
        """Leave out samples, and discard the utterance before them."""
        self._framed += samples
        self._utterance_is_open, self._key_released_at = False, None
        self._endpointer.reset(samples)
        self._count_silence(samples / SAMPLE_RATE)

    def _end_key_utterance(self) -> None:
        self._key_released_at = None
        self._post_speech(self._endpointer.flush())

    def _duck(self, *, playing: bool) -> None:
        """Duck the loudspeaker at the first voiced frame."""
        if self._speaker and self._barge_in and playing and not self._ducked:
            self._ducked, self._may_be_noise = True, not self._utterance_is_open
            log.debug("playback ducked")
            self._speaker.duck()

    def _count_silence(self, seconds: float) -> None:
        """Count time without voice; continue the reply if the voice did not become speech."""
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

    def _post_speech(self, events: list[EndpointEvent]) -> None:
        for event in events:
            log.debug("%s at %.2f s", type(event).__name__, self._framed / SAMPLE_RATE)
            self._post(SpeechEvent(event, self._time_of(_last_voiced(event, self._framed))))
            self._on_endpoint_event(event)

    def _on_endpoint_event(self, event: EndpointEvent) -> None:
        match event:
            case SpeechStarted():
                self._utterance_is_open, self._speech_start = True, event.start
                self._may_be_noise = False
            case SpeechResumed():
                self._utterance_is_open = True
                self._may_be_noise = False
            case SpeechPaused() if self._is_complete:
                self._pauses += 1
                self._turn_detection.submit(self._detect_end_of_turn, self._is_complete, event.clip, self._pauses)
            case SpeechEnded():
                self._utterance_is_open = False
                self._check_loop(event)

    def _check_loop(self, event: SpeechEnded) -> None:
        new = event.clip.samples[-(event.at - self._checked_until) :]  # Of an utterance that was reopened, the rest.
        self._checked_until = event.at
        if self._canceller and self._breaker.answers_itself(new, event.at - len(new), self._played):
            self._go_half_duplex("voxcli has answered itself three times")

    def _go_half_duplex(self, reason: str) -> None:
        self._canceller = None
        self._post(Notice(f"{reason}: the microphone is ignored while a reply plays"))

    def _time_of(self, position: int) -> float:
        """Return when a sample was captured, in monotonic seconds."""
        return min(self._captured_at - (self._position - position) / SAMPLE_RATE, time.monotonic())

    # On the thread of the end-of-turn model.

    def _detect_end_of_turn(self, is_complete: Callable[[AudioClip], bool], clip: AudioClip, pause: int) -> None:
        """Ask the model whether the turn is over; skip or ignore it once the pause is past."""
        with crashes_posted(self._post):
            try:
                complete = pause == self._pauses and is_complete(clip)
            except VoxError as error:
                self._is_complete = None
                self._post(Notice(f"{error.message}: from now on only silence ends a turn"))
                return
            with self._lock:
                if pause == self._pauses:
                    self._post_speech(self._endpointer.apply_verdict(complete))


def _last_voiced(event: EndpointEvent, now: int) -> int:
    return event.last_voiced if isinstance(event, SpeechPaused | SpeechEnded) else now
