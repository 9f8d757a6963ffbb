"""Scenarios with a fixed, immediate reply: the latency that the pipeline adds, and how replies are interrupted."""

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.conversation.chat_process import ChatProcess
from benchmarks.conversation.harness import ANSWER_SECONDS, PAUSE_SECONDS, REPLY_SECONDS, Harness, Question, noise
from benchmarks.conversation.recordings import continuity, silent_after, voiced_span
from benchmarks.conversation.sound_card import MARGIN_SECONDS, RATE, SpokenClip
from benchmarks.report import Figure, median, percentile, spread
from voxcli.audio.clip import AudioClip, Samples
from voxcli.errors import VoxError

PIPELINE_MS = 60.0
DUCKED_MS, SILENT_MS = 150.0, 420.0
BARGE_INS, NOISES = 20, 50
BARGE_IN_SECONDS = 1.2  # After the reply began; speech within a second of the end of turn takes the turn back.
LONG_SECONDS = 40.0  # length of a reply that is interrupted
NOISE_MS = 120
NOISES_PER_REPLY = 25
GAP_MS = 20  # silence that separates two pieces of a reply; a duck lasts ten times as long


def pipeline(harness: Harness, questions: Sequence[Question]) -> list[Figure]:
    """Measure voice to voice, less the silence that ends a turn and less the latency of the devices."""
    trips = [harness.round_trip_ms()]
    with harness.fixed_reply_chat(noise(REPLY_SECONDS)) as chat:
        exchanges = [harness.ask(chat, question.clip) for question in questions]
    trips.append(harness.round_trip_ms())
    round_trip = median(trips)
    whole, added = [], []
    for exchange in exchanges:
        took = harness.voice_to_voice_ms(exchange)
        if took is not None and exchange.ended:
            waited = exchange.ended[-1]
            whole.append(took)
            added.append(took - (waited["sample"] - waited["last_voiced_sample"]) / 16 - round_trip)
    values = {**spread(added), "voice_to_voice": spread(whole), "round_trip_ms": [round(trip, 1) for trip in trips]}
    words = f"{median(added):.0f} ms (p95 {percentile(added, 0.95):.0f} ms) of {len(added)}"
    return [
        Figure("the devices' round trip, by pass-through", f"{round_trip:.0f} ms", values={"all_ms": trips}),
        Figure(
            "what the pipeline adds, median",
            f"{words}; voice to voice {median(whole):.0f} ms",
            f"at most {PIPELINE_MS:.0f} ms",
            len(added) == len(questions) and median(added) <= PIPELINE_MS,
            values,
        ),
    ]


def barge_in(harness: Harness, questions: Sequence[Question], count: int = BARGE_INS) -> list[Figure]:
    """Measure how fast a voice ducks and ends a reply, less the latency of the devices."""
    round_trip = harness.round_trip_ms()
    with harness.fixed_reply_chat(noise(LONG_SECONDS)) as chat:
        harness.card.speak(questions[0].clip)
        spoken = [
            interrupt(harness, chat, questions[(n + 1) % len(questions)], n, BARGE_IN_SECONDS + 0.37 * (n % 5))
            for n in range(count)
        ]
        stopped = len(chat.events("barge_in"))
    ducked, silent = [], []
    for each in spoken:
        fell, last = _fallen(harness, each)
        if fell is not None:
            ducked.append(fell * 1000 / RATE - round_trip)
            silent.append(last * 1000 / RATE - round_trip)
    every = stopped == len(ducked) == count
    return [
        _interruption("to ducked", ducked, DUCKED_MS, stopped, count, every=every),
        _interruption("to silence", silent, SILENT_MS, stopped, count, every=every),
    ]


def _interruption(what: str, took: list[float], bar_ms: float, stopped: int, count: int, *, every: bool) -> Figure:
    p95 = percentile(took, 0.95)
    return Figure(
        f"barge-in, onset of voice {what}, less the round trip, p95",
        f"{p95:.0f} ms (median {median(took):.0f} ms), {stopped} of {count} stopped the reply",
        f"at most {bar_ms:.0f} ms",
        every and p95 <= bar_ms,
        spread(took),
    )


def interrupt(harness: Harness, chat: ChatProcess, question: Question, number: int, after_seconds: float) -> SpokenClip:
    """Speak over a reply, `after_seconds` after it began to play; `number` replies were interrupted before."""
    deadline = time.monotonic() + ANSWER_SECONDS
    now = harness.card.recording.position
    while not np.abs(harness.loudspeaker(now - RATE // 10, now)).any():
        if time.monotonic() > deadline:
            raise VoxError(f"no reply plays {ANSWER_SECONDS:.0f} s after a question")
        time.sleep(0.05)
        now = harness.card.recording.position
    time.sleep(after_seconds)
    spoken = harness.card.speak(question.clip)
    chat.wait_for("barge_in", number + 1, ANSWER_SECONDS)
    return spoken


def _fallen(harness: Harness, spoken: SpokenClip) -> tuple[int | None, int]:
    """Return when the reply was ducked and its last sample, in samples since the onset of the voice."""
    span = voiced_span(harness.microphone(spoken))
    if span is None:
        raise VoxError("the interruption is not in the recording of the microphone")
    return silent_after(harness.loudspeaker(spoken.start + span[0], spoken.start + span[1]), RATE)


def noises(harness: Harness, questions: Sequence[Question], count: int = NOISES) -> list[Figure]:
    """Make noises of NOISE_MS while a reply plays, and compare the recording with the reply, sample by sample."""
    reply = noise(LONG_SECONDS)
    total = missing = wrong = pieces = 0
    with harness.fixed_reply_chat(reply) as chat:
        while total < count:
            number = min(NOISES_PER_REPLY, count - total)
            start = harness.card.recording.position
            turns = len(chat.events("turn_ended"))
            harness.card.speak(questions[0].clip)
            time.sleep(2 * PAUSE_SECONDS)
            harness.card.speak(bursts(questions[1 % len(questions)].clip, number, seed=total))
            chat.wait_for("turn_ended", turns + 1, ANSWER_SECONDS)
            time.sleep(MARGIN_SECONDS)
            recorded = harness.loudspeaker(start, harness.card.recording.position)
            found = continuity(reply, recorded, RATE * GAP_MS // 1000)
            missing += found.missing_samples + found.repeated_samples
            wrong += found.foreign
            pieces += found.pieces
            total += number
        interrupted = len(chat.events("barge_in"))
        resumed = len(chat.events("resumed"))
        replies = -(-count // NOISES_PER_REPLY)
        extra = len(chat.events("turn_ended")) - replies
    dry = max(0, pieces - replies - resumed)  # silences in the reply that no noise explains
    words = f"{interrupted} of {count} stopped it, {resumed} ducked it; {missing} samples missing or doubled"
    words += f", the device ran dry {dry} times" if dry else ""
    return [
        Figure(
            f"false barge-in by noises of {NOISE_MS} ms",
            words + (f", {wrong} pieces unlike the reply" if wrong else ""),
            f"none in {NOISES}; no sample missing",
            interrupted == missing == wrong == extra == 0,
            {
                "stopped": interrupted,
                "ducked": resumed,
                "samples": missing,
                "foreign": wrong,
                "extra_turns": extra,
                "dry": dry,
            },
        )
    ]


def bursts(speech: AudioClip, count: int, *, seed: int) -> AudioClip:
    """Return noises of NOISE_MS, 1.3 s apart: hisses and pieces cut out of speech, alternately."""
    rng = np.random.default_rng(seed)
    samples = speech.resampled(RATE).samples
    size = RATE * NOISE_MS // 1000
    fade = np.clip(np.minimum(np.arange(size), np.arange(size)[::-1]) / (RATE * 0.004), 0, 1)
    parts: list[Samples] = []
    for number in range(count):
        hiss = rng.uniform(-0.3, 0.3, size)
        sound = _loud_piece(samples, size, rng) if number % 2 else hiss
        parts += [(sound * fade).astype(np.float32), np.zeros(round(rng.uniform(1.25, 1.35) * RATE), np.float32)]
    return AudioClip(np.concatenate(parts), RATE)


def _loud_piece(samples: Samples, size: int, rng: np.random.Generator) -> Samples:
    """Return a random piece at least as loud as the whole, if one is found in a hundred tries."""
    for _ in range(100):
        first = int(rng.integers(0, max(1, len(samples) - size)))
        piece = samples[first : first + size]
        if np.square(piece).mean() >= np.square(samples).mean():
            break
    return np.pad(piece, (0, size - len(piece)))
