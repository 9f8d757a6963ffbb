"""The cache is never wrong: whatever happened before, a reply is the one that a fresh decoder gives.

RANDOM_SEQUENCES: number of random sequences of events, as on a CPU and as on a GPU each.
"""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tiny_voxtral as tiny
from voxcli.audio.clip import AudioClip
from voxcli.core.protocols import PassReport, Utterance
from voxcli.core.session import Session, Turn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
voxtral = pytest.importorskip("voxcli.engines.voxtral.engine")
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more

SEQUENCES = int(os.environ.get("RANDOM_SEQUENCES", "30"))
SESSIONS = (Session(), Session(instructions="Answer in short spoken sentences."))
SAMPLES = 16_000  # a second
CONTEXT_TOKENS = 260  # a few turns, so that old ones leave


@dataclass(frozen=True)
class Step:
    """A reply to an utterance, and how it ends."""

    seconds: float  # length of the clip; 0 for none
    text: str
    sound: int  # seed of the noise
    session: int
    encoded_ahead: bool  # parts of the clip were encoded before its end
    end: Literal["finished", "interrupted", "dropped", "closed"]
    after: int  # tokens after which it ends early
    prefilled: bool  # the history was prefilled after the reply
    forgotten: bool  # all turns but the last two are dropped afterwards


steps = st.builds(
    Step,
    seconds=st.sampled_from([0, 0.7, 1.9, 3, 9, 21]),
    text=st.sampled_from(["", "", "Go on.", "Qu'est-ce que c'est ? 東京"]),
    sound=st.integers(0, 3),
    session=st.sampled_from([0, 0, 0, 1]),
    encoded_ahead=st.booleans(),
    end=st.sampled_from(["finished", "finished", "finished", "interrupted", "dropped", "closed"]),
    after=st.integers(0, 4),
    prefilled=st.booleans(),
    forgotten=st.sampled_from([False, False, False, False, True]),
)


class Talk:
    """An engine and two sessions."""

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        given = {"name": "tiny", "max_reply_tokens": 8, "context_tokens": CONTEXT_TOKENS, "notice": pytest.fail}
        self.model = model
        self.engine = voxtral.VoxtralEngine(model, processor, **{**given, **options})
        self.sessions = list(SESSIONS)
        self.ids: list[int] = []  # of the last reply
        self.on_token: Callable[[], None] = lambda: None
        decoder = self.engine.decoder
        stream = decoder.stream

        def noted(*args: Any) -> Iterator[int]:
            for token_id in stream(*args):
                self.ids.append(token_id)
                self.on_token()
                yield token_id

        decoder.stream = noted

    def restart(self) -> None:
        self.sessions = list(SESSIONS)
        self.engine.decoder.rewind(0)

    def expected(self, session: Session, utterance: Utterance) -> list[int]:
        """Return the reply of a new decoder."""
        ids, features = self.engine.write_prompt(session, utterance)
        fresh = Decoder(SharedModel(self.model), capacity=len(ids) + 8)
        fresh.prefill(ids, features)
        return list(fresh.stream(self.engine.sampling, threading.Event()))

    def reply(self, session: Session, utterance: Utterance, stop: Step | None = None) -> tuple[str, PassReport | None]:
        """Return the reply, complete or up to `stop`."""
        interrupt, text, self.ids = threading.Event(), "", []
        deltas = self.engine.reply(session, utterance, interrupt)
        while True:
            if stop and len(self.ids) >= stop.after:
                if stop.end == "closed":
                    deltas.close()
                    return text, None
                interrupt.set()
            try:
                text += next(deltas)
            except StopIteration as end:
                return text, end.value

    def take(self, step: Step) -> None:
        """Run a step, and check its reply."""
        session = self.sessions[step.session]
        utterance = Utterance(sound(step.seconds, step.sound) if step.seconds else None, step.text or "Hello.")
        if step.encoded_ahead and utterance.clip:
            for samples in range(SAMPLES, len(utterance.clip.samples), SAMPLES):
                self.engine.encode_partial(AudioClip(utterance.clip.samples[:samples]))
        text, report = self.reply(session, utterance, None if step.end == "finished" else step)
        expected = self.expected(session, utterance)
        assert self.ids == expected[: len(self.ids)]
        if step.end == "finished":
            assert self.ids == expected
        if report and self.ids:
            assert report.model_passes == 1
        if step.end in ("finished", "interrupted"):
            turn = utterance.answered(text.strip(), interrupted=step.end == "interrupted")
            session = session.add(turn)
        self.sessions[step.session] = session.last(2) if step.forgotten else session
        if step.prefilled:
            self.engine.prefill_history(self.sessions[step.session])


def sound(seconds: float, seed: int) -> AudioClip:
    """Return noise; of one seed, a longer sound begins with the shorter ones."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLES)) / 10
    return AudioClip(samples.astype(np.float32))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose encoder takes 2 s at once, and its processor."""
    folder: Path = tiny.make(tmp_path_factory.mktemp("checkpoint") / "quick-voxtral", window_seconds=2)
    return (
        transformers.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval(),
        transformers.VoxtralProcessor.from_pretrained(folder, local_files_only=True),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["cpu", "gpu"])
def talk(request: pytest.FixtureRequest, parts: tuple[Any, Any]) -> Iterator[Talk]:
    """Decode as on a CPU, and with the look-ahead and the buckets of a GPU."""
    talk = Talk(*parts, backends=Backends(looks_ahead=request.param))
    yield talk
    talk.engine.close()


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    derandomize="RANDOM_SEQUENCES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(sequence=st.lists(steps, min_size=2, max_size=12))
def test_replies_are_those_of_a_fresh_prefill(talk: Talk, sequence: list[Step]) -> None:
    talk.restart()
    for step in sequence:
        talk.take(step)


def test_a_long_conversation_feeds_this_turn_alone(tiny_voxtral: Path) -> None:
    """The bar: at turn 50, this turn's 379 tokens and at most 8 more."""
    model = transformers.VoxtralForConditionalGeneration.from_pretrained(tiny_voxtral, local_files_only=True)
    processor = transformers.VoxtralProcessor.from_pretrained(tiny_voxtral, local_files_only=True)
    talk = Talk(model.eval(), processor, context_tokens=8192)
    session = Session(instructions="Be brief.", turns=turns(49))
    talk.engine.prefill_history(session)
    for number in range(3):
        _, report = talk.reply(session, Utterance(sound(2, number)))
        assert report
        assert report.prompt_tokens - report.cached_tokens <= 379
        assert report.prompt_tokens > 2000
        session = session.add(Utterance(sound(2, number)).answered("I understand that, I think."))
        talk.engine.prefill_history(session)
    talk.engine.close()


def turns(count: int) -> tuple[Turn, ...]:
    return tuple(
        Utterance(sound(1 + number % 5, 0)).answered(f"This is reply {number}, and it says a little more.")
        for number in range(count)
    )


def test_a_long_session_is_rarely_fed_again(parts: tuple[Any, Any]) -> None:
    """Once the budget is reached, turns leave in blocks; what is left of them is fed again after the turn."""
    talk = Talk(*parts, context_tokens=1200)
    session = Session(instructions="Be brief.", turns=turns(20))
    talk.engine.prefill_history(session)
    most, again = 0, 0
    for number in range(40):
        utterance = Utterance(sound(1.5, 0), "And now?" if number % 3 == 0 else "")
        _, report = talk.reply(session, utterance)
        assert report
        assert 600 < report.prompt_tokens <= 1200
        most = max(most, report.prompt_tokens - report.cached_tokens)
        session = session.add(utterance.answered(f"This is reply {number}, and it says a little more."))
        before = talk.engine.decoder.cached
        talk.engine.prefill_history(session)
        again += talk.engine.decoder.cached < before - 100
    assert most < 50, "of what is said now: 25 audio tokens and a few words"
    assert 2 < again < 14, "every turn, were they to leave one by one"
    talk.engine.close()


def test_what_is_allocated_stays_the_same(parts: tuple[Any, Any]) -> None:
    import gc

    def tensors() -> int:
        gc.collect()
        alive = (item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))
        return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in alive}.values())

    talk = Talk(*parts)
    session, seen = Session(), []
    for number in range(40):
        utterance = Utterance(sound(1 + number % 3, number))
        talk.engine.encode_partial(utterance.clip)
        text, _ = talk.reply(session, utterance)
        session = session.add(utterance.answered(text))
        talk.engine.prefill_history(session)
        if number % 10 == 9:
            seen.append(tensors())
    assert len(set(seen)) == 1
    talk.engine.close()
