"""Test doubles of the protocols in `voxcli.core.protocols`, for voxcli's tests and for programs built on it."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.core.protocols import Engine, PassReport, ReplyWithTools, Utterance
from voxcli.core.session import Session
from voxcli.core.tools import ToolCalls, ToolResult


@dataclass
class FakeEngine(Engine):
    """Gives the queued replies: each deltas and tool calls, or an error to raise. Records what it was asked.

    What it understood is queued likewise; without more of it, it can't tell.
    """

    replies: list[Iterable[str | ToolCalls] | Exception]
    name: str = "fake"
    model: str = "fake"
    asked: list[tuple[Session, Utterance]] = field(default_factory=list)
    prefilled: list[Session] = field(default_factory=list)
    partial_clips: list[AudioClip] = field(default_factory=list)
    before_delta: Callable[[int], object] = lambda _: None
    finish_reason: str | None = None
    results: list[ToolResult] = field(default_factory=list)  # those of its tool calls
    supports_tools: bool = True
    understands: list[Iterable[str] | Exception] = field(default_factory=list)  # the deltas of each line
    transcript: str | None = None
    asked_again: list[Utterance] = field(default_factory=list)  # those that it was asked what it understood of
    asides_closed: int = 0  # lines that are over, or were cancelled

    def reply(self, session: Session, utterance: Utterance, interrupt: threading.Event) -> ReplyWithTools:
        self.asked.append((session, utterance))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        count = generations = 0
        for delta in reply:
            self.before_delta(count)
            if interrupt.is_set():
                break
            if isinstance(delta, ToolCalls):
                if (results := (yield delta)) is None:
                    break
                generations += 1
                self.results += results
                continue
            count += 1
            yield delta
        report = PassReport(1, 10, 0, count, self.transcript, self.finish_reason)
        return replace(report, additional_generations=generations)

    def understand(self, utterance: Utterance) -> Generator[str, None, None] | None:
        self.asked_again.append(utterance)
        return self._understood(self.understands.pop(0)) if self.understands else None

    def _understood(self, line: Iterable[str] | Exception) -> Generator[str, None, None]:
        try:
            if isinstance(line, Exception):
                raise line
            yield from line
        finally:
            self.asides_closed += 1

    def prefill_history(self, session: Session) -> None:
        self.prefilled.append(session)

    def encode_partial(self, clip: AudioClip) -> None:
        self.partial_clips.append(clip)

    def close(self) -> None:
        pass


@dataclass
class FakeSynthesizer:
    """Gives a tenth of a second of audio for each character; raises `error` if one is set."""

    error: Exception | None = None
    said: list[str] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        if self.error:
            raise self.error

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        if self.error:
            raise self.error
        self.said.append(sentence)
        yield AudioClip(np.full(len(sentence) * SAMPLE_RATE // 10, 0.1, np.float32))

    def close(self) -> None:
        pass


@dataclass
class FakeSpeaker:
    """Plays each clip in no time. At `limit` seconds, if there is one, it sets the interrupt."""

    limit: float | None = None
    position: float = 0.0
    queued: float = 0.0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        if interrupt.is_set():
            return self.queued
        self.queued += clip.seconds
        if self.limit is not None and self.queued >= self.limit:
            self.position = self.limit
            interrupt.set()
        else:
            self.position = self.queued
        return self.queued

    def wait(self, position: float, interrupt: threading.Event) -> None:
        pass

    def close(self) -> None:
        pass
