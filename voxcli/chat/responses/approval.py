"""Asks the user whether a tool may run, and lets no call of a reply run before its turn is certain.

A tool can have effects that nothing takes back. So a call of a reply waits until the reply is released and nothing can
continue the user's utterance any more, and then for the conversation to have handled all that came before. If the
reply is dropped or stopped meanwhile, the call runs nothing.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from voxcli.audio.clip import AudioClip
from voxcli.chat.responses.phrases import spoken_question
from voxcli.core.session import Session
from voxcli.core.speaking import Interjections
from voxcli.core.tools import Decider, ToolCall, ToolResult, ToolRunner, ToolSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02  # between two looks at an interrupt, which may be set at any moment


class Transcribe(Protocol):
    """Transcribes answers. Called on the thread that asks."""

    def prepare(self) -> None:
        """Get ready, because an answer may come soon; return at once."""
        ...

    def __call__(self, clip: AudioClip, interrupt: threading.Event) -> str:
        """Return the words of a clip; "" if there are none, or it can't be transcribed."""
        ...


@dataclass(eq=False)
class ToolAnnounced:
    """A call is about to run, if it is allowed; it waits for `go`."""

    call: ToolCall
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class ApprovalRequest:
    """The question whether a call may run. Its first answer counts."""

    call: ToolCall
    interrupt: threading.Event  # The turn's own.
    asked_at: float = field(default_factory=time.monotonic)
    allowed: bool = False
    decided_by: Decider = ""
    spoken_answer: AudioClip | None = None  # An answer that is still to be transcribed.
    _news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def is_open(self) -> bool:
        """Whether an answer would count."""
        return not self.decided_by and not self.interrupt.is_set()

    def answer(self, allowed: bool, decided_by: Decider) -> bool:
        """Answer it; return False if it is too late."""
        with self._news:
            if not self.is_open:
                return False
            self.allowed, self.decided_by = allowed, decided_by
            self._news.notify_all()
            return True

    def answer_aloud(self, clip: AudioClip) -> None:
        """Have an utterance transcribed, which may be the answer."""
        with self._news:
            self.spoken_answer = clip
            self._news.notify_all()

    def wait(self) -> AudioClip | None:
        """Wait for a spoken answer, and return it; None once nothing more can be answered."""
        with self._news:
            while self.is_open and self.spoken_answer is None:
                self._news.wait(POLL_SECONDS)
            clip, self.spoken_answer = self.spoken_answer, None
            return clip if self.is_open else None


@dataclass(frozen=True)
class SpokenAnswer:
    """What was said while a question was open, transcribed."""

    request: ApprovalRequest
    clip: AudioClip
    text: str


class Approver:
    """Asks the conversation whether a call may run. Implements `voxcli.tools.tool.Approve`."""

    def __init__(
        self,
        post: Callable[[ApprovalRequest | SpokenAnswer], None],
        transcribe: Transcribe | None = None,
        *,
        has_keys: bool = True,
    ) -> None:
        """Connect the parts.

        Args:
            post: receives the question, and what was said while it was open.
            transcribe: returns the words of an utterance. None: only keys answer.
            has_keys: whether there is a keyboard. With neither, every question is refused at once.
        """
        self._post = post
        self._transcribe = transcribe
        self._has_keys = has_keys
        self._last: ApprovalRequest | None = None
        self.interjections = Interjections()  # those of the present response
        self.language: Callable[[], str | None] = lambda: None  # The language of the present reply.

    @property
    def takes_speech(self) -> bool:
        """Whether the user may answer by voice."""
        return self._transcribe is not None

    def __call__(self, call: ToolCall, interrupt: threading.Event) -> bool:
        """Ask, and wait for the answer; return False if there is none, or once the turn is interrupted."""
        self._last = request = ApprovalRequest(call, interrupt)
        if not (self._has_keys or self._transcribe):
            request.answer(False, "nobody")
        self._post(request)
        if request.is_open:
            if self._transcribe:
                self._transcribe.prepare()
            self.interjections.say(spoken_question(call, self.language(), by_key=self._transcribe is None))
        while (clip := request.wait()) is not None:
            text = self._transcribe(clip, interrupt) if self._transcribe else ""
            log.info("a spoken answer of %d characters", len(text))
            self._post(SpokenAnswer(request, clip, text))
        self.interjections.hush()
        return request.allowed and not interrupt.is_set()

    def with_decision(self, result: ToolResult) -> ToolResult:
        """Return the result of a call that was run last, with who decided about it, if anybody had to."""
        request, self._last = self._last, None
        if request is None:
            return result
        asked = request.decided_by != "nobody"
        return replace(result, asked=asked, allowed=request.allowed, decided_by=request.decided_by)


@dataclass(frozen=True)
class ChatTools:
    """Tools for the turns of a conversation, and who asks before they run."""

    runner: ToolRunner
    approver: Approver

    def given_to(self, session: Session) -> Session:
        """Return a session whose next turn may call the tools."""
        return replace(session, tools=self.runner.specs)


class GatedTools:
    """Implements `ToolRunner` for one response: a call waits until the turn is certain."""

    def __init__(
        self,
        tools: ChatTools,
        post: Callable[[ToolAnnounced], None],
        is_certain: Callable[[], bool],
    ) -> None:
        """Connect the parts.

        Args:
            post: receives each call before it runs.
            is_certain: waits until the turn can't be taken back; returns False if it was dropped or stopped.
        """
        self._runner = tools.runner
        self._approver = tools.approver
        self._post = post
        self._is_certain = is_certain

    @property
    def max_calls(self) -> int:
        """The most calls in one turn."""
        return self._runner.max_calls

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that the turn may call."""
        return self._runner.specs

    def run(self, call: ToolCall, interrupt: threading.Event) -> ToolResult:
        """Run a call once the turn is certain, if it is allowed."""
        announced = ToolAnnounced(call)
        if self._is_certain():
            self._post(announced)
            while not interrupt.is_set():
                if announced.go.wait(POLL_SECONDS):
                    return self._approver.with_decision(self._runner.run(call, interrupt))
        return ToolResult(call, "interrupted", "The turn was over before the tool could run.")
