"""Runs conversations on a virtual sound card, asks questions, and returns what the devices recorded."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conversation.chat_process import ChatProcess, chat_on_terminal, running_chat
from benchmarks.conversation.fixed_reply import FIXED_REPLY
from benchmarks.conversation.recordings import stretches, voiced_span
from benchmarks.conversation.sound_card import MARGIN_SECONDS, RATE, SoundCard, SpokenClip
from benchmarks.report import median
from voxcli.audio.clip import AudioClip, Samples
from voxcli.errors import VoxError

FIXED_REPLY_PROGRAM = (sys.executable, "-m", "benchmarks.conversation.fixed_reply")
ANSWER_SECONDS = 60.0  # the longest a turn may take
PAUSE_SECONDS = 1.0  # between a reply and the next question
REPLY_SECONDS = 0.6
NOISE_LEVEL = 0.1  # -20 dBFS
PULSES, PULSE_SECONDS = 10, 0.03


@dataclass(frozen=True)
class Question:
    """A recorded question; `answers` are those that count as right, in lower case, empty where unknown."""

    name: str
    clip: AudioClip
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A spoken question, and the events until its turn ended or timed out."""

    question: SpokenClip
    stop: int  # position in the recording, after the reply
    turns: list[dict[str, Any]]  # `turn_ended` events; more than one where it was split into several utterances
    ended: list[dict[str, Any]]  # `speech_ended` events


class Harness:
    """A sound card, and the program that converses on it."""

    def __init__(self, card: SoundCard, folder: Path, engine: str, flags: Sequence[str] = ()) -> None:
        """Converse with `engine`; files go to `folder`, which exists.

        Args:
            engine: FIXED_REPLY, or an engine of `voxcli chat`.
            flags: more flags for `voxcli chat`.
        """
        self.card = card
        self.folder = folder
        self.engine = engine
        self._flags = flags

    @contextmanager
    def chat(self, kept: Path | None = None, reply: Samples | None = None) -> Iterator[ChatProcess]:
        """Run a conversation during the context.

        Args:
            kept: folder that keeps the utterances.
            reply: sound of each reply with FIXED_REPLY, at RATE; None for a short noise.
        """
        if self.engine == FIXED_REPLY:
            with self.fixed_reply_chat(noise(REPLY_SECONDS) if reply is None else reply, kept) as chat:
                yield chat
            return
        command = [*self._command(), "--json", "--verbose", *(("--record", str(kept)) if kept else ())]
        environment = {**self.card.environment, "VOXCLI_LIVE__CUES": "false"}  # the first sound has to be the reply
        with running_chat(command, environment) as chat:
            yield chat

    @contextmanager
    def idle_chat(self) -> Iterator[int]:
        """Run a conversation during the context, on a terminal where the engine allows; yield its process id."""
        if self.engine == FIXED_REPLY:
            with self.chat() as chat:
                yield chat.pid
            return
        with chat_on_terminal(self._command(), self.card.environment) as pid:
            yield pid

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "voxcli", "chat", "--engine", self.engine]
        command += ["--temperature", "0", "--push-to-talk", "off"]  # greedy, so that runs can be compared
        return [*command, "--input-device", "default", "--output-device", "default", *self._flags]

    @contextmanager
    def fixed_reply_chat(self, reply: Samples, kept: Path | None = None) -> Iterator[ChatProcess]:
        """Run a conversation during the context in which each reply is `reply`, at RATE."""
        path = self.folder / "reply.npy"
        np.save(path, reply)
        command = [*FIXED_REPLY_PROGRAM, "chat", str(path), *((str(kept),) if kept else ())]
        with running_chat(command, self.card.environment) as chat:
            yield chat

    def ask(self, chat: ChatProcess, clip: AudioClip) -> Exchange:
        """Speak a clip and wait until its turn is over."""
        turns, ended = len(chat.events("turn_ended")), len(chat.events("speech_ended"))
        question = self.card.speak(clip)
        chat.wait_for("turn_ended", turns + 1, ANSWER_SECONDS)
        time.sleep(PAUSE_SECONDS)
        stop = self.card.recording.position
        return Exchange(question, stop, chat.events("turn_ended")[turns:], chat.events("speech_ended")[ended:])

    def microphone(self, spoken: SpokenClip) -> Samples:
        """Return what the microphone carried while a clip was spoken."""
        return self.card.recording.read(spoken.start, spoken.stop, 0)

    def loudspeaker(self, start: int, stop: int) -> Samples:
        """Return what the loudspeaker played between two positions of the recording."""
        return self.card.recording.read(start, stop, 1)

    def time_of(self, position: int) -> float:
        """Return when the devices carried a sample of the recording, in monotonic seconds."""
        return self.card.recording.time_of(position)

    def voice_to_voice_ms(self, exchange: Exchange) -> float | None:
        """Return the time from the last voiced sample in to the first voiced sample out; None without a reply."""
        voiced = voiced_span(self.microphone(exchange.question))
        if voiced is None:
            raise VoxError("the question is not in the recording of the microphone")
        over = exchange.question.start + voiced[1]
        answered = voiced_span(self.loudspeaker(over, exchange.stop))
        return None if answered is None else answered[0] * 1000 / RATE

    def round_trip_ms(self) -> float:
        """Return the latency of the devices alone: the median over short sounds that are played back at once."""
        rng = np.random.default_rng(1)
        parts = []
        for _ in range(PULSES):
            parts += [noise(PULSE_SECONDS), np.zeros(round(rng.uniform(0.5, 0.6) * RATE), np.float32)]
        with running_chat([*FIXED_REPLY_PROGRAM, "pass-through"], self.card.environment):
            spoken = self.card.speak(AudioClip(np.concatenate(parts), RATE))
            time.sleep(MARGIN_SECONDS)
        inward, outward = self.microphone(spoken), self.loudspeaker(spoken.start, spoken.stop)
        gap = round(0.2 * RATE)
        onsets = [start for start, _ in stretches(inward, gap)]
        arrivals = [start for start, _ in stretches(outward, gap)]
        if not len(onsets) == len(arrivals) == PULSES:
            raise VoxError(f"of {PULSES} sounds, {len(arrivals)} passed the devices: is the machine too busy?")
        return median([(there - here) * 1000 / RATE for here, there in zip(onsets, arrivals, strict=True)])

    def recording_ahead_ms(self) -> float:
        """Return how long before its reported time a sound is in the recording: the median over short sounds.

        A null sink hands samples to its recording when it fetches them. It fetches them as early as its latency
        allows, and reports them as audible that much later.
        """
        start = self.card.recording.position
        with running_chat([*FIXED_REPLY_PROGRAM, "pulses"], self.card.environment) as program:
            if not program.wait_for("pulse", PULSES, ANSWER_SECONDS):
                raise VoxError("the loudspeaker plays no pulses: is the machine too busy?")
            time.sleep(MARGIN_SECONDS)
            audible = [event["audible_at"] for event in program.events("pulse")]
        played = stretches(self.loudspeaker(start, self.card.recording.position), RATE // 5)
        recorded = [self.time_of(start + begin) for begin, _ in played][: len(audible)]
        return median([1000 * (there - here) for here, there in zip(recorded, audible, strict=False)])


def noise(seconds: float, *, seed: int = 0) -> Samples:
    """Return steady noise at RATE, no part of which resembles another."""
    peak = NOISE_LEVEL * 3**0.5
    return np.random.default_rng(seed).uniform(-peak, peak, round(seconds * RATE)).astype(np.float32)
