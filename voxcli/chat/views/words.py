"""Texts that describe a live conversation, shared by the views and safe for a terminal."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from voxcli.chat.events import (
    ApprovalAnswered,
    ApprovalAsked,
    DevicesChanged,
    FactsLearned,
    Latency,
    LiveEvent,
    Notice,
    Ready,
    SessionEnded,
    TurnFailed,
    TurnTaken,
    TurnUndone,
)
from voxcli.core.percentiles import percentile
from voxcli.core.protocols import Utterance
from voxcli.core.session import Turn, first_words
from voxcli.core.storage.stored import StageTimes
from voxcli.core.tool_words import ASKED_CHARACTERS, DECISIONS, call_line, result_line, tool_name
from voxcli.core.tools import ToolCall, ToolCalled, ToolResult, ToolReturned, ToolsStopped
from voxcli.core.turn import SpeechFailed
from voxcli.core.understanding import Understood
from voxcli.errors import VoxError
from voxcli.printable import printable

ABOUT_ENGINES = {"embedded": "not Voxtral: English only, knows little"}
UNDONE_LENGTH = 40  # most characters of the typed text of an undone turn
HEADER_INDENT = len("loudspeaker") + 2
STAGES = {"endpoint_ms": "end of speech", "first_token_ms": "first token", "first_audio_ms": "voice"}


def note_lines(event: LiveEvent) -> list[str]:
    """Return the lines that describe an event; none for turns, states and events that need no words."""
    lines = _NOTES.get(type(event))
    return lines(event) if lines else []


def tool_lines(event: LiveEvent) -> list[str]:
    """Return the lines that describe what tools do, for views that write each event once."""
    match event:
        case ToolCalled(call):
            return [f"tool: {call_line(call)}"]
        case ApprovalAsked(call):
            return [approval_question(call)]
        case ApprovalAnswered(call, allowed, decided_by):
            return [f"{tool_name(call)}: {'allowed' if allowed else 'refused'} {DECISIONS[decided_by]}"]
        case ToolReturned(result):
            return [] if _was_told(result) else [result_line(result)]
    return []


def _was_told(result: ToolResult) -> bool:
    """Return whether the answer to the question has told all: the tool may not run."""
    return result.status == "refused" and (result.asked or result.decided_by == "nobody")


def approval_question(call: ToolCall, characters: int = ASKED_CHARACTERS) -> str:
    """Return the question whether a tool may run, as it is shown."""
    return f"May I run {call_line(call, characters)}?"


def question_text(utterance: Utterance, transcript: str) -> str:
    """Return what the user asked: the transcript if there is one, else the length of the utterance; then typed text."""
    spoken = transcript or (f"{utterance.clip.seconds:.1f} s" if utterance.clip else "")
    return printable("\n".join(part for part in (spoken, utterance.prompt) if part), keep="\n")


def turn_question(taken: TurnTaken) -> str:
    """Return what the user asked in a finished turn; see `question_text`."""
    turn, report = taken.ended.turn, taken.ended.report
    typed = turn.prompt if taken.clip else "\n".join(part for part in (turn.user, turn.prompt) if part)
    return question_text(Utterance(taken.clip, typed), report.transcript or report.understood)


def interruption(spoken_text: str) -> str:
    """Return the mark of an interrupted reply, of which `spoken_text` was played."""
    return "(interrupted)" if spoken_text else "(interrupted before a word was spoken)"


def latency_figure(taken: TurnTaken) -> str:
    """Return how long the user waited for the voice, or for text if there is no voice; empty for a typed turn.

    It is empty too for a turn that was interrupted before its reply.
    """
    waited_ms = taken.latency.first_audio_ms or taken.latency.first_token_ms
    return f"{waited_ms / 1000:.1f} s" if taken.clip and waited_ms and taken.ended.turn.reply else ""


def latency_line(latency: Latency) -> str:
    """Return the stages of a turn's latency in one line, the last first; empty if nothing is known."""
    times = [
        f"{name} {value / 1000:.2f} s"
        for key, name in reversed(STAGES.items())
        if (value := getattr(latency, key)) is not None
    ]
    speculation = ["speculative reply used"] if latency.speculative_reply == "used" else []
    if latency.dropped_speculative_replies:
        speculation.append(_dropped(latency.dropped_speculative_replies))
    return " · ".join(times + speculation)


def summary_lines(ended: SessionEnded, *, stages: bool = False) -> list[str]:
    """Return the summary of a conversation: turns, latency, counts of problems, and its session.

    Args:
        stages: give the latency of each stage, not only of the last one.
    """
    lines = [_count(ended.turns, "turn")]
    reached = [key for key in STAGES if percentiles(ended.latencies, key)]
    for key in reached if stages else reached[-1:]:
        if shares := percentiles(ended.latencies, key):
            lines.append(f"{STAGES[key]:<13}  p50 {shares['p50'] / 1000:.2f} s  p95 {shares['p95'] / 1000:.2f} s")
    counts = [
        f"{_count(ended.retracted_turns, 'turn')} taken back" if ended.retracted_turns else "",
        _dropped(ended.dropped_speculative_replies) if ended.dropped_speculative_replies else "",
        f"{_count(ended.overruns, 'overrun')} of the microphone" if ended.overruns else "",
        f"{_count(ended.underruns, 'underrun')} of the loudspeaker" if ended.underruns else "",
    ]
    if any(counts):
        lines.append(" · ".join(filter(None, counts)))
    if ended.session is not None and ended.can_continue:
        lines.append(continue_line(ended.session))
    return lines


def continue_line(session: str) -> str:
    """Return the line that says how to continue a session."""
    return f"Continue with: voxcli chat --session {shlex.quote(printable(session))}"


def _ready_lines(ready: Ready) -> list[str]:
    """Return the header of a conversation: what answers, the devices, the session, and how echo is handled."""
    about = f" ({ABOUT_ENGINES[ready.engine]})" if ready.engine in ABOUT_ENGINES else ""
    voice = f", voice {ready.voice}" if ready.voice else ""
    header = {
        "engine": f"{ready.engine}: {ready.model}{about}",
        "microphone": ready.input_device or "",
        "loudspeaker": f"{ready.output_device or 'none: replies are shown, not spoken'}{voice}",
        "persona": ready.persona or "",
        "session": _session(ready),
        "echo": _echo(ready) if ready.input_device else "",
        "wake word": f'say "{ready.wake_word}" to talk' if ready.wake_word else "",
    }
    return [printable(f"{name.ljust(HEADER_INDENT)}{text}") for name, text in header.items() if text]


def _session(ready: Ready) -> str:
    if ready.session is None:
        return "new, kept under its first words" if ready.kept else "not kept"
    return f"{ready.session}, " + (f"goes on from {_count(ready.turns, 'turn')}" if ready.turns else "new")


def _echo(ready: Ready) -> str:
    if ready.echo == "off":
        return "none, because nothing is played"
    if ready.push_to_talk != "off":
        return "no matter, because the space key opens the microphone"
    if ready.echo == "cancelled" and ready.barge_in:
        return "cancelled: talk at any time, even during a reply"
    return "the microphone is ignored during a reply" + ("; i interrupts it" if ready.keys else "")


def _asked(turn: Turn) -> str:
    """Return what a turn asked, in a few words."""
    spoken = "" if turn.spoken_seconds is None else f"{turn.spoken_seconds:.1f} s"
    return " ".join(filter(None, (spoken, first_words(turn.typed_text, UNDONE_LENGTH))))


def _facts_lines(facts: Sequence[str]) -> list[str]:
    if not facts:
        return ["nothing new to remember"]
    return [*(f"remembered: {printable(fact)}" for fact in facts), "voxcli facts edit changes what is remembered"]


def _of_turn(understood: Understood) -> str:
    return "" if understood.turn is None else f" in turn {understood.turn}"


def _in_one_line(error: VoxError) -> str:
    return printable(error.message + (f" ({error.hint})" if error.hint else ""))


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _dropped(speculative_replies: int) -> str:
    return _count(speculative_replies, "speculative reply", "speculative replies") + " dropped"


def percentiles(latencies: Sequence[StageTimes], stage: str) -> dict[str, float] | None:
    """Return the 50th and 95th percentile of a stage, in ms, by nearest rank; None if no turn reached it."""
    known = [value for latency in latencies if (value := getattr(latency, stage)) is not None]
    found = {f"p{share}": percentile(known, share / 100) for share in (50, 95)}
    return {name: rounded_ms(value) for name, value in found.items() if value is not None} or None


def rounded_ms(value: float) -> float:
    """Return milliseconds rounded to a tenth."""
    return round(value, 1)


# The lines for each kind of event.
_NOTES: dict[type, Callable[[Any], list[str]]] = {
    Ready: _ready_lines,
    Notice: lambda event: [printable(event.text)],
    DevicesChanged: lambda event: [printable(event.text)],
    SpeechFailed: lambda event: [f"no speech: {_in_one_line(event.error)}"],
    Understood: lambda event: [printable(f"you said{_of_turn(event)}: {event.text}")],
    TurnUndone: lambda event: [printable(f"undone: turn {event.number}, {_asked(event.turn)}")],
    FactsLearned: lambda event: _facts_lines(event.facts),
    TurnFailed: lambda event: [f"no answer: {_in_one_line(event.error)}"],
    ToolsStopped: lambda event: [event.note],
    SessionEnded: summary_lines,
}
