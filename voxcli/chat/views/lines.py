"""Views that write line by line: plain text where there is no terminal, JSON for programs."""

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from voxcli.chat.events import (
    ApprovalAnswered,
    ApprovalAsked,
    BargeIn,
    DevicesChanged,
    FactsLearned,
    KeysAsked,
    LiveEvent,
    Notice,
    Ready,
    Resumed,
    SentenceSpoken,
    SessionEnded,
    SpeechEnded,
    SpeechResumed,
    SpeechStarted,
    SpeechTooLong,
    StateChanged,
    TurnFailed,
    TurnRetracted,
    TurnStarted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.views.situation import Situation
from voxcli.chat.views.words import (
    STAGES,
    interruption,
    latency_figure,
    latency_line,
    note_lines,
    percentiles,
    question_text,
    rounded_ms,
    summary_lines,
    tool_lines,
)
from voxcli.core.protocols import Transcript, Utterance
from voxcli.core.sentences import PieceCutter
from voxcli.core.tools import ToolCall, ToolCalled, ToolReturned, ToolsStopped
from voxcli.core.turn import ReplyDelta, SpeechFailed
from voxcli.core.understanding import Understood
from voxcli.output import Output
from voxcli.printable import printable

# A full stop counts after four letters, so that none of "Dr.", "3." and "e.g." ends a line.
ENDS_SENTENCE = re.compile(r"""(?:[^\W\d_]{4}\.|[!?…]|[。！？])["'”’)\]*]*\s*\Z""")  # noqa: RUF001 - marks of Chinese


class PlainView:
    """Writes replies to stdout, each sentence as soon as it is known, and the rest to stderr, states as words."""

    def __init__(self, out: Output | None = None, notes: Output | None = None, *, stages: bool = False) -> None:
        """Write to two streams.

        Args:
            stages: write the latency of each stage.
        """
        self._out = out or Output(sys.stdout)
        self._notes = notes or Output(sys.stderr)
        self._starting = _StartingLines(self._notes)
        self._stages = stages
        self._situation = Situation()
        self._words = ""  # the state, as it was written last
        self._questions: deque[Utterance] = deque()  # The present turn's, and that of one that waits for its end.
        self._is_question_written = False  # The present turn's.
        self._cutter = PieceCutter()
        self._line = ""  # the end of the reply so far

    def starting(self, what: str, share: float | None = None) -> None:
        self._starting.show(what, share)

    def show(self, event: LiveEvent) -> None:
        self._situation.update(event)
        match event:
            case TurnStarted(utterance):
                self._questions.append(utterance)
                self._drop_text()
            case Transcript(text):
                self._write_question(text)
            case ReplyDelta(text):
                self._write_question()
                self._add_to_reply(text)
            case ToolCalled():
                self._write_question()
                self._write_reply(self._cutter.flush())
            case BargeIn():
                self._drop_text()
            case TurnRetracted() if self._questions:
                self._drop_question()
            case TurnFailed(_, utterance) if utterance:
                self._write_question()
                self._end_turn()
            case TurnTaken():
                self._finish_turn(event)
            case StateChanged("listening" | "asleep"):  # a repeated reply ends without a turn
                self._write_reply(self._cutter.flush())
        self._write_notes(event)
        self._write_state()

    def _finish_turn(self, taken: TurnTaken) -> None:
        self._write_question()
        self._write_reply(self._cutter.flush())
        turn = taken.ended.turn
        if taken.ended.was_interrupted:
            self._notes.write_dim(interruption(turn.reply))
        if line := latency_line(taken.latency) if self._stages else latency_figure(taken):
            self._notes.write_dim(line)
        self._end_turn()

    def _end_turn(self) -> None:
        if self._questions:
            self._questions.popleft()
        self._begin_turn()

    def _drop_question(self) -> None:
        """Drop the newest question, because it goes on; say so if it was written."""
        self._questions.pop()
        if not self._questions:
            if self._is_question_written:
                self._notes.write_dim("you went on: that reply is dropped")
            self._begin_turn()

    def _begin_turn(self) -> None:
        self._is_question_written = False
        self._drop_text()

    def _drop_text(self) -> None:
        self._cutter, self._line = PieceCutter(), ""

    def _write_question(self, transcript: str = "") -> None:
        """Write what the user asked: with its transcript, or else once the reply begins."""
        if self._questions and not self._is_question_written:
            self._is_question_written = True
            if self._situation.has_keys and not self._questions[0].clip:
                return  # the terminal has shown it while it was typed
            self._notes.write_dim(f"you: {question_text(self._questions[0], transcript)}")

    def _add_to_reply(self, delta: str) -> None:
        """Write the sentences that are whole; the last one is taken for whole without waiting for what follows."""
        pieces = self._cutter.feed(delta)
        self._line = ("" if pieces else self._line) + delta
        if ENDS_SENTENCE.search(self._line):
            pieces += self._cutter.flush()
            self._line = ""
        self._write_reply(pieces)

    def _write_reply(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            if piece.strip():
                self._out.write(printable(piece.strip(), keep="\t\n") + "\n")

    def _write_notes(self, event: LiveEvent) -> None:
        match event:
            case SessionEnded():
                lines = summary_lines(event, stages=self._stages)
            case KeysAsked():
                lines = [f"{key}: {does}" for key, does in self._situation.all_keys.items()]
            case _:
                lines = note_lines(event) or tool_lines(event)
        for line in lines:
            self._notes.write_dim(line)
        if isinstance(event, Ready) and (keys := self._situation.keys):
            self._notes.write_dim("keys: " + ", ".join(f"{key} {does}" for key, does in keys.items()))

    def _write_state(self) -> None:
        """Write the state if its words have changed."""
        words = self._situation.label
        if self._situation.muted and words != "muted":
            words += ", muted"
        if words != self._words and self._situation.state != "starting":
            self._words = words
            self._notes.write_dim(words)

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._out.check()


class JsonLiveView:
    """Writes one event a line to stdout, as JSON in ASCII, so that no control character reaches a terminal.

    Each has `event`, its name, and `t`, seconds since the view was opened.
    """

    def __init__(
        self,
        out: Output | None = None,
        notes: Output | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out or Output(sys.stdout)
        self._starting = _StartingLines(notes or Output(sys.stderr))
        self._clock = clock
        self._started = clock()

    def starting(self, what: str, share: float | None = None) -> None:
        self._starting.show(what, share)

    def show(self, event: LiveEvent) -> None:
        if type(event) in _RECORDS:
            name, record = _RECORDS[type(event)]
            head = {"event": name, "t": round(self._clock() - self._started, 3)}
            self._out.write(json.dumps(head | record(event)) + "\n")

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._out.check()


class _StartingLines:
    """Writes a line for each part that is being prepared, and for each tenth of its progress."""

    def __init__(self, notes: Output) -> None:
        self._notes = notes
        self._shown: tuple[str, int] | None = None

    def show(self, what: str, share: float | None) -> None:
        shown = (what, int(10 * (share or 0)))
        if shown != self._shown:
            self._shown = shown
            self._notes.write_dim(printable(what) + (f": {share:.0%}" if share is not None else ""))


def _turn_record(taken: TurnTaken) -> dict[str, Any]:
    turn, report, latency = taken.ended.turn, taken.ended.report, taken.latency
    return {
        "turn": taken.number,
        "user": turn.user,
        "prompt": turn.prompt or None,
        "transcript": report.transcript,
        "understood": report.understood or None,
        "not_understood": report.not_understood or None,
        "reply": turn.reply,
        "interrupted": turn.interrupted,
        "finish_reason": report.finish_reason,
        "model_passes": report.model_passes,
        "additional_generations": report.additional_generations,
        "tools": [result.as_record() for result in turn.tools],
        "tools_stopped": taken.ended.tools_stopped,
        "tokens": {"prompt": report.prompt_tokens, "cached": report.cached_tokens, "reply": report.reply_tokens},
        "latency": {
            **{stage: None if (value := getattr(latency, stage)) is None else rounded_ms(value) for stage in STAGES},
            "speculative_reply": latency.speculative_reply,
            "dropped_speculative_replies": latency.dropped_speculative_replies,
        },
    }


def _session_record(ended: SessionEnded) -> dict[str, Any]:
    return {
        "turns": ended.turns,
        "latency": {stage: percentiles(ended.latencies, stage) for stage in STAGES},
        "overruns": ended.overruns,
        "underruns": ended.underruns,
        "dropped_speculative_replies": ended.dropped_speculative_replies,
        "retracted_turns": ended.retracted_turns,
        "additional_generations": ended.additional_generations,
        "session": ended.session,
        "store": ended.store,
    }


def _state_record(event: StateChanged) -> dict[str, Any]:
    return {"state": event.state, "muted": event.muted, "tool": event.tool or None}


def _call_record(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _answer_record(event: ApprovalAnswered) -> dict[str, Any]:
    return {**_call_record(event.call), "allowed": event.allowed, "decided_by": event.decided_by}


def _error_record(event: SpeechFailed | TurnFailed) -> dict[str, Any]:
    error = event.error
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _ended_record(event: SpeechEnded) -> dict[str, Any]:
    return {"seconds": round(event.clip.seconds, 4), "last_voiced_sample": event.last_voiced, "sample": event.at}


# The name and the keys of each event. Samples count from when the microphone was opened.
_RECORDS: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    Ready: ("ready", vars),
    StateChanged: ("state_changed", _state_record),
    SpeechStarted: ("speech_started", lambda event: {"sample": event.start}),
    SpeechEnded: ("speech_ended", _ended_record),
    SpeechResumed: ("speech_resumed", lambda event: {"sample": event.at}),  # another `speech_ended` will follow
    SpeechTooLong: ("speech_too_long", vars),
    Transcript: ("transcript", vars),  # once the turn has started, where the engine knows it before its reply
    Understood: ("understood", vars),  # turn: null while the turn is not over
    ReplyDelta: ("reply_delta", vars),
    ToolCalled: ("tool_called", lambda event: _call_record(event.call)),
    ApprovalAsked: ("approval_asked", lambda event: _call_record(event.call)),  # "y" and "n" answer it
    ApprovalAnswered: ("approval_answered", _answer_record),
    ToolReturned: ("tool_returned", lambda event: event.result.as_record()),
    ToolsStopped: ("tools_stopped", vars),
    SentenceSpoken: ("sentence_spoken", vars),
    BargeIn: ("barge_in", vars),
    TurnRetracted: ("turn_retracted", vars),  # after `speech_resumed`: the turn that had started never took place
    Resumed: ("resumed", vars),
    TurnTaken: ("turn_ended", _turn_record),
    TurnUndone: (
        "turn_undone",
        lambda event: {"turn": event.number, "user": event.turn.user, "reply": event.turn.reply},
    ),
    Notice: ("notice", vars),
    DevicesChanged: ("notice", vars),
    FactsLearned: ("facts_learned", vars),
    SpeechFailed: ("error", _error_record),
    TurnFailed: ("error", _error_record),
    SessionEnded: ("session_ended", _session_record),
}
