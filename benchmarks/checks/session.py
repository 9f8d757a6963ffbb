"""Step f: a long conversation with interruptions, a clip that needs a larger cache, a resize that fails.

Turns run on another thread than loading, as in `voxcli chat`. Each has to be replayed from captured graphs: the
replays are counted and compared with the expected number.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.checks.findings import Notebook, describe
from benchmarks.checks.lab import LEVELS, REPLAYS_PER_TOKEN, Answer, Lab, ask, clip, text_of
from benchmarks.random_model import open_model
from benchmarks.script import Script
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session
from voxcli.engines.voxtral.device.demand import CHUNK_TOKENS
from voxcli.engines.voxtral.engine import VoxtralEngine
from voxcli.engines.voxtral.runtime.decoder import Decoder
from voxcli.engines.voxtral.runtime.model import SharedModel
from voxcli.engines.voxtral.runtime.sampler import Sampling

LONG_SECONDS = 100.0  # four windows, 1500 tokens: more than the small context
INTERRUPTED_EVERY = 3  # turns
TOO_MANY_TOKENS = 10**13  # their positions alone are 80 TB


def check(lab: Lab, note: Notebook) -> None:
    """Hold the conversations on a thread of their own."""
    with ThreadPoolExecutor(1, "turns") as thread:
        for part in (_interruptions, _too_long, _failed_resize):
            try:
                part(lab, note, thread)
            except Exception as error:  # noqa: BLE001 - the other part is worth trying
                note.failed(part.__name__.strip("_"), error)


def _interruptions(lab: Lab, note: Notebook, thread: ThreadPoolExecutor) -> None:
    with lab.engine(note.message) as engine:
        captured = thread.submit(lambda: list(_conversation(engine, lab))).result()
    with lab.engine(note.message, acceleration=LEVELS[0]) as engine:
        plain = thread.submit(lambda: list(_conversation(engine, lab))).result()
    turns = lab.sizes.turns
    passes = {answer.report.model_passes for answer, _ in captured}
    note.require(f"{turns} turns, every third interrupted: passes a turn", passes == {1}, sorted(passes), 1)
    missed = [number for number, (answer, replays) in enumerate(captured, 1) if replays != expected(answer, lab)]
    counted = sum(replays for _, replays in captured)
    wanted = sum(expected(answer, lab) for answer, _ in captured)
    note.require(
        f"{turns} turns: replays", not missed, f"{counted}, other than expected in turns {missed}", f"{wanted}, none"
    )
    equal = sum(one.ids == other.ids for (one, _), (other, _) in zip(captured, plain, strict=True))
    what, measured = f"{turns} turns: replies equal to those of the plain pass", f"{equal} of {turns}"
    if lab.emulated:
        note.require(what, equal == turns, measured, "all, in float32")
    else:  # in bfloat16, replies differ where two logits are as good as equal, and so do the turns after them
        note.measured(what, measured, equal=equal)


def _conversation(engine: VoxtralEngine, lab: Lab) -> Iterator[tuple[Answer, int]]:
    """Yield each turn's answer and its number of replays."""
    session = Session()
    for number in range(lab.sizes.turns):
        before = lab.replays
        stop = 1 + number % (lab.sizes.reply_tokens - 1) if number % INTERRUPTED_EVERY == 2 else None
        answer = ask(engine, session, clip(number), stop)
        yield answer, lab.replays - before
        turn = Utterance(clip(number)).answered(text_of(answer.ids), interrupted=stop is not None)
        session = session.add(turn)
        engine.prefill_history(session)


def expected(answer: Answer, lab: Lab, windows: int = 1) -> int:
    """Return the replays that a turn takes: the encoder, the prompt in chunks, and the steps."""
    fed, said = answer.report.prompt_tokens - answer.report.cached_tokens, answer.report.reply_tokens
    steps = min(said, lab.sizes.reply_tokens - 1)  # the last possible token is not fed
    return windows + -(-fed // CHUNK_TOKENS) + REPLAYS_PER_TOKEN * steps


def _too_long(lab: Lab, note: Notebook, thread: ThreadPoolExecutor) -> None:
    with lab.engine(note.message, context_tokens=lab.sizes.small_context) as engine:
        thread.submit(lambda: _lengthen(lab, note, engine)).result()


def _lengthen(lab: Lab, note: Notebook, engine: VoxtralEngine) -> None:
    session = Session()
    for what, spoken in (("before", clip(0)), ("with", clip(1, LONG_SECONDS)), ("after", clip(2))):
        answer, replays, session = _turn(lab, engine, session, spoken)
        what_turn = f"the turn {what} a clip of {LONG_SECONDS:.0f} s"
        note.require(f"{what_turn}: passes", answer.report.model_passes == 1, answer.report.model_passes, 1)
        if what == "with":
            note.measured(f"{what_turn}: replays", str(replays), replays=replays)
        else:
            note.require(f"{what_turn}: replays", replays == expected(answer, lab), replays, expected(answer, lab))


def _turn(lab: Lab, engine: VoxtralEngine, session: Session, spoken: AudioClip) -> tuple[Answer, int, Session]:
    before = lab.replays
    answer = ask(engine, session, spoken)
    replays = lab.replays - before
    session = session.add(Utterance(spoken).answered(text_of(answer.ids)))
    engine.prefill_history(session)
    return answer, replays, session


def _failed_resize(lab: Lab, note: Notebook, thread: ThreadPoolExecutor) -> None:
    """Request more memory than exists; afterwards, turns have to be replayed as before."""
    model = open_model(str(lab.checkpoint), lab.device)
    script = Script.of(model.config, reply_tokens=lab.sizes.reply_tokens)
    sampling = Sampling(script.reply_tokens, frozenset())
    capacity = lab.sizes.small_context + script.reply_tokens
    decoder = Decoder(SharedModel(model), capacity=capacity, backends=lab.backends())
    decoder.warm_up(sampling, notice=note.message, folder=lab.folder)

    def turn() -> tuple[list[int], int]:
        before = lab.replays
        decoder.prefill(script.finished(1))
        return list(decoder.stream(sampling, threading.Event())), lab.replays - before

    first = thread.submit(turn).result()
    try:
        thread.submit(decoder.resize, TOO_MANY_TOKENS).result()
        failure = "none"
    except (RuntimeError, MemoryError) as error:
        failure = describe(error)
    note.require("a resize that can't be had: error", failure != "none", failure, "one of memory")
    decoder.rewind(0)
    again = thread.submit(turn).result()
    decoder.close()
    note.require("after it: tokens", again[0] == first[0], again[0] == first[0], True)
    note.require("after it: replays", again[1] == first[1] > 0, again[1], first[1])
