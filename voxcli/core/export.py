"""Formats a stored session as text for a terminal, as Markdown, or as JSON.

Names, prompts and replies are untrusted: in none of the three formats can they drive the terminal or change the
structure of the document.
"""

import re
from datetime import datetime
from typing import Any

from voxcli.core.stored import SessionSummary, StoredSession, StoredTurn
from voxcli.printable import printable


def as_json(stored: StoredSession) -> dict[str, Any]:
    """Return a session as the JSON object that `show --json` and `export --format json` print."""
    return {
        "name": stored.name,
        "instructions": stored.instructions,
        "turns": [
            {
                "number": each.number,
                "created_at": each.created_at.isoformat(),
                "user": each.turn.user,
                "prompt": each.turn.prompt,
                "transcript": each.details.transcript,
                "reply": each.turn.reply,
                "interrupted": each.turn.interrupted,
                "engine": each.details.engine,
                "model": each.details.model,
            }
            for each in stored.turns
        ],
    }


def summary_as_json(summary: SessionSummary) -> dict[str, Any]:
    """Return one session of a list as a JSON object."""
    return {
        "name": summary.name,
        "turns": summary.turns,
        "started": summary.started.isoformat(),
        "last": summary.last.isoformat(),
    }


def as_list(summaries: list[SessionSummary]) -> str:
    """Return a table for a terminal; times are local."""
    rows = [f"{each.turns:>5}  {_local(each.last)}  {printable(each.name)}" for each in summaries]
    return "\n".join([f"{'TURNS':>5}  {'LAST':<16}  NAME", *rows])


def as_text(stored: StoredSession) -> str:
    """Return a conversation for a terminal; times are local."""
    instructions = [_labelled("instructions", stored.instructions)] if stored.instructions else []
    return "\n\n".join([*instructions, *map(_turn_as_text, stored.turns)])


def _turn_as_text(stored: StoredTurn) -> str:
    transcript = [_labelled("transcript", stored.details.transcript)] if stored.details.transcript else []
    reply = _labelled("interrupted" if stored.turn.interrupted else "reply", stored.turn.reply)
    return "\n".join(
        [f"{stored.number}  {_local(stored.created_at)}", _labelled("you", stored.turn.user_text), *transcript, reply]
    )


def _labelled(label: str, text: str) -> str:
    """Return text after its label; further lines are indented so that none can pose as a label."""
    return f"  {label}: " + printable(text, keep="\n").replace("\n", "\n    ")


def turn_count(turns: int) -> str:
    """Return a number of turns in words."""
    return "1 turn" if turns == 1 else f"{turns} turns"


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def as_markdown(stored: StoredSession) -> str:
    """Return a session as CommonMark; all untrusted text is in code spans and fenced blocks."""
    head = [f"# Session {_span(stored.name)}", f"{turn_count(len(stored.turns))}; times are UTC."]
    instructions = ["## Instructions", _fenced(stored.instructions)] if stored.instructions else []
    return "\n\n".join([*head, *instructions, *map(_turn_as_markdown, stored.turns)]) + "\n"


def _turn_as_markdown(stored: StoredTurn) -> str:
    turn, details = stored.turn, stored.details
    made_by = "".join(f", {_span(text)}" for text in (details.engine, details.model) if text)
    parts = [f"## Turn {stored.number}", f"{stored.created_at:%Y-%m-%d %H:%M:%S}{made_by}"]
    parts += ["User:", _fenced(turn.user_text)]
    if details.transcript:
        parts += ["Transcript:", _fenced(details.transcript)]
    parts += ["Reply (interrupted):" if turn.interrupted else "Reply:", _fenced(turn.reply)]
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    """Return a fenced block that the text can't close: its fence is longer than any run of backticks."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return "\n".join((f"{fence}text", printable(text, keep="\n\t"), fence))


def _span(text: str) -> str:
    """Return a code span that the text can't close."""
    fence = "`" * (_longest_run(text) + 1)
    space = "" if text and "`" not in text else " "
    return f"{fence}{space}{printable(text)}{space}{fence}"


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
