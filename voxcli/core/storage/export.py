"""Formats stored sessions as text for a terminal, as Markdown, or as JSON; `html_page` beside it makes a page.

Names, prompts and replies are untrusted: in none of the formats can they drive the terminal or change the structure of
the document.
"""

import re
from datetime import datetime, timedelta
from typing import Any

from voxcli.core.session import first_words
from voxcli.core.storage.stored import SearchHit, SessionSummary, StoredSession, StoredTurn
from voxcli.core.tool_words import decision_words, result_line
from voxcli.printable import printable

FIRST_WORDS_LENGTH = 40  # most characters of the first words in a list
EXCERPT_LENGTH = 100  # most characters of a text around a word that was searched for

# What CommonMark and its extensions take for markup: anywhere, and at the beginning of a line.
_MARKUP = re.compile(r"[\\`*_\[\]<>&~|$#]")
_BLOCK_MARKUP = re.compile(r"^(?=[-+=:])|^(\d+)(?=[.)])")


def as_json(stored: StoredSession) -> dict[str, Any]:
    """Return a session as the JSON object that `show --json` and `export --format json` print."""
    return {
        "name": stored.name,
        "instructions": stored.instructions,
        "persona": stored.persona,
        "turns": [_turn_as_json(each) for each in stored.turns],
    }


def _turn_as_json(stored: StoredTurn) -> dict[str, Any]:
    latency = stored.details.latency
    return {
        "number": stored.number,
        "created_at": stored.created_at.isoformat(),
        "user": stored.turn.user,
        "prompt": stored.turn.prompt,
        "transcript": stored.details.transcript,
        "understood": stored.turn.understood or None,
        "reply": stored.turn.reply,
        "interrupted": stored.turn.interrupted,
        "tools": [result.as_record() for result in stored.turn.tools],
        "engine": stored.details.engine,
        "model": stored.details.model,
        "latency": vars(latency) if latency.endpoint_ms is not None else None,
    }


def hit_as_json(hit: SearchHit) -> dict[str, Any]:
    """Return a turn that was found as a JSON object."""
    return {"session": hit.session, **_turn_as_json(hit.stored)}


def summary_as_json(summary: SessionSummary) -> dict[str, Any]:
    """Return one session of a list as a JSON object."""
    return {
        "name": summary.name,
        "turns": summary.turns,
        "started": summary.started.isoformat(),
        "last": summary.last.isoformat(),
        "first_words": _first_words(summary),
    }


def as_list(summaries: list[SessionSummary]) -> str:
    """Return a table for a terminal; times are local."""
    names = [printable(each.name) for each in summaries]
    width = max(len("NAME"), *(len(name) for name in names))
    rows = [
        f"{each.turns:>5}  {_length(each.last - each.started):>7}  {_local(each.last)}  {name:<{width}}  "
        f"{printable(_first_words(each))}".rstrip()
        for each, name in zip(summaries, names, strict=True)
    ]
    return "\n".join([f"{'TURNS':>5}  {'LENGTH':>7}  {'LAST':<16}  {'NAME':<{width}}  FIRST WORDS", *rows])


def _first_words(summary: SessionSummary) -> str:
    return next(filter(None, (first_words(text, FIRST_WORDS_LENGTH) for text in summary.texts)), "")


def _length(time: timedelta) -> str:
    """Return how long a session lasted, in one figure."""
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if time.total_seconds() >= seconds:
            return f"{time.total_seconds() / seconds:.0f} {unit}"
    return f"{time.total_seconds():.0f} s"


def as_hits(hits: list[SearchHit], words: str) -> str:
    """Return the turns that were found for a terminal; times are local."""
    return "\n\n".join(_hit_as_text(hit, words.split()) for hit in hits)


def _hit_as_text(hit: SearchHit, words: list[str]) -> str:
    said, typed = asked(hit.stored)
    labelled = {"you": said, "typed": typed, "reply": hit.stored.turn.reply}
    texts = [_labelled(label, _excerpt(text, words)) for label, text in labelled.items() if text]
    head = f"{printable(hit.session)}, turn {hit.stored.number}  {_local(hit.stored.created_at)}"
    return "\n".join([head, *texts])


def _excerpt(text: str, words: list[str]) -> str:
    """Return one line of a text, around the first word that was searched for."""
    line = " ".join(text.split())
    places = [place for word in words if (place := line.lower().find(word.lower())) >= 0]
    start = max(0, min(places, default=0) - EXCERPT_LENGTH // 3)
    end = start + EXCERPT_LENGTH
    return ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")


def asked(stored: StoredTurn) -> tuple[str, str]:
    """Return what the user said, or the length of the speech if there is no transcript, and what they typed to it."""
    seconds = stored.turn.spoken_seconds
    if seconds is None:
        return stored.turn.user, ""
    return stored.details.transcript or f"({seconds:.1f} s of speech)", stored.turn.prompt


def as_text(stored: StoredSession) -> str:
    """Return a conversation for a terminal; times are local."""
    instructions = [_labelled("instructions", stored.instructions)] if stored.instructions else []
    return "\n\n".join([*instructions, *map(_turn_as_text, stored.turns)])


def _turn_as_text(stored: StoredTurn) -> str:
    said, typed = asked(stored)
    labelled = [("you", said), *([("typed", typed)] if typed else []), *(("tool", line) for line in tool_lines(stored))]
    labelled.append(("interrupted" if stored.turn.interrupted else "reply", stored.turn.reply))
    texts = [_labelled(label, text) for label, text in labelled]
    return "\n".join([f"{stored.number}  {_local(stored.created_at)}", *texts])


def tool_lines(stored: StoredTurn) -> list[str]:
    """Return a line for each tool that was called: what came of it, and who allowed or refused it."""
    return [
        ", ".join(filter(None, (result_line(each), "" if each.status == "refused" else decision_words(each))))
        for each in stored.turn.tools
    ]


def _labelled(label: str, text: str) -> str:
    """Return text after its label; further lines are indented so that none can pose as a label."""
    return f"  {label}: " + printable(text, keep="\n").replace("\n", "\n    ")


def turn_count(turns: int) -> str:
    """Return a number of turns in words."""
    return "1 turn" if turns == 1 else f"{turns} turns"


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def as_markdown(stored: StoredSession) -> str:
    """Return a session as CommonMark that reads as a dialogue; all untrusted text is escaped and quoted."""
    head = [f"# {_escaped(stored.name)}", f"{turn_count(len(stored.turns))}; times are UTC."]
    instructions = ["**Instructions**", _quoted(stored.instructions)] if stored.instructions else []
    return "\n\n".join([*head, *instructions, *map(_turn_as_markdown, stored.turns)]) + "\n"


def _turn_as_markdown(stored: StoredTurn) -> str:
    said, typed = asked(stored)
    speaker = "**voxcli**, interrupted" if stored.turn.interrupted else "**voxcli**"
    parts = [f"**You**, {stored.created_at:%Y-%m-%d %H:%M:%S}", _quoted(said), *([_quoted(typed)] if typed else [])]
    parts += [f"*Tool:* {_escaped(line)}" for line in tool_lines(stored)]
    return "\n\n".join([*parts, speaker, _quoted(stored.turn.reply)])


def _quoted(text: str) -> str:
    """Return a block quote: nothing in it is markup, and no line of the text is outside."""
    paragraphs = re.split(r"\n\s*\n", printable(text, keep="\n\t").strip())
    lines = ["\\\n> ".join(map(_escaped, paragraph.split("\n"))) for paragraph in paragraphs]
    return "> " + "\n>\n> ".join(lines)


def _escaped(line: str) -> str:
    """Return a line of text in which Markdown finds no markup."""
    line = _MARKUP.sub(r"\\\g<0>", printable(line, keep="\t").strip())
    return _BLOCK_MARKUP.sub(r"\1\\", line)
