"""What the present response does with tools, on the conversation's side: lets calls run, answers questions, and waits.

Speech that comes while a question is open may be its answer. It is transcribed, and decides once nothing can continue
it. Speech that means neither yes nor no refuses the call, and is the next utterance.
"""

import time
from collections.abc import Callable

from voxcli.audio.clip import AudioClip
from voxcli.chat.events import ApprovalAnswered, ApprovalAsked, LiveEvent
from voxcli.chat.responses.approval import ApprovalRequest, SpokenAnswer, ToolAnnounced
from voxcli.chat.responses.phrases import one_moment, verdict
from voxcli.chat.responses.response import Responder, Response
from voxcli.core.tool_words import tool_name
from voxcli.core.tools import Decider

ANSWER_SECONDS = 30.0  # A question that nobody has answered by then is refused.
PATIENCE_SECONDS = 1.5  # A tool that runs longer is excused for by the voice.


class ToolProgress:
    """Follows the tools of the running response. Only the conversation's thread calls it."""

    def __init__(
        self,
        responder: Responder,
        show: Callable[[LiveEvent], None],
        commit: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a tool.

        Args:
            show: renders an event.
            commit: closes the user's last utterance for good; returns False while the user seems to continue it.
        """
        self._responder = responder
        self._show = show
        self._commit = commit
        self._clock = clock
        self._request: ApprovalRequest | None = None
        self._said: AudioClip | None = None  # what may be the answer, while it is transcribed
        self._verdict: bool | None = None  # what it means, until it is final
        self._since = 0.0  # monotonic seconds when the tool began to run
        self._excused = False  # The user was asked for patience.
        self.tool = ""  # name of the tool that runs or is asked for
        self.is_being_answered = False  # The user speaks, and it may be the answer.

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for its answer."""
        return self._request is not None and self._request.is_open

    @property
    def takes_speech(self) -> bool:
        """Whether what the user says now may be an answer."""
        return self.is_asking and bool(self._responder.tools and self._responder.tools.approver.takes_speech)

    def on_announced(self, announced: ToolAnnounced, response: Response | None) -> None:
        """Let a call of the running response run, unless the response was stopped or dropped."""
        if response and response.state == "turn" and not response.interrupt.is_set():
            response.has_announced_tools = True
            self.tool = tool_name(announced.call)
            self._begin_waiting()
            announced.go.set()

    def on_request(self, request: ApprovalRequest) -> None:
        """Show a question, and wait for its answer."""
        self._show(ApprovalAsked(request.call))
        if request.decided_by:  # There is no way to answer.
            self._show(ApprovalAnswered(request.call, request.allowed, request.decided_by))
        else:
            self._request = request

    def on_returned(self) -> None:
        """Note that the call has a result, or nothing of the response runs any more."""
        self._request, self.tool = None, ""
        self.forget_speech()

    def answer(self, allowed: bool, decided_by: Decider) -> None:
        """Answer the question, if there is one."""
        request, self._request = self._request, None
        self.forget_speech()
        if request and request.answer(allowed, decided_by):
            self._show(ApprovalAnswered(request.call, allowed, decided_by))
            self._begin_waiting()

    def tick(self, response: Response | None) -> None:
        """Do what is due: apply a spoken answer, give up waiting for one, or ask the user for patience."""
        if self._verdict is not None and self.is_asking and self._commit():
            self.answer(self._verdict, "voice")
        request = self._request
        if request and not self.is_being_answered and self._clock() - request.asked_at >= ANSWER_SECONDS:
            self.answer(False, "timeout")
        if self.tool and response and not (self.is_asking or self._excused):
            self._excuse(response)

    # Speech.

    def on_speech_started(self) -> bool:
        """Return whether the utterance that starts may be an answer; otherwise it refuses an open question."""
        if self.takes_speech:
            self._said = self._verdict = None
            self.is_being_answered = True
        else:
            self.answer(False, "speech")
        return self.is_being_answered

    def on_speech_resumed(self) -> bool:
        """Return whether the utterance that goes on may be an answer; then it is judged anew."""
        if self.takes_speech and self.is_being_answered:
            self._said = self._verdict = None
            return True
        return False

    def on_speech_ended(self, clip: AudioClip) -> bool:
        """Have an utterance transcribed if it may be an answer; return whether it may."""
        if self._request and self.takes_speech and self.is_being_answered:
            self._said = clip
            self._request.answer_aloud(clip)
            return True
        self.forget_speech()
        return False

    def on_spoken_answer(self, answer: SpokenAnswer) -> bool:
        """Take what was said for the answer; return False if it is the next utterance instead."""
        if answer.clip is not self._said or answer.request is not self._request or not self.is_asking:
            return True  # The user has gone on, or the question is no more.
        self._verdict = verdict(answer.text)
        if self._verdict is None and answer.text.strip():
            self.answer(False, "speech")
            return False
        if self._verdict is None:  # It was a noise.
            self.forget_speech()
        return True

    def forget_speech(self) -> None:
        """Take what is being said for no answer."""
        self._said = self._verdict = None
        self.is_being_answered = False

    def _begin_waiting(self) -> None:
        self._since, self._excused = self._clock(), False

    def _excuse(self, response: Response) -> None:
        """Ask the user for patience once a tool takes long, unless the reply is still being spoken."""
        is_silent = self._responder.seconds_to_next_played(response) == float("inf")
        if is_silent and self._clock() - self._since >= PATIENCE_SECONDS:
            self._excused = True
            response.interjections.say(one_moment(self._responder.language), wait=False)
