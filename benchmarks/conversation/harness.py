"""Conversations on the benchmark's sound card: asking a question, and what came of it.

It knows how programs are started and questions asked, but not what any of it is measured for.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voxcli.audio import AudioClip, Samples
from benchmarks.conversation.recordings import stretches, voiced_span
from benchmarks.report import median
from benchmarks.conversation.sound_card import MARGIN_SECONDS, RATE, Said, SoundCard
from benchmarks.conversation.chat_process import Talk, talking
from voxcli.errors import VoxError

INSTANT = "instant"  # the engine that replies at once
ANSWER_SECONDS = 60.0  # a turn that takes longer is no answer
PAUSE_SECONDS = 1.0  # between a reply and the next question
REPLY_SECONDS = 0.6
NOISE_LEVEL = 0.1  # -20 dBFS
PULSES, PULSE_SECONDS = 10, 0.03


@dataclass(frozen=True)
class Question:
    """A recorded question; `answers` are those that count as right, in lower case, none where it is not known."""

    name: str
    clip: AudioClip
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question that was asked, and what came of it until its turn was over or given up."""

    said: Said
    stop: int  # position of the recording, after the reply
    turns: list[dict[str, Any]]  # `turn_ended` events; more than one where it was taken for several utterances
    ended: list[dict[str, Any]]  # `speech_ended` events


class Studio:
    """A sound card, and what converses on it."""

    def __init__(self, card: SoundCard, folder: Path, engine: str, flags: Sequence[str] = ()) -> None:
        """Converse with `engine`, INSTANT or one that `voxcli chat` knows; files go to `folder`, which exists.

        flags: more of them for `voxcli chat`.
        """
        self.card = card
        self.folder = folder
        self.engine = engine
        self._flags = flags

    @contextmanager
    def chat(self, kept: Path | None = None, reply: Samples | None = None) -> Iterator[Talk]:
        """Run `voxcli chat`, or the same with the instant engine.

        kept: where it keeps the utterances
        reply: what the instant engine says, at RATE; a short noise where None
        """
        if self.engine == INSTANT:
            with self.instant(noise(REPLY_SECONDS) if reply is None else reply, kept) as talk:
                yield talk
            return
        command = [sys.executable, "-m", "voxcli", "chat", "--json", "--verbose", "--engine", self.engine]
        command += ["--push-to-talk", "off", "--input-device", "default", "--output-device", "default", *self._flags]
        with talking([*command, *(("--record", str(kept)) if kept else ())], self.card.environment) as talk:
            yield talk

    @contextmanager
    def instant(self, reply: Samples, kept: Path | None = None) -> Iterator[Talk]:
        """Run the conversation whose replies are all `reply`, at RATE."""
        path = self.folder / "reply.wav"
        soundfile.write(path, reply, RATE, subtype="FLOAT")
        command = [sys.executable, "-m", "benchmarks.conversation.fixed_reply", "chat", str(path)]
        with talking([*command, *((str(kept),) if kept else ())], self.card.environment) as talk:
            yield talk

    def ask(self, talk: Talk, clip: AudioClip) -> Exchange:
        """Say a clip and wait until its turn is over."""
        turns, ended = len(talk.events("turn_ended")), len(talk.events("speech_ended"))
        said = self.card.say(clip)
        talk.wait_for("turn_ended", turns + 1, ANSWER_SECONDS)
        time.sleep(PAUSE_SECONDS)
        stop = self.card.recording.position
        return Exchange(said, stop, talk.events("turn_ended")[turns:], talk.events("speech_ended")[ended:])

    def heard(self, said: Said) -> Samples:
        """Return what the microphone carried while a clip was said."""
        return self.card.recording.read(said.start, said.stop, 0)

    def played(self, start: int, stop: int) -> Samples:
        """Return what the loudspeaker played."""
        return self.card.recording.read(start, stop, 1)

    def voice_to_voice_ms(self, exchange: Exchange) -> float | None:
        """Return the time from the last voiced sample in to the first voiced sample out; None without a reply."""
        asked = voiced_span(self.heard(exchange.said))
        if asked is None:
            raise VoxError("the question is not in the recording of the microphone")
        over = exchange.said.start + asked[1]
        answered = voiced_span(self.played(over, exchange.stop))
        return None if answered is None else answered[0] * 1000 / RATE

    def round_trip_ms(self) -> float:
        """Return what the devices alone take: the median of short sounds, copied from microphone to loudspeaker."""
        rng = np.random.default_rng(1)
        parts = []
        for _ in range(PULSES):
            parts += [noise(PULSE_SECONDS), np.zeros(round(rng.uniform(0.5, 0.6) * RATE), np.float32)]
        command = [sys.executable, "-m", "benchmarks.conversation.fixed_reply", "copy"]
        with talking(command, self.card.environment):
            said = self.card.say(AudioClip(np.concatenate(parts), RATE))
            time.sleep(MARGIN_SECONDS)
        inward, outward = self.heard(said), self.played(said.start, said.stop)
        gap = round(0.2 * RATE)
        onsets = [start for start, _ in stretches(inward, gap)]
        arrivals = [start for start, _ in stretches(outward, gap)]
        if not len(onsets) == len(arrivals) == PULSES:
            raise VoxError(f"of {PULSES} sounds, {len(arrivals)} passed the devices: is the machine too busy?")
        return median([(there - here) * 1000 / RATE for here, there in zip(onsets, arrivals, strict=True)])


def noise(seconds: float, *, seed: int = 0) -> Samples:
    """Return steady noise at RATE, which is nowhere alike to itself."""
    peak = NOISE_LEVEL * 3**0.5
    return np.random.default_rng(seed).uniform(-peak, peak, round(seconds * RATE)).astype(np.float32)
