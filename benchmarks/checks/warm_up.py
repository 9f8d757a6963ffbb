"""Step a: how long a start takes on each level of acceleration, and the first answers after it."""

import time

from benchmarks.checks.findings import Notebook
from benchmarks.checks.lab import LEVELS, REPLAYS_PER_TOKEN, Answer, Lab, ask, clip, text_of
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.engine import VoxtralEngine

DEFAULT = "auto"
TEMPERATURE, TOP_P = 0.2, 0.95


def check(lab: Lab, note: Notebook) -> None:
    """Start with each level, the slowest first, then with the default settings."""
    for level in (*LEVELS, DEFAULT):
        try:
            _start(lab, note, level)
        except Exception as error:  # noqa: BLE001 - the other levels are worth trying
            note.failed(f"{level}: started and answered", error)
    _draw(lab, note)


def _start(lab: Lab, note: Notebook, level: str) -> None:
    wanted, context = (LEVELS[-1], lab.sizes.default_context) if level == DEFAULT else (level, lab.sizes.context)
    started = time.perf_counter()
    with lab.engine(note.message, acceleration=level, context_tokens=context) as engine:
        ready = time.perf_counter() - started
        note.require(f"{level}: level that works", engine.acceleration == wanted, engine.acceleration, wanted)
        note.measured(f"{level}: ready after", f"{ready:.1f} s", seconds=ready)
        answers = two_turns(engine)
    lab.replies[level] = [answer.ids for answer in answers]
    for number, answer in enumerate(answers, 1):
        milliseconds = 1000 * answer.first_token_seconds
        note.measured(f"{level}: clip to first token, turn {number}", f"{milliseconds:.1f} ms", ms=milliseconds)
    passes = {answer.report.model_passes for answer in answers}
    note.require(f"{level}: model passes a turn", passes == {1}, sorted(passes), 1)
    lengths = {len(answer.ids) for answer in answers}
    note.require(
        f"{level}: tokens of a reply", lengths == {lab.sizes.reply_tokens}, sorted(lengths), lab.sizes.reply_tokens
    )


def _draw(lab: Lab, note: Notebook) -> None:
    """Sample tokens with the model card's settings, which captures the generator of random numbers."""
    with lab.engine(note.message, temperature=TEMPERATURE, top_p=TOP_P) as engine:
        before = lab.replays
        answers = [ask(engine, Session(), clip(0)) for _ in range(2)]
        replays = lab.replays - before
    different = answers[0].ids != answers[1].ids
    note.require("drawn: two replies to the same clip differ", different, different, True)
    least = REPLAYS_PER_TOKEN * sum(answer.report.reply_tokens - 1 for answer in answers)
    note.require("drawn: replays", replays >= least, replays, f"at least {least}")


def two_turns(engine: VoxtralEngine) -> list[Answer]:
    """Return the answers of a short conversation, the same for each engine."""
    first = ask(engine, Session(), clip(0))
    session = Session().add(Utterance(clip(0)).answered(text_of(first.ids)))
    engine.prefill_history(session)
    return [first, ask(engine, session, clip(1))]
