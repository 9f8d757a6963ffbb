"""Runs labelled turns through voxcli's endpointing, and sweeps the policies that the same pauses allow.

The definitions are those of livekit/eot-bench. Pauses of 0.2 to 5 s inside a turn count. A pause in which the turn is
ended is a false cut-off. The delay runs from the labelled end of speech. Unlike there, pauses are found by voxcli's own
voice-activity detection, so its errors are in the figures.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.turns.recordings import LabelledTurn, Span
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples
from voxcli.audio.vad import FRAME_SAMPLES, Detector
from voxcli.chat.events import EndpointEvent, SpeechEnded, SpeechPaused, SpeechResumed
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings

SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 5.0  # Pauses that count.
TAIL_SECONDS = 6.0  # Silence after each recording; longer than any policy waits.
SLACK_SECONDS = 0.15  # The detector may see voice later, or a little earlier, than the label says.
FRAME_MS = FRAME_SAMPLES * 1000 / SAMPLE_RATE
NEVER_MS = 60_000

THRESHOLDS = [round(0.05 * step, 2) for step in range(1, 20)] + [0.97, 0.98, 0.99]
DELAYS_MS = range(200, 1001, 50)  # Silence that ends a complete turn.
TIMEOUTS_MS = [*range(300, 1000, 100), *range(1000, 4001, 250)]  # Silence that ends any other turn.

Probability = Callable[[AudioClip], float]


@dataclass(frozen=True)
class TurnFrames:
    """A turn in the detector's frames, followed by TAIL_SECONDS of silence."""

    turn: LabelledTurn
    frames: Samples  # Shape (n, FRAME_SAMPLES).
    speech: list[float]  # The probability of speech in each frame.


@dataclass(frozen=True)
class Pause:
    """A pause as the endpointer sees it."""

    at: float  # The end of the voice before it, in seconds.
    silence_ms: float  # Infinite after the last word.
    complete: float  # The model's probability that the turn is over; 0 without a model.


@dataclass(frozen=True)
class Observed:
    """A turn and its pauses."""

    turn: LabelledTurn
    pauses: tuple[Pause, ...]


@dataclass(frozen=True)
class Rate:
    """How a policy does over all turns."""

    cut: int  # Labelled pauses in which a turn was ended.
    pauses: int
    elsewhere: int  # Ends where no pause is labelled.
    delays_ms: tuple[float, ...]  # Of each turn whose end was detected.

    @property
    def share(self) -> float:
        return self.cut / self.pauses if self.pauses else 0.0

    @property
    def mean_delay_ms(self) -> float:
        return sum(self.delays_ms) / len(self.delays_ms) if self.delays_ms else math.inf


@dataclass(frozen=True)
class Policy:
    """When a turn ends, given the silence and the model's probability."""

    threshold: float  # Above 1: silence alone.
    delay_ms: float
    timeout_ms: float

    def fires_after_ms(self, complete: float) -> float:
        """Return the silence after which the turn ends: whole frames."""
        wait_ms = min(self.delay_ms, self.timeout_ms) if complete > self.threshold else self.timeout_ms
        return math.ceil(wait_ms / FRAME_MS) * FRAME_MS


def detect_speech(turn: LabelledTurn) -> TurnFrames:
    """Return a turn in frames, with the probability of speech in each."""
    samples = np.append(turn.clip.samples, np.zeros(round(TAIL_SECONDS * SAMPLE_RATE), np.float32))
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    detector = Detector()
    return TurnFrames(turn, frames, [detector.probability(frame) for frame in frames])


def run(
    turns: Iterable[TurnFrames],
    open_endpointer: Callable[[], Endpointer],
    is_complete: Callable[[AudioClip], bool] | None = None,
    verdict_ms: float = 0.0,
) -> Rate:
    """Run turns through endpointing, each with an endpointer of its own.

    Args:
        is_complete: the end-of-turn model; None for silence alone.
        verdict_ms: the time that the model takes to judge a pause.
    """
    outcomes = [_outcome(each.turn, _ends(each, open_endpointer(), is_complete, verdict_ms)) for each in turns]
    return _total(outcomes)


def observe(turn: TurnFrames, probability: Probability | None) -> Observed:
    """Return the pauses of a turn, with the model's probability for each."""
    settings = EndpointingSettings(min_silence_ms=NEVER_MS, max_silence_ms=NEVER_MS, max_utterance_seconds=1800.0)
    endpointer = Endpointer(settings)
    found: list[SpeechPaused] = []
    pauses: list[Pause] = []

    def close(silence_ms: float) -> None:
        at = found[-1].last_voiced / SAMPLE_RATE
        complete = probability(found[-1].clip) if probability else 0.0
        pauses.append(Pause(at, silence_ms, complete))

    for event in _events(turn, endpointer):
        if isinstance(event, SpeechPaused):
            found.append(event)
        elif isinstance(event, SpeechResumed):
            close((event.at - found[-1].last_voiced) * 1000 / SAMPLE_RATE)
    if len(found) > len(pauses):
        close(math.inf)
    return Observed(turn.turn, tuple(pauses))


def rate(observed: Iterable[Observed], policy: Policy) -> Rate:
    """Return how a policy would do on the pauses that were observed."""
    outcomes = []
    for each in observed:
        fires = [(pause, policy.fires_after_ms(pause.complete)) for pause in each.pauses]
        ends = [pause.at + fire_ms / 1000 for pause, fire_ms in fires if fire_ms <= pause.silence_ms]
        outcomes.append(_outcome(each.turn, ends))
    return _total(outcomes)


def sweep(observed: Sequence[Observed], *, model: bool, verdict_ms: float = 0.0) -> list[tuple[Policy, Rate]]:
    """Return all policies of silence alone, or of the model, with how they do.

    Args:
        verdict_ms: the time that the model takes; no turn ends on its word sooner than that after the pause began.
    """
    if not model:
        policies = [Policy(math.inf, wait_ms, wait_ms) for wait_ms in sorted({*DELAYS_MS, *TIMEOUTS_MS})]
    else:
        soonest_ms = EndpointingSettings().speculate_after_ms + verdict_ms
        delays_ms = sorted({max(delay_ms, soonest_ms) for delay_ms in DELAYS_MS})
        grid = product(THRESHOLDS, delays_ms, TIMEOUTS_MS)
        policies = [Policy(*each) for each in grid if each[1] <= each[2]]
    return [(policy, rate(observed, policy)) for policy in policies]


def fewest_cuts(swept: Iterable[tuple[Policy, Rate]], most_delay_ms: float) -> tuple[Policy, Rate] | None:
    """Return the policy with the fewest false cut-offs within a mean delay, then the shortest delay."""
    within = [each for each in swept if each[1].mean_delay_ms <= most_delay_ms]
    return min(within, key=lambda each: (each[1].share, each[1].mean_delay_ms), default=None)


def shortest_delay(swept: Iterable[tuple[Policy, Rate]], most_share: float) -> tuple[Policy, Rate] | None:
    """Return the policy with the shortest mean delay within a share of false cut-offs, then the fewest of them."""
    within = [each for each in swept if each[1].share <= most_share]
    return min(within, key=lambda each: (each[1].mean_delay_ms, each[1].share), default=None)


@dataclass(frozen=True)
class _Outcome:
    cut: frozenset[Span]
    pauses: int
    elsewhere: int
    delay_ms: float | None


def _events(turn: TurnFrames, endpointer: Endpointer) -> Iterable[EndpointEvent]:
    for frame, speech in zip(turn.frames, turn.speech, strict=True):
        yield from endpointer.push(frame, speech, playing=False)


def _ends(
    turn: TurnFrames, endpointer: Endpointer, is_complete: Callable[[AudioClip], bool] | None, verdict_ms: float
) -> list[float]:
    """Return when a turn was ended, in seconds; more than once if it was cut off."""
    verdict, due, ends = False, -1, []
    for number, (frame, speech) in enumerate(zip(turn.frames, turn.speech, strict=True)):
        events = endpointer.push(frame, speech, playing=False)
        if number == due:
            events += endpointer.apply_verdict(verdict)
        for event in events:
            if isinstance(event, SpeechEnded):
                ends.append(event.at / SAMPLE_RATE)
            elif isinstance(event, SpeechPaused) and is_complete:
                verdict, due = is_complete(event.clip), number + max(1, math.ceil(verdict_ms / FRAME_MS))
            elif isinstance(event, SpeechResumed):
                due = -1
    return ends


def _outcome(turn: LabelledTurn, ends: Sequence[float]) -> _Outcome:
    early = [end for end in ends if end < turn.end.start - SLACK_SECONDS]
    late = [end for end in ends if end >= turn.end.start - SLACK_SECONDS]
    spans = [_span_at(turn, end) for end in early]
    counted = {span for span in turn.pauses if SHORTEST_SECONDS <= span.seconds <= LONGEST_SECONDS}
    cut = frozenset(span for span in spans if span is not None and span in counted)
    delay_ms = round((late[0] - turn.end.start) * 1000, 1) if late else None
    return _Outcome(cut, len(counted), spans.count(None), delay_ms)


def _span_at(turn: LabelledTurn, at: float) -> Span | None:
    """Return the labelled silence at a time, with some slack; None where there is none."""
    spans = (*turn.pauses, turn.end)
    return next((s for s in spans if s.start - SLACK_SECONDS <= at <= s.end + SLACK_SECONDS), None)


def _total(outcomes: Sequence[_Outcome]) -> Rate:
    return Rate(
        sum(len(each.cut) for each in outcomes),
        sum(each.pauses for each in outcomes),
        sum(each.elsewhere for each in outcomes),
        tuple(each.delay_ms for each in outcomes if each.delay_ms is not None),
    )
