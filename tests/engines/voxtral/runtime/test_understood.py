"""What was understood is asked on the cache as the reply left it: the encoder does not run, and no trace is left.

RANDOM_SEQUENCES: number of random sequences.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.voxtral.runtime.test_prefix_reuse import Talk, parts, sound
from tests.engines.voxtral.runtime.test_undo_reuse import folders
from voxcli.core.memory import Memory
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session
from voxcli.core.storage.store import Store
from voxcli.core.turn import TurnEnded, run_turn
from voxcli.core.understanding import INSTRUCTION, LINE_TOKENS, Understanding, UnderstoodMode, one_line
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampling  # noqa: E402
from voxcli.engines.voxtral.tokenizer import wrap  # noqa: E402

__all__ = ["folders", "parts"]  # fixtures

SEQUENCES = int(os.environ.get("RANDOM_SEQUENCES", "20"))
# Of one window each, so that the encoder is called once for each. No two clips of a sequence are alike.
QUESTIONS = ((0.0, "Hello."), (0.7, ""), (1.9, "Go on."), (1.2, ""))

Ending = Literal["finished", "interrupted", "left", "retracted"]


class Ask(NamedTuple):
    """A turn, how its reply ends, and after how many steps the question of what was understood is cancelled."""

    question: tuple[float, str]  # length of the clip in seconds, 0 for none, and text
    ending: Ending
    mode: UnderstoodMode
    cancelled_after: int | None  # None: it is not
    prefilled: bool  # the history is prefilled after the turn


asks = st.builds(
    Ask,
    st.sampled_from(QUESTIONS),
    st.sampled_from(["finished", "finished", "finished", "interrupted", "left", "retracted"]),
    st.sampled_from(["show", "remember", "remember", "off"]),
    st.sampled_from([None, None, 0, 1, 2, 7]),
    st.booleans(),
)
actions = st.one_of(asks, asks, asks, st.sampled_from(["undo", "redo", "prefill"]))


def question(seconds: float, text: str = "", seed: int = 0) -> Utterance:
    return Utterance(sound(seconds, seed) if seconds else None, text)


class CuriousTalk:
    """A stored conversation whose engine is asked what it understood after each reply."""

    def __init__(self, talk: Talk, store: Store, tokenizer: Any) -> None:
        self.talk, self.store, self.tokenizer = talk, store, tokenizer
        self.memory = Memory.resumed(store, store.create("talk", "Be brief."), "Be brief.")
        self.decoder = talk.engine.decoder
        self.asked = self.spoken_replies = 0
        self.lines = 0

    def act(self, action: Ask | str) -> None:
        match action:
            case Ask():
                self.ask(action)
            case "undo":
                self.memory.undo()
            case "redo":
                name = self.memory.session.name or ""
                self.store.redo(name)
                self.memory = Memory.resumed(self.store, name, "Be brief.")
            case "prefill":
                self.talk.engine.prefill_history(self.memory.session)

    def ask(self, ask: Ask) -> None:
        self.asked += 1
        session, utterance = self.memory.session, question(*ask.question, seed=self.asked)
        expected = self.talk.expected(session, utterance)
        self.talk.ids, interrupt = [], threading.Event()
        self.spoken_replies += utterance.clip is not None
        understanding = Understanding(ask.mode)
        events = run_turn(self.talk.engine, session, utterance, interrupt, understanding=understanding)
        with closing(understanding), closing(events):
            for event in events:
                if ask.ending != "finished" and len(self.talk.ids) >= 2 and not isinstance(event, TurnEnded):
                    interrupt.set()
                    if ask.ending == "left":
                        return
            assert isinstance(event, TurnEnded)
            replied = list(self.talk.ids)
            assert replied == expected[: len(replied)]
            assert ask.ending != "finished" or replied == expected
            assert event.report.model_passes == 1
            if ask.ending == "retracted":
                return
            self.memory.understood = ask.mode
            self.memory.remember(event, self.talk.engine)
            if ask.ending == "finished" and utterance.clip and ask.mode != "off":
                self.understand(understanding, self.fresh_line(session, utterance, replied), ask.cancelled_after)
        if ask.prefilled:
            self.talk.engine.prefill_history(self.memory.session)

    def understand(self, understanding: Understanding, expected: list[int] | None, cancelled_after: int | None) -> None:
        """Ask, and compare the tokens, the encoder's calls and the cache with what they have to be."""
        encoded, cached = self.decoder.windows_encoded, self.decoder.cached
        self.talk.ids, steps = [], 0
        while True:
            if steps == cancelled_after:
                understanding.cancel()
            if not understanding.advance():
                break
            steps += 1
        assert self.decoder.windows_encoded == encoded
        assert self.decoder.cached - cached in (0, 1), "the last token of a reply may not have been fed before"
        if expected is None:
            expected = list(self.talk.ids)
        assert self.talk.ids == expected[: len(self.talk.ids)]
        if cancelled_after is None or steps < cancelled_after:
            # A line that is long enough, or two lines, end it early.
            assert self.talk.ids == expected or understanding.text
            self.lines += 1
        else:
            assert len(self.talk.ids) <= cancelled_after, "the instruction takes a step, and each token another one"
            assert understanding.text == ""
        if understanding.text:
            assert understanding.text == one_line(understanding.text)
            self.memory.fill_in(self.memory.turn_number, understanding.text)

    def fresh_line(self, session: Session, utterance: Utterance, reply: list[int]) -> list[int] | None:
        """Return the line of a new decoder that is fed the turn and the instruction as one prompt.

        None where the random model wrote `[AUDIO]`, which no prompt may hold without a clip.
        """
        if self.tokenizer.controls["[AUDIO]"] in reply:
            return None
        ids, features = self.talk.engine.write_prompt(session, utterance)
        controls = self.tokenizer.controls
        asked = self.tokenizer.encode(INSTRUCTION)
        prompt = [*ids, *reply, controls["</s>"], controls["[INST]"], *asked, controls["[/INST]"]]
        fresh = Decoder(SharedModel(self.talk.model), capacity=len(prompt) + LINE_TOKENS)
        fresh.prefill(prompt, features)
        return list(fresh.stream(Sampling(LINE_TOKENS, frozenset(controls.values())), threading.Event()))


@pytest.fixture(scope="module", params=[False, True], ids=["cpu", "gpu"])
def talk(request: pytest.FixtureRequest, parts: tuple[Any, Any]) -> Iterator[Talk]:
    """Decode as on a CPU, and with the look-ahead and the buckets of a GPU."""
    talk = Talk(*parts, backends=Backends(looks_ahead=request.param), context_tokens=400)
    yield talk
    talk.engine.close()


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    derandomize="RANDOM_SEQUENCES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(sequence=st.lists(actions, min_size=3, max_size=10))
def test_the_encoder_runs_once_a_turn_and_replies_are_those_of_a_fresh_prefill(
    talk: Talk, parts: tuple[Any, Any], folders: Iterator[Path], sequence: list[Ask | str]
) -> None:
    talk.restart()
    encoded = talk.engine.decoder.windows_encoded
    with Store.open(next(folders)) as store:
        curious = CuriousTalk(talk, store, wrap(parts[1].tokenizer))
        for action in [*sequence, Ask(QUESTIONS[1], "finished", "remember", None, True)]:
            curious.act(action)
        assert talk.engine.decoder.windows_encoded - encoded == curious.spoken_replies
        assert store.session(curious.memory.session.name or "") == curious.memory.session
        assert curious.lines


def test_the_question_is_cancelled_by_another_thread_within_one_token(talk: Talk) -> None:
    talk.restart()
    for seed in range(20):  # A line may be short.
        utterance, understanding = question(1, seed=seed), Understanding("show")
        talk.reply(Session(), utterance)
        talk.ids = []
        assert len(list(talk.engine.understand(utterance))) == 1 + len(talk.ids)
        if len(talk.ids) > 6:
            break
    talk.ids = []

    def cancel() -> None:
        if len(talk.ids) == 3:
            other = threading.Thread(target=understanding.cancel)
            other.start()
            other.join()

    talk.on_token = cancel
    understanding.begin(talk.engine, utterance)
    while understanding.advance():
        pass
    talk.on_token = lambda: None
    assert len(talk.ids) == 3, "the token that was being computed is the last one"
    assert understanding.text == ""


def test_it_can_be_asked_after_a_reply_that_was_interrupted(talk: Talk) -> None:
    talk.restart()
    utterance, interrupt = question(1.2, seed=3), threading.Event()
    reply = talk.engine.reply(Session(), utterance, interrupt)
    next(reply)
    interrupt.set()
    assert list(reply) == []
    assert len(list(talk.engine.understand(utterance))) > 1


@pytest.mark.parametrize("after", ["prefill", "another reply", "a reply that was left"])
def test_a_clip_that_left_the_cache_is_not_understood(talk: Talk, after: str) -> None:
    talk.restart()
    utterance, other = question(0.7), question(0.7, seed=1)
    talk.reply(Session(), utterance)
    if after == "prefill":
        talk.engine.prefill_history(Session())
    elif after == "another reply":
        talk.reply(Session(), other)
    else:
        reply = talk.engine.reply(Session(), other, threading.Event())
        next(reply)
        reply.close()
    with pytest.raises(ModelError, match="not in the cache any more"):
        talk.engine.understand(utterance)


def test_the_next_turn_counts_its_own_passes(talk: Talk) -> None:
    talk.restart()
    for utterance in (question(0.7), question(1.9, "Go on.", 1)):
        _, report = talk.reply(Session(), utterance)
        assert isinstance(report, PassReport)
        assert report.model_passes == 1
        for _ in talk.engine.understand(utterance):
            pass
        talk.engine.encode_partial(sound(4.5, 3))
        _, report = talk.reply(Session(), Utterance(sound(5, 3)))
        assert report
        assert report.model_passes == 1
