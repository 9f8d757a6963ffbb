"""Measures what asking what was understood does to the next turn: `python -m benchmarks.understood`.

Two conversations with one model alternate, turn by turn. In one of them, the model is asked after each reply what it
understood, for as long as the user waits; then it is cancelled. In both, the history is prefilled after that. The
user's next utterance begins then, and the time from its end to the first token of the reply counts.

    reply | understood, up to 48 tokens | history | wait | utterance | first token
    reply | history | wait                               | utterance | first token
"""

import sys
import threading
import time
from dataclasses import dataclass, field
from shlex import join
from typing import Annotated, Any

import typer

from benchmarks.baselines import front_end
from benchmarks.command import DeviceFlag, ForceFlag, JsonFlag, ModelFlag, command_line, publish, require_writable
from benchmarks.floors import synchronize
from benchmarks.one_pass import quiet
from benchmarks.random_model import default_model, open_model
from benchmarks.report import Figure, median
from benchmarks.script import CLIP_SECONDS, END, USER, USER_END, Script
from voxcli.core.understanding import LINE_TOKENS
from voxcli.engines.voxtral.runtime.decoder import Decoder
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampling

INSTRUCTION_TOKENS = 25  # Length of the instruction in Voxtral's tokenizer.
MOST_RATIO = 1.05  # above it, more than the noise of a measurement makes a first token later
NEVER = threading.Event()


@dataclass
class Times:
    """What was measured of one of the two conversations."""

    first_token_seconds: list[float] = field(default_factory=list)
    ready_seconds: list[float] = field(default_factory=list)  # Time from the end of the reply to that of all work.
    line_tokens: list[int] = field(default_factory=list)


class Talker:
    """Runs turns of a script with one decoder."""

    def __init__(self, model: Any, reply_tokens: int, turns: int) -> None:
        self._script = Script.of(model.config, reply_tokens=reply_tokens)
        capacity = len(self._script.prompt(turns + 1)) + reply_tokens + INSTRUCTION_TOKENS + LINE_TOKENS + 64
        self._decoder = Decoder(SharedModel(model), capacity=capacity)
        self._front_end, self._clips, self._device = front_end(model.config), self._script.clips(), model.device.type
        nothing = frozenset({self._script.vocabulary})  # no such id exists, so only the length ends a text
        self._reply, self._line = Sampling(reply_tokens, nothing), Sampling(LINE_TOKENS, nothing)
        self._instruction = [END, USER, *range(1000, 1000 + INSTRUCTION_TOKENS), USER_END]
        self._decoder.warm_up(self._reply)

    def take(self, number: int, wait_seconds: float, times: Times, *, understood: bool) -> None:
        """Answer turn `number`, wait as a user does, and measure the first token of the next turn."""
        self._answer(number)
        ended = time.perf_counter()
        if understood:
            times.line_tokens.append(self._understand(ended + wait_seconds))
        self._decoder.prefill(self._script.finished(number))
        synchronize(self._device)
        times.ready_seconds.append(time.perf_counter() - ended)
        # While the user still waits or speaks, what is left of the work goes on; its end is waited for here.
        time.sleep(max(0.0, ended + wait_seconds - time.perf_counter()))
        late = max(0.0, times.ready_seconds[-1] - wait_seconds - CLIP_SECONDS)
        times.first_token_seconds.append(late + self._answer(number + 1))

    def _answer(self, number: int) -> float:
        """Answer a turn; return the seconds from its clip to the first token."""
        clip = next(self._clips)
        started = time.perf_counter()
        self._decoder.prefill(self._script.prompt(number), self._front_end.features(clip))
        first, *_ = [time.perf_counter() - started for _ in self._decoder.stream(self._reply, NEVER)]
        return first

    def _understand(self, until: float) -> int:
        """Ask what was understood until a moment; return the number of tokens."""
        count, length = 0, self._decoder.append(self._instruction)
        for _ in self._decoder.stream(self._line, NEVER):
            count += 1
            if time.perf_counter() >= until:
                break
        self._decoder.rewind(length)
        return count


def measure(model: Any, wait_seconds: float, turns: int, reply_tokens: int) -> dict[str, Times]:
    """Return the times of a conversation that asks what was understood, and of one that does not."""
    talker, found = Talker(model, reply_tokens, turns), {"off": Times(), "show": Times()}
    for number in (1, 1, *range(1, turns + 1)):  # The first ones warm up.
        for mode, times in found.items():
            talker.take(number, wait_seconds, times, understood=mode == "show")
    return {
        mode: Times(times.first_token_seconds[2:], times.ready_seconds[2:], times.line_tokens[2:])
        for mode, times in found.items()
    }


def figures(found: dict[str, Times], wait_seconds: float) -> list[Figure]:
    """Return the median time to the first token of each conversation, and their ratio."""
    base = median(found["off"].first_token_seconds)
    shown = []
    for mode, times in found.items():
        first, ready = median(times.first_token_seconds), median(times.ready_seconds)
        tokens = median([float(each) for each in times.line_tokens])
        line = f", {tokens:.0f} tokens of a line" if times.line_tokens else ""
        text = f"{1000 * first:.1f} ms to the first token ({first / base:.2f} of off); ready after {ready:.2f} s{line}"
        values = {"first_token_ms": 1000 * first, "ratio": first / base, "ready_seconds": ready}
        what = f'understood = "{mode}", the user waits {wait_seconds:g} s'
        if mode == "show":
            bar, met = f"at most {MOST_RATIO:g} of off", first <= MOST_RATIO * base
            shown.append(Figure(what, text, bar, met, values=values))
        else:
            shown.append(Figure(what, text, values=values))
    return shown


def understood(
    model: ModelFlag = "",
    device: DeviceFlag = "auto",
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long the user waits.")] = 2.0,
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=1, help="Turns that are measured.")] = 10,
    reply_tokens: Annotated[int, typer.Option("--reply-tokens", metavar="N", min=2, help="Tokens per reply.")] = 40,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure the first token of a turn, with and without asking after the turn before what was understood."""
    require_writable(json, force=force)
    name = model or default_model(device)
    with quiet():
        found = measure(open_model(name, device), wait, turns, reply_tokens)
    typer.echo(f"{name}\n$ {join(['python', '-m', 'benchmarks.understood', *sys.argv[1:]])}")
    publish(figures(found, wait), json)


app = command_line(understood)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.understood")
