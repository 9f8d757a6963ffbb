"""The KV cache follows undo, redo, forks, interruptions and turns that were taken back.

Each reply is the one that a fresh prefill gives.

RANDOM_SEQUENCES: number of random sequences.
"""

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.voxtral.runtime.test_prefix_reuse import Talk, parts, sound
from voxcli.audio.clip import AudioClip
from voxcli.core.memory import Memory
from voxcli.core.protocols import Utterance
from voxcli.core.storage.store import Store
from voxcli.core.turn import TurnEnded, run_turn

__all__ = ["parts"]  # a fixture

SEQUENCES = int(os.environ.get("RANDOM_SEQUENCES", "12"))
QUESTIONS = (
    Utterance(None, "Hello."),
    Utterance(sound(0.7, 0)),
    Utterance(sound(1.9, 1), "Go on."),
    Utterance(sound(3, 2)),
)

Ending = Literal["finished", "interrupted", "left"]
asked = st.tuples(st.sampled_from(QUESTIONS), st.sampled_from(["finished", "finished", "interrupted", "left"]))
actions = st.one_of(
    asked,
    asked,
    st.floats(0.2, 0.9),
    st.sampled_from(["undo", "undo", "redo", "again", "fork", "fork at 1", "prefill"]),
)


class StoredTalk:
    """A conversation that is stored, with an engine that stays the same while sessions come and go."""

    def __init__(self, talk: Talk, store: Store) -> None:
        self.talk = talk
        self.store = store
        self.memory = Memory.resumed(store, store.create("talk", "Be brief."), "Be brief.")
        self.last = QUESTIONS[0]
        self.checked = 0  # replies

    def act(self, action: tuple[Utterance, Ending] | float | str) -> None:
        name = self.memory.session.name
        assert name
        match action:
            case (utterance, ending):
                self.last = utterance
                self.ask(utterance, ending)
            case float(share):
                self.ask_in_halves(share)
            case "again":
                self.memory.undo()
                self.ask(self.last, "finished")
            case "undo":
                before = self.memory.session
                assert self.memory.undo() == (before.turns[-1] if before.turns else None)
            case "redo":
                self.store.redo(name)
                self.resume(name)
            case "fork" | "fork at 1":
                self.resume(self.store.fork(name, name, at=1 if action == "fork at 1" else None))
            case "prefill":
                self.talk.engine.prefill_history(self.memory.session)

    def resume(self, name: str) -> None:
        self.memory = Memory.resumed(self.store, name, "Be brief.")

    def ask_in_halves(self, share: float) -> None:
        """Begin to answer the first part of an utterance, take that back, and answer the whole."""
        whole = sound(2.5, 3)
        half = AudioClip(whole.samples[: int(share * len(whole.samples))], whole.sample_rate)
        self.talk.engine.encode_partial(half)
        expected = self.talk.expected(self.memory.session, Utterance(half))
        self.talk.ids, interrupt, dropped = [], threading.Event(), []
        for event in run_turn(self.talk.engine, self.memory.session, Utterance(half), interrupt):
            dropped.append(event)
            if len(self.talk.ids) >= 2:
                interrupt.set()
        assert isinstance(dropped[-1], TurnEnded)  # It is not remembered.
        assert self.talk.ids == expected[: len(self.talk.ids)]
        self.ask(Utterance(whole), "finished")

    def ask(self, utterance: Utterance, ending: Ending) -> None:
        """Ask, and compare the tokens; a reply that does not finish ends after its second token."""
        expected = self.talk.expected(self.memory.session, utterance)
        self.talk.ids, interrupt = [], threading.Event()
        events = self.memory.take_turn(self.talk.engine, utterance, interrupt)
        for event in events:
            if ending != "finished" and len(self.talk.ids) >= 2 and not isinstance(event, TurnEnded):
                interrupt.set()
                if ending == "left":
                    events.close()
        assert self.talk.ids == expected[: len(self.talk.ids)]
        assert ending != "finished" or self.talk.ids == expected
        self.checked += 1


@pytest.fixture(scope="module")
def talk(parts: tuple[Any, Any]) -> Iterator[Talk]:
    talk = Talk(*parts)
    yield talk
    talk.engine.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a new folder for each sequence."""
    above = tmp_path_factory.mktemp("stores")
    return (above / str(number) for number in itertools.count())


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    derandomize="RANDOM_SEQUENCES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(sequence=st.lists(actions, min_size=3, max_size=10))
def test_after_undo_redo_and_forks_replies_are_those_of_a_fresh_prefill(
    talk: Talk, folders: Iterator[Path], sequence: list[tuple[Utterance, Ending] | float | str]
) -> None:
    talk.restart()
    with Store.open(next(folders)) as store:
        stored = StoredTalk(talk, store)
        for action in [*sequence, (QUESTIONS[1], "finished")]:
            stored.act(action)
        assert store.session(stored.memory.session.name or "") == stored.memory.session
        assert stored.checked


def test_a_turn_after_undo_feeds_itself_alone(talk: Talk, tmp_path: Path) -> None:
    talk.restart()
    with Store.open(tmp_path) as store:
        stored = StoredTalk(talk, store)
        for utterance in (QUESTIONS[2], QUESTIONS[3]):
            stored.ask(utterance, "finished")
        before = talk.engine.decoder.cached
        stored.memory.undo()
        talk.engine.prefill_history(stored.memory.session)
        _, report = talk.reply(stored.memory.session, QUESTIONS[3])
    assert report
    assert report.cached_tokens > before // 4, "the first turn stays in the cache"
    assert report.prompt_tokens - report.cached_tokens < 60, "two windows of audio are 50 tokens"


def test_a_turn_that_was_taken_back_leaves_nothing_in_the_prompt(talk: Talk, tmp_path: Path) -> None:
    talk.restart()
    with Store.open(tmp_path) as store:
        stored = StoredTalk(talk, store)
        stored.ask(QUESTIONS[2], "finished")
        stored.ask_in_halves(0.6)
        stored.ask(QUESTIONS[3], "finished")
        assert len(stored.memory.session.turns) == 3
        assert store.session(stored.memory.session.name or "") == stored.memory.session
