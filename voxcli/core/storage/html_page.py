"""Makes a page of a stored session: the dialogue, its times, a chart of its latency, and its recordings.

The page is one file that loads nothing, and all untrusted text in it is escaped.
"""

import base64
import html
from collections.abc import Mapping

from voxcli.core.storage.export import asked, tool_lines, turn_count
from voxcli.core.storage.stored import StoredSession, StoredTurn
from voxcli.printable import printable

HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 45em; padding: 0 1em }}
p {{ margin: .2em 0; overflow-wrap: anywhere; white-space: pre-wrap }}
section {{ margin: 1.5em 0 }} .you {{ background: #eef3fb; border-radius: .6em; padding: .4em .8em }}
.reply {{ padding: .4em .8em }} .note {{ color: #666; font-size: 85% }} audio {{ display: block; height: 2em }}
svg {{ font: 11px system-ui, sans-serif; max-width: 100% }}
</style>
"""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 160, 48, 18  # The chart and its margins, in pixels.
STAGES = {"endpoint_ms": ("end of speech", "#9db4d3"), "first_token_ms": ("first token", "#5b84bd")}
STAGES["first_audio_ms"] = ("voice", "#1f4e8c")


def as_html(stored: StoredSession, recordings: Mapping[int, bytes]) -> str:
    """Return a session as one HTML file.

    Args:
        recordings: WAV files by the number of their turn.
    """
    parts = [HEAD.format(title=_escaped(stored.name)), f"<h1>{_escaped(stored.name)}</h1>\n"]
    parts.append(f'<p class="note">{turn_count(len(stored.turns))}; times are UTC.</p>\n')
    if stored.instructions:
        parts.append(f'<p class="note">{_escaped(stored.instructions)}</p>\n')
    parts += [_turn(each, recordings.get(each.number)) for each in stored.turns]
    return "".join([*parts, _chart(stored), "</html>\n"])


def _turn(stored: StoredTurn, recording: bytes | None) -> str:
    said, typed = asked(stored)
    details = filter(None, (f"{stored.created_at:%Y-%m-%d %H:%M:%S}", stored.details.engine, stored.details.model))
    audio = ""
    if recording:
        data = base64.b64encode(recording).decode()
        audio = f'<audio controls preload="none" src="data:audio/wav;base64,{data}"></audio>\n'
    interrupted = ' <span class="note">(interrupted)</span>' if stored.turn.interrupted else ""
    questions = "".join(f'<p class="you">{_escaped(text)}</p>\n' for text in (said, typed) if text)
    questions += "".join(f'<p class="note">tool: {_escaped(line)}</p>\n' for line in tool_lines(stored))
    return (
        f'<section>\n<p class="note">{stored.number} · {_escaped(", ".join(details))}</p>\n{questions}{audio}'
        f'<p class="reply">{_escaped(stored.turn.reply)}{interrupted}</p>\n</section>\n'
    )


def _chart(stored: StoredSession) -> str:
    """Return a bar for each spoken turn: its stages one after another; nothing if no latency is known."""
    bars = [(each.number, vars(each.details.latency)) for each in stored.turns]
    bars = [(number, latency) for number, latency in bars if any(latency.values())]
    longest = max((value or 0.0 for _, latency in bars for value in latency.values()), default=0.0)
    if longest <= 0:
        return ""
    step = (WIDTH - LEFT) / len(bars)
    scale = (HEIGHT - BOTTOM - 10) / longest
    parts = [
        f'<h2>Latency</h2>\n<svg viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" aria-label="latency of each turn">'
    ]
    for index, (number, latency) in enumerate(bars):
        parts.append(_bar(LEFT + index * step, step, latency, scale))
        if index % (len(bars) // 20 + 1) == 0:
            parts.append(f'<text x="{LEFT + (index + 0.3) * step:.1f}" y="{HEIGHT - 4}">{number}</text>')
    parts.append(f'<text x="0" y="16">{longest / 1000:.1f} s</text><text x="0" y="{HEIGHT - BOTTOM}">0 s</text>')
    for index, (name, color) in enumerate(STAGES.values()):
        x = LEFT + index * 120
        parts.append(f'<rect x="{x}" y="{HEIGHT + 4}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="{HEIGHT + 13}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _bar(x: float, step: float, latency: Mapping[str, float | None], scale: float) -> str:
    """Return the rectangles of one turn; each stage begins where the one before it ended."""
    parts, before = [], 0.0
    for key, (_, color) in STAGES.items():
        value = latency[key]
        if value is None or value <= before:
            continue
        top, height = HEIGHT - BOTTOM - value * scale, (value - before) * scale
        size = f'width="{max(1.0, step * 0.7):.1f}" height="{height:.1f}"'
        parts.append(f'<rect x="{x:.1f}" y="{top:.1f}" {size} fill="{color}"/>')
        before = value
    return "".join(parts)


def _escaped(text: str) -> str:
    return html.escape(printable(text, keep="\n\t"))
