"""The ears of a conversation: from blocks of the microphone to utterances.

One thread takes the microphone's blocks, removes what the loudspeaker plays, asks the voice-activity
detector frame by frame, and drives the end-pointer. What cannot wait it does itself: at the first
voiced frame during playback the loudspeaker falls silent, and goes on where it stopped if that was all.
Whether a reply is to be given up, and what is said next, is the conversation's business.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from voxcli.audio import SAMPLE_RATE, AudioClip, Samples
from voxcli.live.conversation import Heard, Inbound
from voxcli.live.echo import EchoCanceller, HalfDuplex, LoopBreaker, Timeline
from voxcli.live.endpoint import EndPointer
from voxcli.live.events import EndpointEvent, InputLevel, Notice, Resumed, SpeechEnded, SpeechPaused, SpeechStarted
from voxcli.live.microphone import Microphone, MicrophoneBlock
from voxcli.live.speaker import OutputSpeaker
from voxcli.vad import FRAME_SAMPLES

PLAYED_SECONDS = 5.0  # of what was played, kept beyond the longest utterance: the loop breaker looks back
READ_SECONDS = 0.1  # how long to wait for a block before looking whether to stop
LEVEL_SECONDS = 0.2  # between two reports of the level
NOISE_SECONDS = 0.2  # without voice, and what had made the reply fall silent was a noise
SILENCE_DBFS = -96.0  # the least that is reported: one bit of 16


class Listener(threading.Thread):
    """Implements `conversation.Ears`."""

    def __init__(
        self,
        microphone: Microphone,
        speaker: OutputSpeaker | None,
        detect: Callable[[Samples], float],
        endpointer: EndPointer,
        canceller: EchoCanceller | None,
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
            post: takes what was heard, on this thread.
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
        self._lock = threading.Lock()  # of the end-pointer: commands come from other threads
        self._half_duplex = HalfDuplex()
        self._breaker = LoopBreaker()
        self._pending = np.zeros(0, np.float32)
        self._position = 0  # samples taken from the microphone
        self._framed = 0  # samples that went through the end-pointer
        self._captured_at = 0.0  # monotonic seconds, of the sample at `_position`
        self._ducked = False
        self._quiet_samples = 0  # since the last voiced frame
        self._speech_since: int | None = None
        self._reported = 0
        self._muted = False
        self._closed = threading.Event()

    # What the conversation asks; from any thread.

    @property
    def overruns(self) -> int:
        return self._microphone.overruns

    def commit(self) -> bool:
        """Settle the last utterance: it can't be opened again; False if it is open already."""
        with self._lock:
            settled = self._endpointer.commit()
        if settled and self._ducked and self._speaker:
            self._ducked = False
            self._speaker.unduck()
        return settled

    def mute(self, muted: bool) -> None:
        """Hear nothing, or hear again."""
        with self._lock:
            self._muted = muted

    def talk(self, talking: bool) -> None:
        """Push-to-talk: open an utterance, or end it."""
        with self._lock:
            self._tell(self._endpointer.begin() if talking else self._endpointer.flush())

    def close(self) -> None:
        """Stop listening; the microphone is its owner's to close."""
        self._closed.set()
        self.join()
        self._judging.shutdown(wait=False, cancel_futures=True)

    # The thread.

    def run(self) -> None:
        while not self._closed.is_set():
            if block := self._microphone.read(READ_SECONDS):
                self._take(block)

    def _take(self, block: MicrophoneBlock) -> None:
        self._position = block.position + len(block.samples)
        self._captured_at = block.captured_at
        self._note_played()
        playing = self._speaker is not None and self._speaker.is_playing
        cleaned = self._canceller.clean(block.samples) if self._canceller else block.samples
        self._report(block.samples)
        if self._is_shut(playing=playing):
            self._skip(len(cleaned))
            return
        pending = np.concatenate((self._pending, cleaned))
        whole = len(pending) // FRAME_SAMPLES * FRAME_SAMPLES
        self._pending = pending[whole:]
        for frame in pending[:whole].reshape(-1, FRAME_SAMPLES):
            self._hear(frame, playing=playing)

    def _note_played(self) -> None:
        if self._speaker:
            for block in self._speaker.reference.read():
                self._played.follow(self._position, block.samples)

    def _is_shut(self, *, playing: bool) -> bool:
        """Whether the microphone is not listened to now."""
        is_open = self._half_duplex.is_open(self._position, playing=playing)
        return self._muted or not (is_open or (self._canceller and self._barge_in))

    def _skip(self, samples: int) -> None:
        """Be deaf to samples; an utterance that was open is forgotten."""
        skipped = samples + len(self._pending)
        self._pending = self._pending[:0]
        self._framed += skipped
        self._speech_since = None
        with self._lock:
            self._endpointer.reset(skipped)

    def _hear(self, frame: Samples, *, playing: bool) -> None:
        probability = self._detect(frame)
        self._framed += len(frame)
        with self._lock:
            events = self._endpointer.push(frame, probability, playing)
            voiced = self._endpointer.voiced
            self._tell(events)
        self._quiet_samples = 0 if voiced else self._quiet_samples + len(frame)
        if self._speaker and self._barge_in:
            self._duck(self._speaker, voiced=voiced, playing=playing, spoken=bool(events))

    def _duck(self, speaker: OutputSpeaker, *, voiced: bool, playing: bool, spoken: bool) -> None:
        """Fall silent at the first voice; go on if it was a noise; stay silent if it becomes speech."""
        if playing and voiced and not self._ducked:
            self._ducked = True
            speaker.duck()
            return
        was_noise = self._ducked and self._speech_since is None and not spoken
        if was_noise and self._quiet_samples >= NOISE_SECONDS * SAMPLE_RATE:
            self._ducked = False
            speaker.unduck()
            self._post(Resumed())

    def _tell(self, events: list[EndpointEvent]) -> None:
        for event in events:
            self._follow(event)
            self._post(Heard(event, self._time_of(_last_voiced(event, self._framed))))

    def _follow(self, event: EndpointEvent) -> None:
        if isinstance(event, SpeechStarted):
            self._speech_since = event.start
        elif isinstance(event, SpeechPaused) and self._is_complete:
            self._judging.submit(self._judge, self._is_complete, event.clip)
        elif isinstance(event, SpeechEnded):
            self._speech_since = None
            self._break_loop(event)

    def _judge(self, is_complete: Callable[[AudioClip], bool], clip: AudioClip) -> None:
        complete = is_complete(clip)
        with self._lock:
            self._tell(self._endpointer.ends_early(complete))

    def _break_loop(self, event: SpeechEnded) -> None:
        start = event.at - len(event.clip.samples)
        if self._canceller and self._breaker.answers_itself(event.clip.samples, start, self._played):
            self._canceller = None
            self._post(Notice("voxcli has heard itself three times: the microphone is ignored while a reply plays"))

    def _report(self, samples: Samples) -> None:
        self._reported += len(samples)
        if self._reported < LEVEL_SECONDS * SAMPLE_RATE:
            return
        self._reported = 0
        power = float(np.mean(np.square(samples))) if len(samples) else 0.0
        dbfs = max(SILENCE_DBFS, 10 * float(np.log10(power + 1e-12)))
        since = self._speech_since
        self._post(InputLevel(dbfs, None if since is None else (self._framed - since) / SAMPLE_RATE))

    def _time_of(self, position: int) -> float:
        """Return when a sample was captured, in monotonic seconds."""
        return min(self._captured_at - (self._position - position) / SAMPLE_RATE, time.monotonic())


def _last_voiced(event: EndpointEvent, now: int) -> int:
    return event.last_voiced if isinstance(event, SpeechPaused | SpeechEnded) else now
