"""Where utterances begin, pause, go on and end, in a stream of frames and speech probabilities.

Pure: it counts samples, and has no clock and no threads: one owns an `Endpointer`. It knows nothing of
words, of what an utterance is used for, or of who speaks.

A clip begins up to `pre_roll_ms` before the first voiced frame, never inside the clip before it, and
reaches to where the pause or the end was decided: the silence that was waited for is part of it. So
clips are stretches of the stream as it came, and the clip of a pause is how the utterance's clip begins.

The defaults, measured with Silero on 32 ms frames:

- 200 ms of voice begin an utterance: 7 frames, which "it", "hi" and "no" reach (7 and more, three
  voices); 120 ms cut from speech are at most 6, and noise and clicks of 120 ms none.
- 200 ms of silence are a pause and 600 ms the end: an engine with audio after 0.4 s is hidden in between.
  350 ms put into sentences are 290 to 480 ms to Silero. In real conversations silence alone cuts off
  55.6 % of turns after 300 ms and 21.7 % after 600 ms (livekit/eot-bench).
- 2000 ms end a turn that the end-of-turn model calls incomplete, as in speech-to-speech.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.chat.events import (
    EndpointEvent,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
)
from voxcli.chat.speech.voice_gate import VoiceGate
from voxcli.errors import ConfigError

SAMPLES_PER_MS = SAMPLE_RATE // 1000
GAP_MS = 40  # unvoiced, within speech: one frame of 32 ms does not break it, two do
RESUME_MS = 50  # voiced, in an open utterance: two frames are speech again, one is a blip
PIECE_SECONDS = 5.0  # by which an utterance grows until that is told; the window of an audio encoder is 30 s
WARNING_SECONDS = 10.0  # before the limit of an utterance; a quarter of it where that is less


@dataclass(frozen=True)
class EndpointingSettings:
    """When an utterance begins and ends. Settings that contradict each other raise a ConfigError."""

    threshold: float = 0.5  # probability at which a frame becomes voice; Silero's own
    off_threshold: float = 0.35  # below it voice is over
    min_speech_ms: int = 200  # of voice begin an utterance, or reopen one that had ended
    barge_in_ms: int = 300  # of voice do so while a reply plays, and never less than min_speech_ms
    speculate_after_ms: int = 200  # are a pause
    min_silence_ms: int = 600  # are the end
    max_silence_ms: int = 2000  # are the end where the end-of-turn model says "incomplete"
    pre_roll_ms: int = 500  # kept from before the first voiced frame, for quiet onsets
    reopen_ms: int = 5000  # after the end in which speech can go on; what comes later is another thought
    max_utterance_seconds: float = 120.0  # of a clip, pre-roll included
    speculative_replies: bool = True  # tell pauses, which drafts and the end-of-turn model need
    by_voice: bool = True  # False: only `begin` opens an utterance (push-to-talk)

    def __post_init__(self) -> None:
        if not 0 < self.off_threshold <= self.threshold <= 1:
            raise ConfigError("off_threshold must be above 0 and at most threshold, threshold at most 1")
        if min(self.min_speech_ms, self.barge_in_ms, self.speculate_after_ms, self.min_silence_ms) <= 0:
            raise ConfigError("min_speech_ms, barge_in_ms, speculate_after_ms and min_silence_ms must be above 0")
        if self.max_silence_ms < self.min_silence_ms:
            raise ConfigError("max_silence_ms must be at least min_silence_ms")
        if min(self.pre_roll_ms, self.reopen_ms) < 0:
            raise ConfigError("pre_roll_ms and reopen_ms can't be negative")
        least_seconds = (self.pre_roll_ms + 2 * max(self.min_speech_ms, self.barge_in_ms)) / 1000 + 1
        if not least_seconds <= self.max_utterance_seconds < float("inf"):
            raise ConfigError(f"max_utterance_seconds must be a number of at least {least_seconds:g}")


class Endpointer:
    """Turns frames into the events of utterances: `push` each, and pass on what it returns.

    Between `SpeechStarted` and `SpeechEnded` an utterance is open. After the end its audio is kept, and
    speech reopens it (`SpeechResumed`), until `commit`, `reopen_ms`, or a clip at its limit.
    """

    def __init__(self, settings: EndpointingSettings) -> None:
        self._settings = settings
        self._limit = int(settings.max_utterance_seconds * SAMPLE_RATE)
        self._tape = _Tape(start=0)
        self._gate = VoiceGate(settings.threshold, settings.off_threshold)
        self._burst: _Burst | None = None
        self._utterance: _Utterance | None = None

    @property
    def voiced(self) -> bool:
        """Whether the last frame was voice."""
        return self._gate.voiced

    @property
    def kept_samples(self) -> int:
        """How much audio is held, in samples: at most an utterance at its limit."""
        return len(self._tape)

    def push(self, samples: Samples, probability: float, playing: bool) -> list[EndpointEvent]:
        """Take the next frame of the stream, and say what it changes.

        samples: one frame at SAMPLE_RATE, shape (n,); it is copied
        probability: that it has speech, 0 to 1
        playing: a reply is heard meanwhile: `barge_in_ms` holds, and the noise floor does not learn
        """
        self._tape.append(samples)
        self._gate.hear(samples, probability, learn=not playing)
        self._follow_voice(len(samples))
        events = self._follow(self._open, len(samples)) if self._open else self._wait(len(samples), playing)
        self._forget()
        return events

    def begin(self) -> list[EndpointEvent]:
        """Open an utterance at once, voice or not; no silence ends it, only `flush` or the limit does.

        An utterance that is open already goes on so; one that had ended is not reopened, since what was
        said with the key up was not meant to be heard. `SpeechStarted.start` is where the key went down.
        """
        self.commit()
        if self._utterance:
            self._utterance.held = True
            return []
        start, self._burst = self._tape.end, None  # voice counts anew from the key
        self._forget()
        self._utterance = _Utterance(start, start, self._settings.min_silence_ms, held=True)
        return [SpeechStarted(start)]

    def flush(self) -> list[EndpointEvent]:
        """End the open utterance now and for good; nothing happens where none is open.

        Where `begin` opened it and no voice came, `SpeechEnded.last_voiced` is `SpeechStarted.start`.
        """
        return [self._end_for_good(self._open)] if self._open else []

    def ends_early(self, complete: bool) -> list[EndpointEvent]:
        """Take an end-of-turn model's verdict on the present pause.

        Complete: it is the end. Incomplete: the end is after `max_silence_ms`, unless speech goes on.
        """
        utterance, settings = self._open, self._settings
        if utterance is None or not utterance.paused:
            return []
        utterance.silence_ms = settings.speculate_after_ms if complete else settings.max_silence_ms
        return [] if self._burst else self._follow_silence(utterance)

    def commit(self) -> bool:
        """Let go of an utterance that has ended: it can't be reopened any more.

        True: nothing is open, so what was said is settled. False: an utterance is open, the one that had
        ended or another, and is left alone: the speaker goes on.
        """
        if self._utterance is None:
            return True
        if self._utterance.ended_at is None:
            return False
        self._tape.forget_before(self._utterance.ended_at)
        self._utterance = None
        self._forget()
        return True

    def reset(self, skipped: int = 0) -> None:
        """Forget what was heard, an open utterance too, without an event; the noise floor stays.

        skipped: samples of the stream that were not listened to (muted) and will not be pushed.
        """
        self._tape = _Tape(self._tape.end + skipped)
        self._gate.close()
        self._burst = self._utterance = None

    @property
    def _open(self) -> "_Utterance | None":
        return self._utterance if self._utterance and self._utterance.ended_at is None else None

    @property
    def _onset(self) -> int:
        """Where an utterance that opened now would start."""
        return self._burst.start if self._burst and self._settings.by_voice else self._tape.end

    def _follow_voice(self, frame_samples: int) -> None:
        """Begin, lengthen or break the run of voice."""
        end = self._tape.end
        if self.voiced:
            self._burst = self._burst or _Burst(start=end - frame_samples, end=end)
            self._burst.end = end
            self._burst.voiced += frame_samples
        elif self._burst and end - self._burst.end > GAP_MS * SAMPLES_PER_MS:
            self._burst = None

    def _wait(self, frame_samples: int, playing: bool) -> list[EndpointEvent]:
        """Whether there is enough voice to open an utterance, or to reopen the one that ended."""
        if not self._reopens(frame_samples):
            self.commit()
        burst, settings = self._burst, self._settings
        needed_ms = max(settings.barge_in_ms, settings.min_speech_ms) if playing else settings.min_speech_ms
        if burst is None or not settings.by_voice or burst.voiced < needed_ms * SAMPLES_PER_MS:
            return []
        if self._utterance:
            return [self._resume(self._utterance, burst)]
        self._utterance = _Utterance(burst.start, burst.end, settings.min_silence_ms)
        return [SpeechStarted(burst.start)]

    def _reopens(self, frame_samples: int) -> bool:
        """Whether an utterance has ended that voice from here on, or the present voice, would reopen."""
        if self._utterance is None or self._utterance.ended_at is None:
            return False
        in_time = self._onset - self._utterance.ended_at <= self._settings.reopen_ms * SAMPLES_PER_MS
        return in_time and len(self._tape) + frame_samples <= self._limit

    def _follow(self, utterance: "_Utterance", frame_samples: int) -> list[EndpointEvent]:
        events = self._follow_speech(utterance, self._burst) if self._burst else self._follow_silence(utterance)
        if utterance.ended_at is None:
            events += self._grown(utterance) + self._near_limit(utterance, frame_samples)
        return events

    def _grown(self, utterance: "_Utterance") -> list[EndpointEvent]:
        pieces = int(len(self._tape) / (PIECE_SECONDS * SAMPLE_RATE))
        if utterance.paused or pieces <= utterance.pieces:
            return []
        utterance.pieces = pieces
        return [SpeechGoesOn(self._tape.clip())]

    def _follow_speech(self, utterance: "_Utterance", burst: "_Burst") -> list[EndpointEvent]:
        if burst.voiced < RESUME_MS * SAMPLES_PER_MS:
            return []
        utterance.last_voiced = burst.end
        return [self._resume(utterance, burst)] if utterance.paused else []

    def _follow_silence(self, utterance: "_Utterance") -> list[EndpointEvent]:
        silence = self._tape.end - utterance.last_voiced
        if silence >= utterance.silence_ms * SAMPLES_PER_MS and not utterance.held:
            return [self._end(utterance)]
        spoken = utterance.last_voiced > utterance.start
        draft = self._settings.speculative_replies and silence >= self._settings.speculate_after_ms * SAMPLES_PER_MS
        if utterance.paused or not (spoken and draft):
            return []
        utterance.paused = True
        return [SpeechPaused(self._tape.clip(), utterance.last_voiced)]

    def _near_limit(self, utterance: "_Utterance", frame_samples: int) -> list[EndpointEvent]:
        """Warn, then end where the next frame has no room; what follows is the next utterance's."""
        if len(self._tape) + frame_samples > self._limit:
            ended = self._end_for_good(utterance)
            return [ended, *self.begin()] if utterance.held else [ended]
        warning = max(self._limit - WARNING_SECONDS * SAMPLE_RATE, 0.75 * self._limit)
        if utterance.warned or len(self._tape) < warning:
            return []
        utterance.warned = True
        return [SpeechTooLong(len(self._tape) / SAMPLE_RATE)]

    def _resume(self, utterance: "_Utterance", burst: "_Burst") -> SpeechResumed:
        utterance.ended_at, utterance.paused = None, False
        utterance.last_voiced, utterance.silence_ms = burst.end, self._settings.min_silence_ms
        return SpeechResumed(burst.start)

    def _end(self, utterance: "_Utterance") -> SpeechEnded:
        utterance.ended_at, utterance.paused = self._tape.end, False
        return SpeechEnded(self._tape.clip(), utterance.last_voiced, self._tape.end)

    def _end_for_good(self, utterance: "_Utterance") -> SpeechEnded:
        """End it so that nothing reopens it; voice that goes on counts anew from here."""
        ended, self._burst = self._end(utterance), None
        self.commit()
        return ended

    def _forget(self) -> None:
        """Where there is no utterance, keep the pre-roll of the next one."""
        if self._utterance is None:
            self._tape.forget_before(self._onset - self._settings.pre_roll_ms * SAMPLES_PER_MS)


@dataclass
class _Burst:
    """Voice without a break, in positions of the stream."""

    start: int
    end: int  # of its last voiced frame
    voiced: int = 0  # samples of its voiced frames


@dataclass
class _Utterance:
    """An utterance that is open or can be reopened; its clip is the whole tape."""

    start: int
    last_voiced: int
    silence_ms: int  # that ends it
    held: bool = False  # silence does not end it
    paused: bool = False  # its pause was told
    pieces: int = 0  # of its audio, told
    warned: bool = False
    ended_at: int | None = None


class _Tape:
    """The stream's last stretch, without a hole; `start` and `end` are positions in the stream."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self._pieces: deque[Samples] = deque()

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, samples: Samples) -> None:
        self._pieces.append(np.array(samples, np.float32))
        self.end += len(samples)

    def forget_before(self, position: int) -> None:
        while self._pieces and self.start + len(self._pieces[0]) <= position:
            self.start += len(self._pieces.popleft())
        if self._pieces and self.start < position:
            self._pieces[0] = self._pieces[0][position - self.start :]
            self.start = position

    def clip(self) -> AudioClip:
        """Return all of it; what is appended later does not change the clip."""
        return AudioClip(np.concatenate([np.empty(0, np.float32), *self._pieces]))
