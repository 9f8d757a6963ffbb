"""What the views say of a live conversation in words, safe for a terminal. Pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

from voxcli.chat.events import Latency, LiveEvent, Notice, Ready, SessionEnded, TurnFailed
from voxcli.core.percentiles import percentile
from voxcli.core.turn import SpeechFailed, TurnEnded
from voxcli.errors import VoxError
from voxcli.printable import printable

STAGES = {"endpoint_ms": "end of speech", "first_token_ms": "first token", "first_audio_ms": "voice"}


def notes_of(event: LiveEvent) -> list[str]:
    """Return what there is to say, beside turns and states, of an event; safe for a terminal."""
    told = _NOTES.get(type(event))
    return told(event) if told else []


def said(ended: TurnEnded) -> str:
    """Return the user's side of a turn: its words where they are known, else its placeholder."""
    turn = ended.turn
    return printable("\n".join(part for part in (ended.report.transcript or turn.user, turn.prompt) if part), keep="\n")


def interruption(transcript: str) -> str:
    """Return how an interrupted reply is marked."""
    return "(interrupted)" if transcript else "(interrupted before a word was heard)"


def latency_line(latency: Latency) -> str:
    """Return what a turn took, in one line, the most telling figure first; empty if nothing is known."""
    times = [
        f"{name} {value / 1000:.2f} s"
        for key, name in reversed(STAGES.items())
        if (value := getattr(latency, key)) is not None
    ]
    speculative_replies = ["draft used"] if latency.speculative_reply == "used" else []
    if latency.dropped_speculative_replies:
        speculative_replies.append(_count(latency.dropped_speculative_replies, "speculative_reply") + " dropped")
    return " · ".join(times + speculative_replies)


def summary_lines(ended: SessionEnded) -> list[str]:
    """Return what the conversation came to: turns, latency by stage, what went wrong, where it is kept."""
    lines = [_count(ended.turns, "turn")]
    for key, name in STAGES.items():
        if shares := spread(ended.latencies, key):
            lines.append(f"{name:<13}  p50 {shares['p50'] / 1000:.2f} s  p95 {shares['p95'] / 1000:.2f} s")
    mishaps = {
        "speculative_reply": (ended.dropped_speculative_replies, "dropped"),
        "overrun": (ended.overruns, "of the microphone"),
        "underrun": (ended.underruns, "of the loudspeaker"),
    }
    told = [f"{_count(number, what)} {how}" for what, (number, how) in mishaps.items() if number]
    if told:
        lines.append(" · ".join(told))
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def spread(latencies: Sequence[Latency], stage: str) -> dict[str, float] | None:
    """Return the 50th and 95th percentile of a stage, in ms, by nearest rank; None if no turn came so far."""
    known = [value for latency in latencies if (value := getattr(latency, stage)) is not None]
    found = {f"p{share}": percentile(known, share / 100) for share in (50, 95)}
    return {name: rounded_ms(value) for name, value in found.items() if value is not None} or None


def rounded_ms(value: float) -> float:
    """Return milliseconds to a tenth."""
    return round(value, 1)


# What people are told beside turns and states.
_NOTES: dict[type, Callable[[Any], list[str]]] = {
    Ready: _ready_lines,
    Notice: lambda event: [printable(event.text)],
    SpeechFailed: lambda event: [f"no speech: {_in_one_line(event.error)}"],
    TurnFailed: lambda event: [f"no answer: {_in_one_line(event.error)}"],
    SessionEnded: summary_lines,
}
