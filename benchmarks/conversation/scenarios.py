"""The scenarios of `python -m benchmarks.live`: conversations, and the figures that recordings of them give.

Each scenario runs conversations in programs of their own and returns figures beside their bars. Scenarios
of the pipeline alone are in `benchmarks.conversation.pipeline`.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conversation import pipeline, shown, turn_taking
from benchmarks.conversation.harness import PAUSE_SECONDS, Exchange, Harness, Question
from benchmarks.conversation.idle import MINUTES as IDLE_MINUTES
from benchmarks.conversation.idle import idle
from benchmarks.conversation.recordings import AUDIBLE, delay_of, voiced_span
from benchmarks.conversation.sound_card import RATE
from benchmarks.conversation.turn_taking import kept_parts, with_pause
from benchmarks.report import Figure, median, percentile, spread
from voxcli.audio.levels import dbfs
from voxcli.errors import VoxError

MEDIAN_MS, P95_MS, FIRST_TIMES = 1100.0, 1800.0, 1.5
RIGHT_SHARE = 20 / 32
PAUSES, PAUSE_MS = 50, 350
ECHO_DB, ECHO_MS, ECHO_MINUTES = -20.0, 60, 10.0
SPOKEN_SECONDS = 15.0  # length of a fixed reply
BACK_SECONDS = 5.0
DOWN_SECONDS = 2.0
STAGES = ("end-point", "engine", "synthesis", "devices")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    questions: Sequence[Question]
    turns: int | None = None  # turns of each scenario; None for the number of its bar
    minutes: float | None = None  # length of a conversation; None for that of the scenario's bar

    def repeated(self, least: int = 0) -> list[Question]:
        """Return the questions of a conversation, repeated where they are too few."""
        count = self.turns or max(least, len(self.questions))
        return [self.questions[number % len(self.questions)] for number in range(count)]


def run(names: Sequence[str], plan: Plan, harness: Harness, note: Callable[[str], None]) -> list[Figure]:
    """Measure scenarios; `note` shows the progress.

    Raises:
        VoxError: a conversation can't be held, or the recordings make no sense.
    """
    figures = []
    for name in names:
        note(f"{name} ...")
        before = os.getloadavg()[0]
        measured = SCENARIOS[name](harness, plan)
        load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
        figures += [replace(figure, load=load) for figure in measured]
    return figures


def voice(harness: Harness, plan: Plan) -> list[Figure]:
    """Measure voice to voice over spoken questions in one conversation, by stages, and how many replies are right."""
    questions = plan.repeated()
    kept = harness.folder / "voice"
    with harness.chat(kept) as chat:
        exchanges = [harness.ask(chat, question.clip) for question in questions]
    took = [harness.voice_to_voice_ms(exchange) for exchange in exchanges]
    times = [each for each in took if each is not None]
    answered = sum(bool(exchange.turns) and each is not None for exchange, each in zip(exchanges, took, strict=True))
    return [
        *_voice_figures(times, took[0], f"{answered} of {len(questions)}", every=answered == len(questions)),
        *_right(questions, exchanges),
        *_stages(exchanges, took),
        _first_words(kept, exchanges),
    ]


def _voice_figures(times: list[float], first: float | None, answered: str, *, every: bool) -> list[Figure]:
    others = median(times[1:])
    p95 = percentile(times, 0.95)
    return [
        Figure(
            "voice to voice, median",
            f"{median(times) / 1000:.2f} s",
            f"at most {MEDIAN_MS / 1000} s",
            median(times) <= MEDIAN_MS,
            spread(times),
        ),
        Figure("voice to voice, p95", f"{p95 / 1000:.2f} s", f"at most {P95_MS / 1000} s", p95 <= P95_MS),
        Figure(
            "first turn, against the others' median",
            f"{(first or float('nan')) / 1000:.2f} s, {others / 1000:.2f} s",
            f"at most {FIRST_TIMES} times",
            first is not None and not first > FIRST_TIMES * others,
        ),
        Figure("answered", answered, "all", every),
    ]


def _right(questions: Sequence[Question], exchanges: Sequence[Exchange]) -> list[Figure]:
    known = [pair for pair in zip(questions, exchanges, strict=True) if pair[0].answers]
    if not known:
        return []
    replies = [(question, exchange.turns[-1]["reply"] if exchange.turns else "") for question, exchange in known]
    right = sum(is_right(reply, question.answers) for question, reply in replies)
    values = {question.name: reply for question, reply in replies}
    share = f"at least {RIGHT_SHARE:.1%}"
    return [Figure("answered right", f"{right} of {len(known)}", share, right >= RIGHT_SHARE * len(known), values)]


def is_right(reply: str, answers: Sequence[str]) -> bool:
    """Return whether a reply contains one of the answers as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply.lower()) for answer in answers)


def _stages(exchanges: Sequence[Exchange], took: Sequence[float | None]) -> list[Figure]:
    """Split each time into stages, by the latencies that the conversation reports."""
    parts = [
        stages_of(exchange.turns[-1]["latency"], whole)
        for exchange, whole in zip(exchanges, took, strict=True)
        if whole is not None and exchange.turns and exchange.turns[-1]["latency"]["first_audio_ms"] is not None
    ]
    speculative_replies = [
        exchange.turns[-1]["latency"]["speculative_reply"] for exchange in exchanges if exchange.turns
    ]
    figures = []
    for stage in STAGES:
        values = [part[stage] for part in parts]
        words = f"median {median(values):.0f} ms, p95 {percentile(values, 0.95):.0f} ms"
        figures.append(Figure(f"of that: {stage}", words, values=spread(values)))
    used = f"{speculative_replies.count('used')} of {len(speculative_replies)} turns"
    return [*figures, Figure("speculative replies used", used, values={"speculative_replies": speculative_replies})]


def stages_of(latency: dict[str, Any], whole_ms: float) -> dict[str, float]:
    """Return the milliseconds of each of STAGES; they add up to the whole.

    Work on a speculative reply before the end point counts towards the end point, for which the user waits anyway.
    "devices" is the rest, which the conversation can't measure: both devices, the silence before the first sound of the
    synthesized voice, and the difference between recording and detector about the last voiced sample.
    """
    end = latency["endpoint_ms"]
    token = max(end, latency["first_token_ms"])
    audio = max(token, latency["first_audio_ms"])
    return dict(zip(STAGES, (end, token - end, audio - token, whole_ms - audio), strict=True))


def first_word(harness: Harness, plan: Plan) -> list[Figure]:
    """Check that the first word of each question is in the clip that the conversation kept."""
    kept = harness.folder / "first-word"
    with harness.chat(kept) as chat:
        exchanges = [harness.ask(chat, question.clip) for question in plan.repeated(32)]
    return [_first_words(kept, exchanges)]


def _first_words(kept: Path, exchanges: Sequence[Exchange]) -> Figure:
    found = [any(kept_parts(kept, exchange)[:1]) for exchange in exchanges]
    words = f"{sum(found)} of {len(found)}"
    return Figure("first word is in the clip", words, "all", all(found), {"found": found})


def pauses(harness: Harness, plan: Plan) -> list[Figure]:
    """Speak utterances with a pause in them: each has to become one turn with the whole utterance."""
    questions = plan.repeated(PAUSES)
    kept = harness.folder / "pauses"
    with harness.chat(kept) as chat:
        exchanges = [
            harness.ask(chat, with_pause(first.clip, second.clip, PAUSE_MS))
            for first, second in zip(questions, questions[1:] + questions[:1], strict=True)
        ]
        dropped = sum(turn["latency"]["dropped_speculative_replies"] for turn in chat.events("turn_ended"))
    single = [len(exchange.turns) == 1 for exchange in exchanges]
    whole = [bool(parts) and all(parts) for parts in (kept_parts(kept, exchange) for exchange in exchanges)]
    words = f"{sum(single)} of {len(single)} one turn, {sum(whole)} whole; {dropped} speculative replies dropped"
    values = {"one_turn": single, "whole": whole, "dropped_speculative_replies": dropped}
    return [Figure(f"pauses of {PAUSE_MS} ms in an utterance", words, "all one turn and whole", all(whole), values)]


def echo(harness: Harness, plan: Plan) -> list[Figure]:
    """Converse while the loudspeaker echoes into the microphone; count the turns without an utterance."""
    harness.card.leak(ECHO_DB, ECHO_MS)
    minutes = plan.minutes or ECHO_MINUTES
    exchanges: list[Exchange] = []
    speech = np.concatenate([question.clip.resampled(RATE).samples for question in plan.questions])
    with harness.chat(reply=speech[: round(SPOKEN_SECONDS * RATE)]) as chat:
        start, begun = harness.card.recording.position, time.monotonic()
        while time.monotonic() < begun + 60 * minutes:
            question = plan.questions[len(exchanges) % len(plan.questions)]
            exchanges.append(harness.ask(chat, question.clip))
        turns, stopped = len(chat.events("turn_ended")), len(chat.events("barge_in"))
        resumed = len(chat.events("resumed"))
        stop = harness.card.recording.position
    alone = turns - sum(bool(exchange.turns) for exchange in exchanges)
    delay_ms, level_db, spoken = _measured_echo(harness, exchanges[0], start, stop)
    words = f"{alone} turns by itself, {stopped} replies stopped, {resumed} ducked in {minutes:g} min"
    return [
        Figure(
            f"its own voice in the microphone, {level_db:.0f} dB, {delay_ms:.0f} ms",
            f"{words}; {len(exchanges)} questions, {spoken:.0f} s of replies",
            f"no turn in {ECHO_MINUTES:g} min",
            alone == stopped == 0,
            {"alone": alone, "stopped": stopped, "ducked": resumed, "questions": len(exchanges), "spoken": spoken},
        )
    ]


def _measured_echo(harness: Harness, exchange: Exchange, start: int, stop: int) -> tuple[float, float, float]:
    """Return the delay of the echo in ms, its level in dB, and how many seconds of replies were played."""
    reply = voiced_span(harness.loudspeaker(exchange.question.stop, exchange.stop))
    if reply is None:
        raise VoxError("no reply was played, so there is no echo to measure")
    first, last = (exchange.question.stop + position for position in reply)
    last = min(last, first + 2 * RATE)
    played = harness.loudspeaker(first, last)
    back = harness.card.recording.read(first, last + RATE // 2, 0)
    at, _ = delay_of(played, back)
    level = float(np.dot(played, back[at : at + len(played)]) / np.dot(played, played))
    whole = harness.loudspeaker(start, stop)
    blocks = whole[: len(whole) // (RATE // 100) * (RATE // 100)].reshape(-1, RATE // 100)
    spoken = float((np.abs(blocks).max(axis=1) > AUDIBLE).sum() / 100)
    return at * 1000 / RATE, dbfs(level**2), spoken


def restart(harness: Harness, plan: Plan) -> list[Figure]:
    """Kill the sound server during a conversation and restart it; measure until the devices are back."""
    with harness.chat() as chat:
        before = harness.ask(chat, plan.questions[0].clip)
        notices = len(chat.events("notice"))
        harness.card.stop()
        time.sleep(DOWN_SECONDS)
        harness.card.start()
        returned = harness.card.answers_since
        back = None
        while back is None and time.monotonic() < returned + 6 * BACK_SECONDS:
            time.sleep(0.05)
            notice = [event for event in chat.events("notice")[notices:] if event["text"].endswith("back")]
            back = notice[-1]["at"] - returned if notice else None
        time.sleep(PAUSE_SECONDS)
        after = harness.ask(chat, plan.questions[1 % len(plan.questions)].clip)
    numbers = [turn["turn"] for exchange in (before, after) for turn in exchange.turns]
    came = f"{max(0.0, back):.1f} s" if back is not None else "never"
    return [
        Figure(
            "sound server killed and restarted: the devices are back",
            f"{came} after its return; turns {numbers}",
            f"within {BACK_SECONDS:g} s, session intact",
            back is not None and back <= BACK_SECONDS and numbers == [1, 2],
            {"back_seconds": back, "turns": numbers},
        )
    ]


SCENARIOS: dict[str, Callable[[Harness, Plan], list[Figure]]] = {
    "voice": voice,
    "pipeline": lambda harness, plan: pipeline.pipeline(harness, plan.repeated()),
    "barge-in": lambda harness, plan: pipeline.barge_in(harness, plan.questions, plan.turns or pipeline.BARGE_INS),
    "noise": lambda harness, plan: pipeline.noises(harness, plan.questions, plan.turns or pipeline.NOISES),
    "pauses": pauses,
    "retract": lambda harness, plan: turn_taking.retract(harness, plan.repeated(turn_taking.RETRACTIONS)),
    "second-question": lambda harness, plan: turn_taking.second_question(
        harness, plan.questions, plan.turns or turn_taking.SECOND_QUESTIONS
    ),
    "first-word": first_word,
    "shown": lambda harness, plan: shown.shown(harness, plan.repeated()),
    "restart": restart,
    "echo": echo,
    "idle": lambda harness, plan: idle(harness, plan.minutes or IDLE_MINUTES),
}
