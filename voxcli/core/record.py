"""Builds the record of a turn that `once --json` prints and `batch` writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voxcli.core.protocols import Engine, Utterance
from voxcli.core.tools import ToolResult
from voxcli.core.turn import TurnEnded
from voxcli.errors import VoxError


@dataclass(frozen=True)
class Context:
    """Facts in a record that are not part of the turn."""

    engine: Engine
    utterance: Utterance
    path: str | None  # the recording; "-" is standard input
    session: str | None
    turn: int  # number in the session, from 1
    load_seconds: float  # time until the engine was ready


def record_of(ended: TurnEnded, context: Context) -> dict[str, Any]:
    """Return the JSON object of a finished turn. Keys may be added, but are never renamed."""
    clip = context.utterance.clip
    turn, report, timings = ended.turn, ended.report, ended.timings
    return {
        "reply": turn.reply,
        "user": turn.user,
        "prompt": turn.prompt or None,
        "transcript": report.transcript,
        "understood": report.understood or None,
        "not_understood": report.not_understood or None,
        "audio": clip
        and {
            "path": context.path,
            "samples": len(clip.samples),
            "sample_rate": clip.sample_rate,
            "seconds": round(clip.seconds, 4),
            "damaged_seconds": round(clip.damaged_seconds, 4),
            "cancelled_seconds": round(clip.cancelled_seconds, 4),
            "gain_db": round(clip.gain_db, 2),
        },
        "engine": context.engine.name,
        "model": context.engine.model,
        "model_passes": report.model_passes,
        "additional_generations": report.additional_generations,
        "tools": [result.as_record() for result in turn.tools],
        "tools_stopped": ended.tools_stopped,
        "session": context.session,
        "turn": context.turn,
        "interrupted": turn.interrupted,
        "finish_reason": report.finish_reason,
        "tokens": {"prompt": report.prompt_tokens, "cached": report.cached_tokens, "reply": report.reply_tokens},
        "timings": {
            "load_seconds": round(context.load_seconds, 4),
            "first_token_seconds": _rounded(timings.first_token_seconds),
            "first_audio_seconds": _rounded(timings.first_audio_seconds),
            "total_seconds": round(timings.total_seconds, 4),
        },
    }


def failure_of(
    error: Exception,
    engine: Engine,
    *,
    path: str | None,
    prompt: str,
    session: str | None,
    tools: Sequence[ToolResult] = (),
) -> dict[str, Any]:
    """Return the JSON object of a turn that failed, with `error` in place of the reply.

    Args:
        tools: those that had run before.
    """
    code = error.code if isinstance(error, VoxError) else "unexpected"
    message = error.message if isinstance(error, VoxError) else f"{type(error).__name__}: {error}"
    return {
        "error": {"code": code, "message": message},
        "prompt": prompt or None,
        "audio": {"path": path},
        "engine": engine.name,
        "model": engine.model,
        "session": session,
        **({"tools": [result.as_record() for result in tools]} if tools else {}),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
