"""Endpointing: finds where utterances start, pause, resume and end in a stream of frames and speech probabilities.

It counts samples and uses no clock. An `Endpointer` belongs to one thread.

A clip starts up to `pre_roll_ms` before the first voiced frame, but never inside the clip before it. It ends where the
pause or the end was detected, so it includes the silence before that. Clips are stretches of the stream, and the clip
of a pause is a prefix of the utterance's clip: `replace_end` changes only samples that no clip holds yet.

The defaults were measured with Silero on frames of 32 ms:

- 200 ms of voice, 7 frames, start an utterance. "it", "hi" and "no" in three voices have 7 frames or more; 120 ms cut
  from speech have at most 6, and noise and clicks of 120 ms none.
- 96 ms of silence, 3 frames, are a pause, and 350 ms end the utterance at first (`voxcli.chat.speech.silence`). The
  time between hides the latency of the engine. Silero sees 350 ms of silence within a sentence as 290 to 480 ms. In
  real conversations, silence alone cuts off 55.6 % of turns at 300 ms and 21.7 % at 600 ms (livekit/eot-bench); speech
  that goes on within `retract_ms` takes such an end back.
- A turn that the end-of-turn model calls complete ends after 250 ms, an incomplete one after 1000 ms.
"""

from dataclasses import dataclass

from voxcli.audio.clip import SAMPLE_RATE, Samples
from voxcli.chat.events import (
    EndpointEvent,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
)
from voxcli.chat.speech.audio_buffer import AudioBuffer
from voxcli.chat.speech.silence import TurnSilence
from voxcli.chat.speech.voice_gate import VoiceGate
from voxcli.errors import ConfigError

SAMPLES_PER_MS = SAMPLE_RATE // 1000
GAP_MS = 40  # The longest unvoiced gap within speech: one frame of 32 ms, but not two.
RESUME_MS = 50  # Voice that resumes an open utterance: two frames, but not one.
FEW_WORDS_MS = 1500  # A reply that has played longer stays: four words at 180 words per minute.
PIECE_SECONDS = 5.0  # The interval of `SpeechGoesOn`; an audio encoder's window is 30 s.
WARNING_SECONDS = 10.0  # The warning's time before the limit, or a quarter of the limit where that is less.


@dataclass(frozen=True)
class EndpointingSettings:
    """When an utterance starts and ends. Settings that contradict each other raise a ConfigError."""

    threshold: float = 0.5  # The probability at which voice starts; Silero's default.
    off_threshold: float = 0.35  # The probability below which voice ends.
    min_speech_ms: int = 200  # Voice that starts an utterance, or reopens one that has ended.
    barge_in_ms: int = 300  # The same while a reply plays; at least min_speech_ms counts.
    speculate_after_ms: int = 96  # Silence that is a pause: three frames.
    min_silence_ms: int = 350  # Silence that ends an utterance, unless the endpointer is given another.
    complete_silence_ms: int = 250  # The same where the end-of-turn model answers "complete".
    max_silence_ms: int = 1000  # The same where it answers "incomplete"; never less than without a model.
    pre_roll_ms: int = 500  # Audio kept from before the first voiced frame, for quiet onsets.
    reopen_ms: int = 5000  # The time after the end in which speech continues the utterance, while no reply plays.
    retract_ms: int = 1000  # The same once its reply has begun; 0: then speech is always another utterance.
    max_utterance_seconds: float = 120.0  # The longest clip, pre-roll included.
    speculative_replies: bool = True  # Report pauses, for speculative replies and the end-of-turn model.
    by_voice: bool = True  # False: only `begin` opens an utterance (push-to-talk).

    def __post_init__(self) -> None:
        if not 0 < self.off_threshold <= self.threshold <= 1:
            raise ConfigError("off_threshold must be above 0 and at most threshold, threshold at most 1")
        if min(self.min_speech_ms, self.barge_in_ms, self.speculate_after_ms, self.min_silence_ms) <= 0:
            raise ConfigError("min_speech_ms, barge_in_ms, speculate_after_ms and min_silence_ms must be above 0")
        if min(self.pre_roll_ms, self.reopen_ms, self.retract_ms) < 0:
            raise ConfigError("pre_roll_ms, reopen_ms and retract_ms can't be negative")
        least_seconds = (self.pre_roll_ms + 2 * max(self.min_speech_ms, self.barge_in_ms)) / 1000 + 1
        if not least_seconds <= self.max_utterance_seconds < float("inf"):
            raise ConfigError(f"max_utterance_seconds must be a number of at least {least_seconds:g}")


class Endpointer:
    """Turns frames into the events of utterances.

    An utterance is open between `SpeechStarted` and `SpeechEnded`. After its end, its audio is kept and speech reopens
    it (`SpeechResumed`), until `commit`, until `reopen_ms` have passed, or until its clip reaches the limit. Once its
    reply has begun, `retract_ms` count instead, and FEW_WORDS_MS of the reply.
    """

    def __init__(self, settings: EndpointingSettings, silence: TurnSilence | None = None) -> None:
        """Begin without audio.

        Args:
            silence: what ends an utterance; it follows the user's pauses. None: always `min_silence_ms`.
        """
        self._settings = settings
        self._silence = silence or TurnSilence.fixed(settings.min_silence_ms)
        self._limit_samples = int(settings.max_utterance_seconds * SAMPLE_RATE)
        self._buffer = AudioBuffer(start=0)
        self._gate = VoiceGate(settings.threshold, settings.off_threshold)
        self._burst: _Burst | None = None
        self._utterance: _Utterance | None = None

    @property
    def voiced(self) -> bool:
        """Whether the last frame was voice."""
        return self._gate.voiced

    def is_loud(self, samples: Samples) -> bool:
        """Tell whether the next frame is loud enough to be voice; if not, its probability changes nothing."""
        return self._gate.is_loud(samples)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open, nothing can be reopened, and there is no voice."""
        return self._utterance is None and self._burst is None and not self.voiced

    @property
    def is_final(self) -> bool:
        """Whether the last utterance is over for good: nothing is open, and no speech can reopen anything."""
        return self._utterance is None

    @property
    def kept_samples(self) -> int:
        """The audio kept, in samples; at most the longest utterance."""
        return len(self._buffer)

    def push(self, samples: Samples, probability: float, playing: bool) -> list[EndpointEvent]:
        """Process the next frame and return the events that it causes.

        Args:
            samples: one frame at SAMPLE_RATE, shape (n,); it is copied.
            probability: of speech in it, 0 to 1.
            playing: whether a reply plays; if so, `barge_in_ms` applies and the noise floor does not adapt.
        """
        self._buffer.append(samples)
        self._gate.update(samples, probability, adapt=not playing)
        self._update_burst(len(samples))
        if self._open:
            events = self._continue_utterance(self._open, len(samples))
        else:
            events = self._wait_for_speech(len(samples), playing)
        self._trim_to_pre_roll()
        return events

    def replace_end(self, samples: Samples) -> None:
        """Replace the last samples pushed, shape (n,), by others; those that a clip holds, or no later one, stay."""
        self._buffer.replace_end(samples)

    def begin(self) -> list[EndpointEvent]:
        """Open an utterance at once, with or without voice; only `flush` or the limit ends it.

        An utterance that is already open is held open too. One that has ended is not reopened: speech with the key
        released is not meant for the program. `SpeechStarted.start` is where the key was pressed.
        """
        self.commit()
        if self._utterance:
            self._utterance.held = True
            return []
        start, self._burst = self._buffer.end, None  # Voice counts from the key press on.
        self._trim_to_pre_roll()
        self._utterance = _Utterance(start, start, self._silence.samples, held=True)
        return [SpeechStarted(start)]

    def flush(self) -> list[EndpointEvent]:
        """End the open utterance, if any, so that speech can't reopen it.

        Where `begin` opened it and no voice followed, `SpeechEnded.last_voiced` is `SpeechStarted.start`.
        """
        return [self._end_finally(self._open)] if self._open else []

    def apply_verdict(self, complete: bool) -> list[EndpointEvent]:
        """Apply the end-of-turn model's verdict on the present pause.

        A complete utterance ends after `complete_silence_ms`, an incomplete one after `max_silence_ms`, unless speech
        resumes.
        """
        utterance, settings = self._open, self._settings
        if utterance is None or not utterance.paused:
            return []
        incomplete = max(settings.max_silence_ms * SAMPLES_PER_MS, self._silence.samples)
        utterance.silence = settings.complete_silence_ms * SAMPLES_PER_MS if complete else incomplete
        utterance.judged = True
        return [] if self._burst else self._on_silence(utterance)

    def begin_reply(self) -> bool:
        """Note that the reply to the last utterance begins: only early speech reopens the utterance from now on.

        Returns:
            False if an utterance is open, because the user is still speaking; it is left alone.
        """
        if self._open:
            return False
        if self._utterance:
            self._utterance.answered = True
        return True

    def commit(self) -> bool:
        """Make the end of the last utterance final, so that speech can't reopen it.

        Returns:
            False if an utterance is open, because the user is still speaking; it is left alone.
        """
        if self._utterance is None:
            return True
        if self._utterance.ended_at is None:
            return False
        self._buffer.drop_before(self._utterance.ended_at)
        self._forget_utterance()
        self._trim_to_pre_roll()
        return True

    def reset(self, skipped: int = 0) -> None:
        """Drop all audio, and an open utterance, without an event; keep the noise floor.

        Args:
            skipped: samples of the stream that will not be pushed, because the microphone was muted.
        """
        self._buffer = AudioBuffer(self._buffer.end + skipped)
        self._gate.close()
        self._burst = None
        self._forget_utterance()

    @property
    def _open(self) -> "_Utterance | None":
        return self._utterance if self._utterance and self._utterance.ended_at is None else None

    @property
    def _onset(self) -> int:
        """The start of an utterance that would open now."""
        return self._burst.start if self._burst and self._settings.by_voice else self._buffer.end

    def _update_burst(self, frame_samples: int) -> None:
        """Start, extend or end the present burst of voice."""
        end = self._buffer.end
        if self.voiced:
            self._burst = self._burst or _Burst(start=end - frame_samples, end=end)
            self._burst.end = end
            self._burst.voiced += frame_samples
        elif self._burst and end - self._burst.end > GAP_MS * SAMPLES_PER_MS:
            self._burst = None

    def _wait_for_speech(self, frame_samples: int, playing: bool) -> list[EndpointEvent]:
        """Open an utterance, or reopen the last one, once there is enough voice."""
        if self._utterance and playing and not self._burst:
            self._utterance.played += frame_samples
        if not self._can_reopen(frame_samples):
            self.commit()
        burst, settings = self._burst, self._settings
        needed_ms = max(settings.barge_in_ms, settings.min_speech_ms) if playing else settings.min_speech_ms
        if burst is None or not settings.by_voice or burst.voiced < needed_ms * SAMPLES_PER_MS:
            return []
        if self._utterance:
            self._add_pause(self._utterance, burst)
            return [self._resume(self._utterance, burst)]
        self._utterance = _Utterance(burst.start, burst.end, self._silence.samples)
        return [SpeechStarted(burst.start)]

    def _can_reopen(self, frame_samples: int) -> bool:
        """Tell whether the present voice, or voice from now on, would reopen the last utterance."""
        utterance, settings = self._utterance, self._settings
        if utterance is None or utterance.ended_at is None:
            return False
        window_ms = settings.retract_ms if utterance.answered else settings.reopen_ms
        in_time = self._onset - utterance.ended_at < window_ms * SAMPLES_PER_MS
        few_words = utterance.played <= FEW_WORDS_MS * SAMPLES_PER_MS
        return in_time and few_words and len(self._buffer) + frame_samples <= self._limit_samples

    def _continue_utterance(self, utterance: "_Utterance", frame_samples: int) -> list[EndpointEvent]:
        events = self._on_voice(utterance, self._burst) if self._burst else self._on_silence(utterance)
        if utterance.ended_at is None:
            events += self._report_growth(utterance) + self._check_limit(utterance, frame_samples)
        return events

    def _report_growth(self, utterance: "_Utterance") -> list[EndpointEvent]:
        pieces = int(len(self._buffer) / (PIECE_SECONDS * SAMPLE_RATE))
        if utterance.paused or pieces <= utterance.reported_pieces:
            return []
        utterance.reported_pieces = pieces
        return [SpeechGoesOn(self._buffer.clip())]

    def _on_voice(self, utterance: "_Utterance", burst: "_Burst") -> list[EndpointEvent]:
        if burst.voiced < RESUME_MS * SAMPLES_PER_MS:
            return []
        self._add_pause(utterance, burst)
        utterance.last_voiced = burst.end
        return [self._resume(utterance, burst)] if utterance.paused else []

    def _on_silence(self, utterance: "_Utterance") -> list[EndpointEvent]:
        silence = self._buffer.end - utterance.last_voiced
        if silence >= utterance.silence and not utterance.held:
            return [self._end(utterance)]
        spoken = utterance.last_voiced > utterance.start
        is_pause = self._settings.speculative_replies and silence >= self._settings.speculate_after_ms * SAMPLES_PER_MS
        if utterance.paused or not (spoken and is_pause):
            return []
        utterance.paused = True
        return [SpeechPaused(self._buffer.clip(), utterance.last_voiced)]

    def _check_limit(self, utterance: "_Utterance", frame_samples: int) -> list[EndpointEvent]:
        """Warn shortly before the limit; end the utterance where the next frame does not fit."""
        if len(self._buffer) + frame_samples > self._limit_samples:
            ended = self._end_finally(utterance)
            return [ended, *self.begin()] if utterance.held else [ended]
        warning = max(self._limit_samples - WARNING_SECONDS * SAMPLE_RATE, 0.75 * self._limit_samples)
        if utterance.warned or len(self._buffer) < warning:
            return []
        utterance.warned = True
        return [SpeechTooLong(len(self._buffer) / SAMPLE_RATE)]

    def _add_pause(self, utterance: "_Utterance", burst: "_Burst") -> None:
        """Count the pause before a burst, unless a key or the end-of-turn model decided how long it might last."""
        pause = burst.start - utterance.last_voiced
        if pause > 0 and not (utterance.held or utterance.judged):
            utterance.longest_pause = max(utterance.longest_pause, pause)
            self._silence.add_pause(pause)

    def _resume(self, utterance: "_Utterance", burst: "_Burst") -> SpeechResumed:
        utterance.ended_at, utterance.paused = None, False
        utterance.answered, utterance.judged, utterance.played = False, False, 0
        utterance.last_voiced, utterance.silence = burst.end, self._silence.samples
        return SpeechResumed(burst.start)

    def _end(self, utterance: "_Utterance") -> SpeechEnded:
        utterance.ended_at, utterance.paused = self._buffer.end, False
        return SpeechEnded(self._buffer.clip(), utterance.last_voiced, self._buffer.end)

    def _end_finally(self, utterance: "_Utterance") -> SpeechEnded:
        """End an utterance so that nothing reopens it; later voice counts from here on."""
        ended, self._burst = self._end(utterance), None
        self.commit()
        return ended

    def _forget_utterance(self) -> None:
        """Keep the last utterance no longer; learn from it if silence ended it."""
        last, self._utterance = self._utterance, None
        if last and last.ended_at is not None and not last.judged and last.ended_at - last.last_voiced >= last.silence:
            self._silence.add_turn(last.longest_pause)

    def _trim_to_pre_roll(self) -> None:
        """Drop audio before the next utterance's pre-roll, where no utterance is kept."""
        if self._utterance is None:
            self._buffer.drop_before(self._onset - self._settings.pre_roll_ms * SAMPLES_PER_MS)


@dataclass
class _Burst:
    """Voice without interruption, in positions of the stream."""

    start: int
    end: int  # The end of the last voiced frame.
    voiced: int = 0  # The samples of all voiced frames.


@dataclass
class _Utterance:
    """An utterance that is open or can be reopened; its clip is the whole buffer."""

    start: int
    last_voiced: int
    silence: int  # Silence that ends it, in samples.
    held: bool = False  # Silence does not end it.
    paused: bool = False  # `SpeechPaused` was reported.
    judged: bool = False  # The end-of-turn model has decided on the present pause.
    answered: bool = False  # Its reply has begun.
    played: int = 0  # Samples that passed while its reply played.
    longest_pause: int = 0  # Of the pauses inside it, in samples.
    reported_pieces: int = 0  # Pieces of PIECE_SECONDS that were reported.
    warned: bool = False
    ended_at: int | None = None
