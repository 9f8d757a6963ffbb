"""`voxcli bench live`: conversations over devices that are recorded, and the figures that the recordings give.

Each scenario runs conversations in programs of their own and returns figures beside their bars. What the pipeline
does alone is in `benchmarks.conversation.pipeline`.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxcli.audio import AudioClip, Samples, read_audio
from voxcli.bench import interruptions
from benchmarks.conversation.recordings import AUDIBLE, delay_of, parts_kept, voiced_span
from benchmarks.report import Figure, median, percentile, spread
from benchmarks.conversation.sound_card import RATE
from benchmarks.conversation.harness import PAUSE_SECONDS, Exchange, Question, Studio
from voxcli.errors import VoxError

MEDIAN_MS, P95_MS, FIRST_TIMES = 1100.0, 1800.0, 1.5
RIGHT_SHARE = 20 / 32
PAUSES, PAUSE_MS = 50, 350
ECHO_DB, ECHO_MS, ECHO_MINUTES = -20.0, 60, 10.0
SPOKEN_SECONDS = 15.0  # of a reply of the instant engine
BACK_SECONDS = 5.0
DOWN_SECONDS = 2.0
STAGES = ("end-point", "engine", "synthesis", "devices")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    questions: Sequence[Question]
    turns: int | None = None  # of each scenario; None for as many as its bar asks for
    minutes: float = ECHO_MINUTES  # of the conversation with an echo

    def asked(self, least: int = 0) -> list[Question]:
        """Return the questions of a conversation, from the beginning again where they are too few."""
        count = self.turns or max(least, len(self.questions))
        return [self.questions[number % len(self.questions)] for number in range(count)]


def run(names: Sequence[str], plan: Plan, studio: Studio, note: Callable[[str], None]) -> list[Figure]:
    """Measure scenarios; `note` takes what is going on.

    Raises:
        VoxError: a conversation can't be held, or the recordings make no sense.
    """
    figures = []
    for name in names:
        note(f"{name} ...")
        before = os.getloadavg()[0]
        measured = SCENARIOS[name](studio, plan)
        load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
        figures += [replace(figure, load=load) for figure in measured]
    return figures


def voice(studio: Studio, plan: Plan) -> list[Figure]:
    """Measure voice to voice over spoken questions in one conversation, by stages; what was kept and right."""
    questions = plan.asked()
    kept = studio.folder / "voice"
    with studio.chat(kept) as talk:
        exchanges = [studio.ask(talk, question.clip) for question in questions]
    took = [studio.voice_to_voice_ms(exchange) for exchange in exchanges]
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
    """Tell whether one of the answers stands in a reply, as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", reply.lower()) for answer in answers)


def _stages(exchanges: Sequence[Exchange], took: Sequence[float | None]) -> list[Figure]:
    """Part each time into what it was spent on, by the conversation's own record."""
    parts = [
        stages_of(exchange.turns[-1]["latency"], whole)
        for exchange, whole in zip(exchanges, took, strict=True)
        if whole is not None and exchange.turns and exchange.turns[-1]["latency"]["first_audio_ms"] is not None
    ]
    drafts = [exchange.turns[-1]["latency"]["draft"] for exchange in exchanges if exchange.turns]
    figures = []
    for stage in STAGES:
        values = [part[stage] for part in parts]
        words = f"median {median(values):.0f} ms, p95 {percentile(values, 0.95):.0f} ms"
        figures.append(Figure(f"of that: {stage}", words, values=spread(values)))
    used = f"{drafts.count('used')} of {len(drafts)} turns"
    return [*figures, Figure("drafts used", used, values={"drafts": drafts})]


def stages_of(latency: dict[str, Any], whole_ms: float) -> dict[str, float]:
    """Return the milliseconds of each of STAGES; they add up to the whole.

    What a draft did before the end point counts as the end point's: the user waited for that anyway. "devices" is
    what the conversation can't see: both devices, the silence with which a voice begins, and by how much the
    recording and the detector differ about the last voice.
    """
    end = latency["endpoint_ms"]
    token = max(end, latency["first_token_ms"])
    audio = max(token, latency["first_audio_ms"])
    return dict(zip(STAGES, (end, token - end, audio - token, whole_ms - audio), strict=True))


def first_word(studio: Studio, plan: Plan) -> list[Figure]:
    """Look whether the first word of each question is in what the conversation kept of it."""
    kept = studio.folder / "first-word"
    with studio.chat(kept) as talk:
        exchanges = [studio.ask(talk, question.clip) for question in plan.asked(32)]
    return [_first_words(kept, exchanges)]


def _first_words(kept: Path, exchanges: Sequence[Exchange]) -> Figure:
    found = [any(_parts(kept, exchange)[:1]) for exchange in exchanges]
    words = f"{sum(found)} of {len(found)}"
    return Figure("first word is in the clip", words, "all", all(found), {"found": found})


def _parts(kept: Path, exchange: Exchange) -> list[bool]:
    """Return which parts of a question are in the clip of its only turn."""
    if len(exchange.turns) != 1:
        return []
    clip = read_audio(kept / f"turn-{exchange.turns[0]['turn']:04}.wav")
    return parts_kept(exchange.said.clip.resampled(clip.sample_rate).samples, clip.samples)


def pauses(studio: Studio, plan: Plan) -> list[Figure]:
    """Speak utterances with a pause in them, drafts on: each has to be one turn with all that was said."""
    questions = plan.asked(PAUSES)
    kept = studio.folder / "pauses"
    with studio.chat(kept) as talk:
        exchanges = [
            studio.ask(talk, with_pause(first.clip, second.clip, PAUSE_MS))
            for first, second in zip(questions, questions[1:] + questions[:1], strict=True)
        ]
        dropped = sum(turn["latency"]["dropped_drafts"] for turn in talk.events("turn_ended"))
    single = [len(exchange.turns) == 1 for exchange in exchanges]
    whole = [bool(parts) and all(parts) for parts in (_parts(kept, exchange) for exchange in exchanges)]
    words = f"{sum(single)} of {len(single)} one turn, {sum(whole)} whole; {dropped} drafts dropped"
    values = {"one_turn": single, "whole": whole, "dropped_drafts": dropped}
    return [Figure(f"pauses of {PAUSE_MS} ms in an utterance", words, "all one turn and whole", all(whole), values)]


def with_pause(first: AudioClip, second: AudioClip, pause_ms: int) -> AudioClip:
    """Return two clips with so much silence between the last voice of one and the first of the other."""
    return AudioClip(
        np.concatenate((_voice(first), np.zeros(first.sample_rate * pause_ms // 1000, np.float32), _voice(second))),
        first.sample_rate,
    )


def _voice(clip: AudioClip) -> Samples:
    span = voiced_span(clip.samples)
    if span is None:
        raise VoxError("a question is silent")
    return clip.samples[span[0] : span[1] + 1]


def echo(studio: Studio, plan: Plan) -> list[Figure]:
    """Converse while the microphone hears the loudspeaker; count the turns that nobody spoke."""
    studio.card.leak(ECHO_DB, ECHO_MS)
    exchanges: list[Exchange] = []
    speech = np.concatenate([question.clip.resampled(RATE).samples for question in plan.questions])
    with studio.chat(reply=speech[: round(SPOKEN_SECONDS * RATE)]) as talk:
        start, begun = studio.card.recording.position, time.monotonic()
        while time.monotonic() < begun + 60 * plan.minutes:
            question = plan.questions[len(exchanges) % len(plan.questions)]
            exchanges.append(studio.ask(talk, question.clip))
        turns, stopped = len(talk.events("turn_ended")), len(talk.events("barge_in"))
        resumed = len(talk.events("resumed"))
        stop = studio.card.recording.position
    alone = turns - sum(bool(exchange.turns) for exchange in exchanges)
    delay_ms, level_db, spoken = _echo_heard(studio, exchanges[0], start, stop)
    words = f"{alone} turns by itself, {stopped} replies stopped, {resumed} ducked in {plan.minutes:g} min"
    return [
        Figure(
            f"its own voice in the microphone, {level_db:.0f} dB, {delay_ms:.0f} ms",
            f"{words}; {len(exchanges)} questions, {spoken:.0f} s of replies",
            f"no turn in {ECHO_MINUTES:g} min",
            alone == stopped == 0,
            {"alone": alone, "stopped": stopped, "ducked": resumed, "questions": len(exchanges), "spoken": spoken},
        )
    ]


def _echo_heard(studio: Studio, exchange: Exchange, start: int, stop: int) -> tuple[float, float, float]:
    """Return the delay of the echo in ms, its level in dB, and how many seconds replies were heard."""
    reply = voiced_span(studio.played(exchange.said.stop, exchange.stop))
    if reply is None:
        raise VoxError("there was no reply to hear an echo of")
    first, last = (exchange.said.stop + position for position in reply)
    last = min(last, first + 2 * RATE)
    said = studio.played(first, last)
    back = studio.card.recording.read(first, last + RATE // 2, 0)
    at, _ = delay_of(said, back)
    level = float(np.dot(said, back[at : at + len(said)]) / np.dot(said, said))
    played = studio.played(start, stop)
    blocks = played[: len(played) // (RATE // 100) * (RATE // 100)].reshape(-1, RATE // 100)
    spoken = float((np.abs(blocks).max(axis=1) > AUDIBLE).sum() / 100)
    return at * 1000 / RATE, 20 * float(np.log10(max(level, 1e-6))), spoken


def restart(studio: Studio, plan: Plan) -> list[Figure]:
    """Kill the sound server in a conversation and start it again; measure until the devices are back."""
    with studio.chat() as talk:
        before = studio.ask(talk, plan.questions[0].clip)
        notices = len(talk.events("notice"))
        studio.card.stop()
        time.sleep(DOWN_SECONDS)
        studio.card.start()
        returned = studio.card.answers_since
        back = None
        while back is None and time.monotonic() < returned + 6 * BACK_SECONDS:
            time.sleep(0.05)
            told = [event for event in talk.events("notice")[notices:] if event["text"].endswith("back")]
            back = told[-1]["at"] - returned if told else None
        time.sleep(PAUSE_SECONDS)
        after = studio.ask(talk, plan.questions[1 % len(plan.questions)].clip)
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


SCENARIOS: dict[str, Callable[[Studio, Plan], list[Figure]]] = {
    "voice": voice,
    "pipeline": lambda studio, plan: interruptions.pipeline(studio, plan.asked()),
    "barge-in": lambda studio, plan: interruptions.barge_in(
        studio, plan.questions, plan.turns or interruptions.BARGE_INS
    ),
    "noise": lambda studio, plan: interruptions.noises(studio, plan.questions, plan.turns or interruptions.NOISES),
    "pauses": pauses,
    "first-word": first_word,
    "restart": restart,
    "echo": echo,
}
