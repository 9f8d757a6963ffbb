"""Scenarios of end of turn: users who pause and go on, and users who ask something else while a reply plays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conversation.harness import Exchange, Harness, Question, noise
from benchmarks.conversation.pipeline import LONG_SECONDS, interrupt
from benchmarks.conversation.recordings import AUDIBLE, parts_kept, voiced_span
from benchmarks.conversation.sound_card import RATE
from benchmarks.report import Figure, median, spread
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.errors import VoxError

RETRACTIONS, SECOND_QUESTIONS = 100, 30
PAUSE_MS = (350, 900)  # Drawn at random in between.
OVER_MS = 300.0
REPLY_SECONDS = 2.0
LATER_SECONDS = 2.0  # From the beginning of a reply to the second question.
BLOCK_SAMPLES = RATE // 100


def with_pause(first: AudioClip, second: AudioClip, pause_ms: int) -> AudioClip:
    """Return two clips joined, with `pause_ms` of silence between their voices."""
    pause = np.zeros(first.sample_rate * pause_ms // 1000, np.float32)
    joined = np.concatenate((voiced_part(first), pause, voiced_part(second)))
    return AudioClip(joined, first.sample_rate)


def voiced_part(clip: AudioClip) -> Samples:
    """Return a clip from its first to its last voiced sample."""
    span = voiced_span(clip.samples)
    if span is None:
        raise VoxError("a question is silent")
    return clip.samples[span[0] : span[1] + 1]


def kept_parts(kept: Path, exchange: Exchange) -> list[bool]:
    """Return for each part of a question whether the clip of its only turn has it."""
    if len(exchange.turns) != 1:
        return []
    clip = read_audio(kept / f"turn-{exchange.turns[0]['turn']:04}.wav")
    return parts_kept(exchange.question.clip.resampled(clip.sample_rate).samples, clip.samples)


def retract(harness: Harness, questions: Sequence[Question]) -> list[Figure]:
    """Speak utterances with a long pause: each has to become one turn, whatever was answered in the pause."""
    kept = harness.folder / "retract"
    rng = np.random.default_rng(1)
    pairs = list(zip(questions, [*questions[1:], questions[0]], strict=True))
    pauses = [int(rng.integers(*PAUSE_MS, endpoint=True)) for _ in pairs]
    exchanges, retracted, over = [], [], []
    with harness.chat(kept, noise(REPLY_SECONDS)) as chat:
        for (first, second), pause_ms in zip(pairs, pauses, strict=True):
            before = len(chat.events("turn_retracted"))
            exchange = harness.ask(chat, with_pause(first.clip, second.clip, pause_ms))
            exchanges.append(exchange)
            retracted.append(len(chat.events("turn_retracted")) - before)
            if retracted[-1]:
                over.append(_played_over_ms(harness, exchange, voiced_part(second.clip)))
        stopped = len(chat.events("barge_in"))
    single = [len(exchange.turns) == 1 for exchange in exchanges]
    parts = [kept_parts(kept, exchange) for exchange in exchanges]
    whole = [bool(each) and all(each) for each in parts]
    words = f"{sum(single)} of {len(single)} one turn, {sum(whole)} whole; {sum(map(bool, retracted))} taken back"
    values: dict[str, Any] = {"one_turn": single, "whole": whole, "retracted": retracted, "pause_ms": pauses}
    values["stopped"] = stopped
    values["missing_parts"] = [[at for at, found in enumerate(each) if not found] for each in parts]
    values["overruns"] = sum(ended["overruns"] for ended in chat.events("session_ended"))
    low, high = PAUSE_MS
    return [
        Figure(f"pauses of {low} to {high} ms in an utterance", words, "all one turn and whole", all(whole), values),
        Figure(
            "reply played over the user before it was taken back, median",
            f"{median(over):.0f} ms of {len(over)}" if over else "none was taken back",
            f"at most {OVER_MS:.0f} ms",
            not over or median(over) <= OVER_MS,
            spread(over) if over else {},
        ),
    ]


def _played_over_ms(harness: Harness, exchange: Exchange, second: Samples) -> float:
    """Return how long the loudspeaker played while the user spoke the second part of an utterance."""
    voiced = voiced_span(harness.microphone(exchange.question))
    if voiced is None:
        raise VoxError("the question is not in the recording of the microphone")
    stop = exchange.question.start + voiced[1]
    played = harness.loudspeaker(stop - round(len(second) * RATE / SAMPLE_RATE), stop)
    blocks = played[: len(played) // BLOCK_SAMPLES * BLOCK_SAMPLES].reshape(-1, BLOCK_SAMPLES)
    return float((np.abs(blocks).max(axis=1, initial=0.0) > AUDIBLE).sum() * BLOCK_SAMPLES * 1000 / RATE)


def second_question(harness: Harness, questions: Sequence[Question], count: int = SECOND_QUESTIONS) -> list[Figure]:
    """Ask something else two seconds after a reply began: that is a barge-in, and takes nothing back."""
    kept = harness.folder / "second-question"
    with harness.fixed_reply_chat(noise(LONG_SECONDS), kept) as chat:
        harness.card.speak(questions[0].clip)
        for number in range(count):
            interrupt(harness, chat, questions[(number + 1) % len(questions)], number, LATER_SECONDS)
        stopped, retracted = len(chat.events("barge_in")), len(chat.events("turn_retracted"))
        turns = chat.events("turn_ended")
    alone = [
        bool(found := parts_kept(question.resampled(clip.sample_rate).samples, clip.samples))
        and all(found)
        and clip.seconds < question.seconds + LATER_SECONDS
        for turn in turns[1:]
        for clip in [read_audio(kept / f"turn-{turn['turn']:04}.wav")]
        for question in [questions[(turn["turn"] - 1) % len(questions)].clip]
    ]
    words = f"{stopped} of {count} a barge-in, {retracted} taken back; {sum(alone)} of {len(alone)} clips hold it alone"
    values = {"stopped": stopped, "retracted": retracted, "alone": alone}
    return [
        Figure(
            f"a second question {LATER_SECONDS:g} s after the answer began",
            words,
            "all a barge-in",
            stopped == count and not retracted and all(alone),
            values,
        )
    ]
