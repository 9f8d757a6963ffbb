"""Invariants of the endpointer under random input."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.listening import FRAME, SILENCE, VOICE, Listening, span
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.chat.events import (
    EndpointEvent,
    SpeechEnded,
    SpeechGoesOn,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
)
from voxcli.chat.speech.endpointing import FEW_WORDS_MS, Endpointer, EndpointingSettings


def samples(ms: int) -> int:
    return ms * SAMPLE_RATE // 1000


class Witness:
    """Checks every event of an endpointer against the input so far."""

    def __init__(self, settings: EndpointingSettings) -> None:
        self.settings = settings
        self.listening = Listening(settings)
        self.voiced: list[bool] = []  # For each frame, by the thresholds alone.
        self.boundaries = [0]  # Positions from which voice counts again: final ends.
        self.state = "none"  # "open", "paused" or "ended"
        self.held = False
        self.answered = False  # the reply to the last utterance has begun
        self.playing = False
        self.played = 0  # Samples since the last end in which a reply played and nobody spoke.
        self.silence_ms = settings.min_silence_ms
        self.first = 0  # The first sample of the utterance's clips.
        self.start = 0
        self.pieces = 0  # Pieces of five seconds reported of this utterance.
        self.warnings = 0
        self.clips: list[tuple[int, int]] = []  # whole utterances; the last one may be open again

    def hear(self, probability: float) -> None:
        last = bool(self.voiced) and self.voiced[-1]
        self.voiced.append(probability >= (self.settings.off_threshold if last else self.settings.threshold))
        events = self.listening.hear(probability, playing=self.playing)
        if self.playing and self.state == "ended" and not self.voiced[-1]:
            self.played += FRAME
        self._look(events)

    def do(self, action: str) -> None:
        end_pointer = self.listening.end_pointer
        if action == "commit":
            assert end_pointer.commit() == (self.state not in {"open", "paused"})
            self.state = "none" if self.state == "ended" else self.state
        elif action == "reply":
            assert end_pointer.begin_reply() == (self.state not in {"open", "paused"})
            self.answered = self.answered or self.state == "ended"
            self.playing = self.playing or self.state not in {"open", "paused"}
        elif action == "played":
            self.playing = False
        elif action == "begin":
            was_open = self.state in {"open", "paused"}
            self.held = True
            self.state = self.state if was_open else "none"
            events = end_pointer.begin()
            assert len(events) == (0 if was_open else 1)
            if not was_open:
                self.boundaries.append(self.listening.position)
            self._look(events)
        elif action == "flush":
            was_open = self.state in {"open", "paused"}
            events = end_pointer.flush()
            assert len(events) == was_open
            self._look(events, for_good=True)
        else:
            if self.state == "paused":
                longest = max(self.settings.max_silence_ms, self.settings.min_silence_ms)
                self.silence_ms = self.settings.complete_silence_ms if action == "complete" else longest
            self._look(end_pointer.apply_verdict(action == "complete"))

    def _look(self, events: list[EndpointEvent], *, for_good: bool = False) -> None:
        for event in events:
            match event:
                case SpeechStarted(start):
                    self._started(start)
                case SpeechPaused(clip, last_voiced):
                    assert self.state == "open"
                    assert self.settings.speculative_replies
                    self._check_clip(clip, last_voiced)
                    assert self.listening.position - last_voiced >= samples(self.settings.speculate_after_ms)
                    self.state = "paused"
                case SpeechGoesOn(clip):
                    assert self.state == "open"
                    assert len(clip.samples) == self.listening.position - self.first
                    assert len(clip.samples) // samples(5000) > self.pieces
                    self.pieces = len(clip.samples) // samples(5000)
                case SpeechResumed(at):
                    self._resumed(at)
                case SpeechEnded(clip, last_voiced, at):
                    assert at == self.listening.position
                    self._ended(clip, last_voiced, for_good=for_good)
                case SpeechTooLong(seconds):
                    assert self.state in {"open", "paused"}
                    self.warnings += 1
                    assert self.warnings == 1
                    assert seconds <= self.settings.max_utterance_seconds
        self._check_waiting()

    def _started(self, start: int) -> None:
        assert self.state in {"none", "ended"}
        if self.state == "ended" and not self.held and self.settings.max_utterance_seconds > 100:
            is_late = start - self.clips[-1][1] >= samples(self._window_ms)
            assert is_late or (self.answered and self.played + 3 * FRAME > samples(FEW_WORDS_MS))
        self.answered, self.played = False, 0
        earliest = max(start - samples(self.settings.pre_roll_ms), self.clips[-1][1] if self.clips else 0)
        self.first, self.start, self.state, self.warnings = earliest, start, "open", 0
        self.pieces = 0
        self.silence_ms = self.settings.min_silence_ms
        if not self.held:
            run = next(run for run in self._runs() if run[0] == start)
            assert self._voiced_ms(run) >= self._needed_ms
            assert self.settings.by_voice

    @property
    def _window_ms(self) -> int:
        return self.settings.retract_ms if self.answered else self.settings.reopen_ms

    @property
    def _needed_ms(self) -> int:
        least = self.settings.min_speech_ms
        return max(least, self.settings.barge_in_ms) if self.playing else least

    def _resumed(self, at: int) -> None:
        assert self.state in {"paused", "ended"}
        run = next(run for run in self._runs() if run[0] == at or (run[0] < at < run[1]))
        if self.state == "ended":
            assert self._voiced_ms(run) >= self._needed_ms
            assert at - self.clips.pop()[1] < samples(self._window_ms)
            assert not self.answered or self.played <= samples(FEW_WORDS_MS) + 3 * FRAME
        self.answered, self.played = False, 0
        self.state, self.silence_ms = "open", self.settings.min_silence_ms

    def _ended(self, clip: AudioClip, last_voiced: int, *, for_good: bool) -> None:
        assert self.state in {"open", "paused"}
        self._check_clip(clip, last_voiced)
        at_limit = len(clip.samples) + FRAME > self.settings.max_utterance_seconds * SAMPLE_RATE
        if not (for_good or at_limit):
            assert not self.held
            assert self.listening.position - last_voiced >= samples(self.silence_ms)
        silent = self.listening.position - last_voiced >= samples(self.silence_ms) and not self.held
        self.state = "none" if for_good or (at_limit and not silent) else "ended"
        if for_good or at_limit:
            self.boundaries.append(self.listening.position)
        if for_good:
            self.held = False
        self.clips.append((self.first, self.listening.position))

    def _check_clip(self, clip: AudioClip, last_voiced: int) -> None:
        assert len(clip.samples) == self.listening.position - self.first
        assert span(clip) == ((self.first, self.listening.position) if len(clip.samples) else (0, 0))
        assert len(clip.samples) <= self.settings.max_utterance_seconds * SAMPLE_RATE
        speech = [run[1] for run in self._runs() if self._voiced_ms(run) > 50 and run[1] > self.start]
        assert last_voiced == (speech[-1] if speech else self.start)

    def _check_waiting(self) -> None:
        """Check that no event is late and that no more audio is kept than needed."""
        kept = self.listening.end_pointer.kept_samples
        needed_ms = max(self.settings.min_speech_ms, self.settings.barge_in_ms)
        waiting = samples(self.settings.pre_roll_ms + 2 * needed_ms) + FRAME
        assert kept <= (waiting if self.state == "none" else self.settings.max_utterance_seconds * SAMPLE_RATE)
        if self.state in {"open", "paused"} and not self.held:
            speech = [run[1] for run in self._runs() if self._voiced_ms(run) > 50]
            assert self.listening.position - speech[-1] < samples(self.silence_ms) + 3 * FRAME

    def _runs(self) -> list[tuple[int, int]]:
        """Return the ranges of voice with gaps of at most one frame, between boundaries."""
        runs: list[tuple[int, int]] = []
        for index in np.flatnonzero(self.voiced):
            begin, end = int(index) * FRAME, int(index + 1) * FRAME
            joined = (
                runs and begin - runs[-1][1] <= FRAME and not any(runs[-1][1] <= b <= begin for b in self.boundaries)
            )
            if joined:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((begin, end))
        return runs

    def _voiced_ms(self, run: tuple[int, int]) -> float:
        return sum(self.voiced[run[0] // FRAME : run[1] // FRAME]) * FRAME * 1000 / SAMPLE_RATE

    def finish(self) -> None:
        """Check that all speech is in exactly one utterance."""
        self.do("played")
        self.do("flush")
        assert self.state in {"none", "ended"}
        assert all(a[1] <= b[0] for a, b in zip(self.clips, self.clips[1:], strict=False))
        for run in self._runs():
            if self.settings.by_voice and self._voiced_ms(run) >= max(
                self.settings.min_speech_ms, self.settings.barge_in_ms
            ):
                assert sum(first <= run[0] and run[1] <= end for first, end in self.clips) == 1


ACTIONS = st.sampled_from(
    ["commit", "commit", "complete", "incomplete", "begin", "flush", "reply", "reply", "reply", "played"]
)
HEARD = st.tuples(st.sampled_from([0.0, 0.4, 0.6, 1.0]), st.one_of(st.integers(1, 3), st.integers(4, 40)))
SCRIPTS = st.lists(st.one_of(HEARD, HEARD, HEARD, ACTIONS), min_size=5, max_size=40)
SETTINGS = st.builds(
    EndpointingSettings,
    min_speech_ms=st.sampled_from([50, 200, 300]),
    speculate_after_ms=st.sampled_from([96, 200, 800]),
    min_silence_ms=st.sampled_from([150, 600]),
    complete_silence_ms=st.sampled_from([100, 250]),
    max_silence_ms=st.sampled_from([300, 1500]),
    pre_roll_ms=st.sampled_from([0, 100, 500]),
    reopen_ms=st.sampled_from([0, 300, 5000]),
    retract_ms=st.sampled_from([0, 300, 1000, 3000]),
    max_utterance_seconds=st.sampled_from([2.5, 5.0, 120.0]),
    speculative_replies=st.booleans(),
    by_voice=st.sampled_from([True, True, False]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SETTINGS, SCRIPTS)
def test_nothing_is_lost_doubled_or_ended_twice(
    chosen: EndpointingSettings, script: list[tuple[float, int] | str]
) -> None:
    witness = Witness(chosen)
    for step in script:
        if isinstance(step, str):
            witness.do(step)
        else:
            for _ in range(step[1]):
                witness.hear(step[0])
    witness.finish()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([VOICE, SILENCE]), min_size=20, max_size=150), st.lists(st.integers(1, 1200), min_size=5)
)
def test_the_size_of_the_frames_loses_nothing(probabilities: list[float], sizes: list[int]) -> None:
    end_pointer, position, at = Endpointer(EndpointingSettings(reopen_ms=0)), 0, 0
    for index, probability in enumerate([*probabilities, *[SILENCE] * 300]):
        size = sizes[index % len(sizes)]
        for event in end_pointer.push(
            np.arange(position, position + size, dtype=np.float32), probability, playing=False
        ):
            if isinstance(event, SpeechEnded):
                first, end = span(event.clip)
                assert at <= first < event.last_voiced <= end == event.at == position + size
                at = end
        position += size
