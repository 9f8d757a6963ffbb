"""What a model understood of an utterance: asked after the reply, step by step, while the reply is played.

Nobody waits for it. It can be cancelled at any time, and then costs at most the step that has begun.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from voxcli.core.protocols import Engine, Utterance
from voxcli.errors import VoxError
from voxcli.printable import printable

log = logging.getLogger(__name__)

UnderstoodMode = Literal["off", "show", "remember"]  # remember: later prompts show it too

INSTRUCTION = "Write down in one line what I said in the audio, in my own words and my language. Write nothing else."
LINE_TOKENS = 48  # longest line that a model writes
LINE_CHARACTERS = 300  # longest line; 48 tokens are about 200 characters
QUOTES = "\"'“”„«»‘’"  # noqa: RUF001 - models like to quote


@dataclass(frozen=True)
class Understood:
    """What the model understood of an utterance, in one line."""

    text: str
    turn: int | None = None  # number of its turn in the session; None while that is not over


@dataclass(frozen=True)
class NotUnderstood:
    """What was understood was asked for and can't be told."""

    reason: str


class Understanding:
    """Asks an engine what it understood of one utterance, if anybody wants to know.

    `ask`, `cancel` and `is_asked` may be used on any thread, the rest on the thread of the turn.
    """

    def __init__(
        self,
        mode: UnderstoodMode = "off",
        may_begin: Callable[[], bool] = lambda: True,
        *,
        silence_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a reply.

        Args:
            mode: with "off", the engine is not asked before `ask` is called.
            may_begin: returns whether the engine may be asked now; False for a reply that may still be dropped.
            silence_seconds: longest time without text before the engine is left.
            clock: monotonic seconds.
        """
        self.mode = mode
        self.text = ""  # The line; empty until it is known.
        self.generations = 0  # Number of generations asked for, whatever became of them.
        self.reason = ""  # Why the line is not known, once that is certain.
        self._may_begin = may_begin
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._silent_since = 0.0  # monotonic seconds
        self._wanted = threading.Event()
        self._cancelled = threading.Event()
        self._start: Callable[[], Generator[str, None, None] | None] | None = None
        self._steps: Generator[str, None, None] | None = None
        self._transcript = ""
        self._written = ""  # What the model has written so far.
        self._is_over = False
        self._is_reported = False
        if mode != "off":
            self._wanted.set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants to know, and nobody has cancelled it."""
        return self._wanted.is_set() and not self._cancelled.is_set()

    def ask(self) -> None:
        """Let the engine be asked, whatever the mode."""
        self._wanted.set()

    def cancel(self) -> None:
        """Stop with the step that is being taken. What is known stays known."""
        self._cancelled.set()

    def begin(self, engine: Engine, utterance: Utterance, transcript: str = "") -> None:
        """Note that the reply to an utterance is complete.

        Args:
            transcript: what the engine has told already; it is not asked then.
        """
        self._start = lambda: engine.understand(utterance)
        self._transcript = transcript
        if utterance.clip is None:
            self._is_over = True
        elif transcript and self._wanted.is_set():
            self._finish_with(transcript)
            self._is_reported = True

    def advance(self) -> bool:
        """Take the next step: at most one token, or a short wait. Return whether it may be followed by another."""
        if self._cancelled.is_set():
            self.close()
        if self._is_over or self._start is None or not (self._wanted.is_set() and self._may_begin()):
            return False
        try:
            self._step(self._start)
        except VoxError as error:
            log.info("not understood: %s", error.code)
            self._finish(error.message)
        return not self._is_over

    def news(self) -> Iterator[Understood | NotUnderstood]:
        """Yield once what was understood, or why that is not known."""
        if self._is_reported or not (self.text or self.reason):
            return
        self._is_reported = True
        yield Understood(self.text) if self.text else NotUnderstood(self.reason)

    def close(self) -> None:
        """End; the engine is left as its reply left it. Closing twice does nothing."""
        self._is_over = True
        steps, self._steps = self._steps, None
        if steps:
            steps.close()

    def _step(self, start: Callable[[], Generator[str, None, None] | None]) -> None:
        if self._transcript:
            return self._finish_with(self._transcript)
        if self._steps is None:
            self._steps = start()
            if self._steps is None:
                return self._finish("this engine can't tell")
        delta = next(self._steps, None)
        if not self.generations:  # The first step may feed the whole instruction; silence counts from its end.
            self.generations, self._silent_since = 1, self._clock()
        self._written += delta or ""
        begun = self._written.lstrip()
        if delta is None or "\n" in begun or len(begun) > LINE_CHARACTERS:
            return self._finish_with(begun.split("\n")[0])
        return self._leave_if_silent(delta)

    def _leave_if_silent(self, delta: str) -> None:
        now = self._clock()
        if delta:
            self._silent_since = now
        elif now - self._silent_since >= self._silence_seconds:
            self._finish(f"the model wrote nothing for {self._silence_seconds:g} s")

    def _finish_with(self, text: str) -> None:
        self.text = one_line(text)
        self._finish("" if self.text else "the model has written nothing")

    def _finish(self, reason: str) -> None:
        self.reason = reason
        self.close()


def one_line(text: str) -> str:
    """Return untrusted text as one line of bounded length that no terminal acts on, without quotes around it."""
    line = printable(" ".join(text[: 4 * LINE_CHARACTERS].split())).strip(f" {QUOTES}")
    return line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 1]}…"
