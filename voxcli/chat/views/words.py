"""Texts that describe a live conversation, shared by the views and safe for a terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from voxcli.chat.events import Latency, LiveEvent, Notice, Ready, SessionEnded, TurnFailed
from voxcli.core.percentiles import percentile
from voxcli.core.turn import SpeechFailed, TurnEnded
from voxcli.errors import VoxError
from voxcli.printable import printable

STAGES = {"endpoint_ms": "end of speech", "first_token_ms": "first token", "first_audio_ms": "voice"}


def note_lines(event: LiveEvent) -> list[str]:
    """Return the lines that describe an event; none for turns, states and events that need no words."""
    lines = _NOTES.get(type(event))
    return lines(event) if lines else []


def user_text(ended: TurnEnded) -> str:
    """Return the user's side of a turn: the transcript if there is one, else the placeholder; then typed text."""
    turn = ended.turn
    return printable("\n".join(part for part in (ended.report.transcript or turn.user, turn.prompt) if part), keep="\n")


def interruption(spoken_text: str) -> str:
    """Return the mark of an interrupted reply, of which `spoken_text` was played."""
    return "(interrupted)" if spoken_text else "(interrupted before a word was spoken)"


def latency_line(latency: Latency) -> str:
    """Return the latency of a turn in one line, the time until its first sound first; empty if nothing is known."""
    times = [
        f"{name} {value / 1000:.2f} s"
        for key, name in reversed(STAGES.items())
        if (value := getattr(latency, key)) is not None
    ]
    speculation = ["speculative reply used"] if latency.speculative_reply == "used" else []
    if latency.dropped_speculative_replies:
        speculation.append(_dropped(latency.dropped_speculative_replies))
    return " · ".join(times + speculation)


def summary_lines(ended: SessionEnded) -> list[str]:
    """Return the summary of a conversation: turns, latency by stage, counts of problems, and its session."""
    lines = [_count(ended.turns, "turn")]
    for key, name in STAGES.items():
        if shares := percentiles(ended.latencies, key):
            lines.append(f"{name:<13}  p50 {shares['p50'] / 1000:.2f} s  p95 {shares['p95'] / 1000:.2f} s")
    counts = [
        _dropped(ended.dropped_speculative_replies) if ended.dropped_speculative_replies else "",
        f"{_count(ended.overruns, 'overrun')} of the microphone" if ended.overruns else "",
        f"{_count(ended.underruns, 'underrun')} of the loudspeaker" if ended.underruns else "",
    ]
    if any(counts):
        lines.append(" · ".join(filter(None, counts)))
    if ended.session is not None:
        lines.append(printable(f"session {ended.session}" + (f", in {ended.store}" if ended.store else "")))
    return lines


def _ready_lines(ready: Ready) -> list[str]:
    voice = f", voice {ready.voice}" if ready.voice else ""
    session = f", session {ready.session}" if ready.session is not None else ""
    return [
        printable(f"ready: {ready.engine} ({ready.model}){voice}{session}"),
        printable(f"{ready.input_device} > {ready.output_device or 'no loudspeaker'}, echo {ready.echo}"),
    ]


def _in_one_line(error: VoxError) -> str:
    return printable(error.message + (f" ({error.hint})" if error.hint else ""))


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _dropped(speculative_replies: int) -> str:
    return _count(speculative_replies, "speculative reply", "speculative replies") + " dropped"


def percentiles(latencies: Sequence[Latency], stage: str) -> dict[str, float] | None:
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
    SpeechFailed: lambda event: [f"no speech: {_in_one_line(event.error)}"],
    TurnFailed: lambda event: [f"no answer: {_in_one_line(event.error)}"],
    SessionEnded: summary_lines,
}
