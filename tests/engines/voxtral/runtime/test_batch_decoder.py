"""The batch decoder: a reply is the same whatever is waiting, starting, ending or failing beside it."""

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny_voxtral as tiny
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mistral_common")
from voxcli.engines.voxtral.runtime.batch_decoder import BatchDecoder, Request  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampler, Sampling  # noqa: E402
from voxcli.engines.voxtral.runtime.text_model import TextModel  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more

AUDIO, WINDOW = 24, 25  # the id of `[AUDIO]`; audio tokens of a window of 2 s
MOST_TOKENS = 24
STOPS = frozenset(range(2, 2048, 12))  # many stop ids, so that replies differ in length


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose encoder takes 2 s at once."""
    folder: Path = tiny.make(tmp_path_factory.mktemp("checkpoint") / "quick-voxtral", window_seconds=2)
    return transformers.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()


def sampling(max_tokens: int = MOST_TOKENS) -> Any:
    return Sampling(max_tokens, STOPS)


@cache
def prompt(number: int) -> tuple[list[int], Any]:
    """Return ids and features: text alone or one to three windows, instructions that some share."""
    chance = np.random.default_rng(number)
    windows = int(chance.integers(0, 4))
    text = chance.integers(300, 2000, chance.integers(1, 40)).tolist()
    shared = [1, 3, *range(400, 400 + 20 * (number % 3))]
    values = chance.standard_normal((windows, 128, 200)).astype(np.float32)
    audio = [25, *[AUDIO] * (WINDOW * windows)] if windows else []
    return [*shared, *audio, *text, 4], torch.from_numpy(values) if windows else None


@pytest.fixture(scope="module")
def alone(model: Any) -> Callable[[int], list[int]]:
    """Return the reply of a new decoder to a prompt."""

    @cache
    def reply(number: int) -> list[int]:
        ids, features = prompt(number)
        decoder = Decoder(SharedModel(model), capacity=len(ids) + MOST_TOKENS)
        decoder.prefill(ids, features)
        return list(decoder.stream(sampling(), threading.Event()))

    return reply


class Submitted:
    """A submitted prompt, and the notifications about it."""

    def __init__(self, decoder: Any, ids: list[int], features: Any) -> None:
        self.notified: list[Any] = []
        self.is_cancelled = False
        self.request = Request(ids, features, self.notified.append, lambda: self.is_cancelled)
        decoder.add(self.request)

    @property
    def tokens(self) -> list[int]:
        assert self.notified[-1] is None, "the reply is complete"
        return self.notified[:-1]


def open_decoder(
    model: Any, most: int, free_bytes: int | None = None, longest: int = 400, encoded_together: int | None = None
) -> BatchDecoder:
    return BatchDecoder(
        SharedModel(model),
        sampling(),
        most=most,
        longest=longest,
        free_bytes=lambda: free_bytes,
        is_out_of_memory=lambda error: isinstance(error, MemoryError),
        smallest_capacity=128,
        encoded_together=encoded_together,
    )


def run_to_end(decoder: Any) -> None:
    for _ in range(10_000):
        if decoder.is_idle:
            return
        decoder.advance()
    pytest.fail("the decoder does not become idle")


def test_64_prompts_in_16_slots_get_the_replies_that_they_get_alone(
    model: Any, alone: Callable[[int], list[int]]
) -> None:
    decoder = open_decoder(model, 16)
    submitted = [Submitted(decoder, *prompt(number)) for number in range(64)]
    run_to_end(decoder)
    assert [each.tokens for each in submitted] == [alone(number) for number in range(64)]
    assert all((each.request.generations, each.request.encoder_calls) in {(1, 0), (1, 1)} for each in submitted)
    lengths = {len(each.tokens) for each in submitted}
    assert len(lengths) > 8, "replies of many lengths"


def test_windows_of_several_clips_are_encoded_at_once(model: Any, alone: Callable[[int], list[int]]) -> None:
    decoder = open_decoder(model, 16, encoded_together=8)  # GPUs encode so many.
    submitted = [Submitted(decoder, *prompt(number)) for number in range(24)]
    run_to_end(decoder)
    assert [each.tokens for each in submitted] == [alone(number) for number in range(24)]


def test_a_free_slot_is_filled_before_the_longest_reply_ends(model: Any, alone: Callable[[int], list[int]]) -> None:
    decoder = open_decoder(model, 4)
    numbers = [number for number in range(200) if prompt(number)[1] is None][:40]
    for number in numbers:
        Submitted(decoder, *prompt(number))
    run_to_end(decoder)
    steps = sum(min(len(alone(number)), MOST_TOKENS - 1) for number in numbers)  # the first token takes none
    assert steps / 4 <= decoder.steps <= steps / 4 + MOST_TOKENS


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=20),
    most=st.integers(1, 5),
    cancelled=st.sets(st.integers(0, 19), max_size=3),
)
def test_replies_do_not_depend_on_the_order_of_arrival(
    model: Any, alone: Callable[[int], list[int]], arrivals: list[tuple[int, int]], most: int, cancelled: set[int]
) -> None:
    decoder = open_decoder(model, most)
    submitted: list[Submitted] = []
    for number, steps in arrivals:
        submitted.append(Submitted(decoder, *prompt(number)))
        for _ in range(steps):
            decoder.advance()
        for index in cancelled & set(range(len(submitted))):
            submitted[index].is_cancelled = True
    run_to_end(decoder)
    for place, ((number, _), each) in enumerate(zip(arrivals, submitted, strict=True)):
        expected = alone(number)
        assert each.tokens == (expected[: len(each.tokens)] if place in cancelled else expected)


def test_a_prefix_that_a_slot_holds_is_not_fed_again(model: Any) -> None:
    decoder = open_decoder(model, 2)
    first = Submitted(decoder, [1, 3, *range(400, 440), 4], None)
    run_to_end(decoder)
    second = Submitted(decoder, [1, 3, *range(400, 440), 500, 4], None)
    run_to_end(decoder)
    assert (first.request.cached_tokens, second.request.cached_tokens) == (0, 42)


def test_the_cached_audio_of_another_clip_is_not_reused(model: Any) -> None:
    ids, features = prompt(next(number for number in range(50) if prompt(number)[1] is not None))
    decoder = open_decoder(model, 1)
    for _ in range(2):
        submitted = Submitted(decoder, ids, features)
        run_to_end(decoder)
    assert submitted.request.cached_tokens == ids.index(AUDIO)


class Continued(Submitted):
    """A submitted prompt that is continued, each time with other tokens, once its reply is finished."""

    def __init__(self, decoder: Any, number: int, room: int = 60) -> None:
        ids, self.features = prompt(number)
        self.notified: list[Any] = []
        self.is_cancelled = False
        self.decoder = decoder
        self.requests = [Request(ids, self.features, self.notified.append, keeps_audio=True, room=room)]
        decoder.add(self.requests[0])

    def go_on(self) -> None:
        before = self.requests[-1]
        self.notified.clear()
        ids = [*before.ids, *before.generated, 2, 600 + len(self.requests), 700]
        self.requests.append(before.continued(ids, self.notified.append, lambda: False))
        self.decoder.add(self.requests[-1])

    def expected(self, model: Any) -> list[int]:
        ids = self.requests[-1].ids
        single = Decoder(SharedModel(model), capacity=len(ids) + MOST_TOKENS)
        single.prefill(ids, self.features)
        return list(single.stream(sampling(), threading.Event()))


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    numbers=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    goes_on=st.lists(st.lists(st.integers(0, 5), max_size=4, unique=True), min_size=1, max_size=3),
    others=st.lists(st.integers(0, 30), max_size=3),
    most=st.integers(1, 4),
)
def test_requests_go_on_with_their_clips_whoever_had_their_slots(
    model: Any,
    alone: Callable[[int], list[int]],
    numbers: list[int],
    goes_on: list[list[int]],
    others: list[int],
    most: int,
) -> None:
    decoder = open_decoder(model, most, longest=700)
    continued = [Continued(decoder, number) for number in numbers]
    run_to_end(decoder)
    for places in goes_on:
        between = [Submitted(decoder, *prompt(number)) for number in others]
        chosen = [continued[place] for place in places if place < len(numbers)]
        for each in chosen:
            each.go_on()
        run_to_end(decoder)
        assert [each.tokens for each in between] == [alone(number) for number in others]
        assert [each.tokens for each in chosen] == [each.expected(model) for each in chosen]
    for each in continued:
        assert sum(request.encoder_calls for request in each.requests) == (each.features is not None)


def test_a_request_that_goes_on_at_once_feeds_only_what_is_new(model: Any) -> None:
    decoder = open_decoder(model, 2)
    number = next(number for number in range(50) if prompt(number)[1] is not None)
    each = Continued(decoder, number)
    run_to_end(decoder)
    each.go_on()
    run_to_end(decoder)
    last = each.requests[-1]
    assert len(last.ids) - last.cached_tokens <= 4, "the last token of the reply, its end and what is added"


def test_a_request_that_outgrows_its_slot_gets_a_longer_one(model: Any) -> None:
    decoder = open_decoder(model, 2, longest=700)
    number = next(number for number in range(50) if prompt(number)[1] is not None)
    each = Continued(decoder, number, room=0)
    for _ in range(6):
        run_to_end(decoder)
        each.go_on()
    run_to_end(decoder)
    assert len(each.requests[-1].ids) > 128, "the length of the first slots"
    assert each.tokens == each.expected(model)
    assert [request.encoder_calls for request in each.requests] == [1, *[0] * 6]


def test_a_request_that_goes_on_without_its_audio_is_refused(model: Any) -> None:
    decoder = open_decoder(model, 2)
    number = next(number for number in range(50) if prompt(number)[1] is not None)
    each = Submitted(decoder, *prompt(number))
    run_to_end(decoder)
    notified: list[Any] = []
    decoder.add(each.request.continued([*each.request.ids, 700], notified.append, lambda: False))
    assert [type(error) for error in notified] == [ModelError], "it did not keep its audio"


def test_slots_grow_for_a_long_prompt(model: Any, alone: Callable[[int], list[int]]) -> None:
    decoder = open_decoder(model, 3, longest=300)
    long = [1, 3, *np.random.default_rng(1).integers(300, 2000, 350).tolist(), 4]  # longer than turns make a prompt
    submitted = [Submitted(decoder, *prompt(number)) for number in range(6)]
    longest = Submitted(decoder, long, None)
    submitted += [Submitted(decoder, *prompt(number)) for number in range(6, 12)]
    run_to_end(decoder)
    assert [each.tokens for each in submitted] == [alone(number) for number in range(12)]
    assert all(each.request.generations == 1 for each in (*submitted, longest))
    single = Decoder(SharedModel(model), capacity=500)
    single.prefill(long)
    assert longest.tokens == list(single.stream(sampling(), threading.Event()))


def test_there_are_as_many_slots_as_the_memory_has_room_for(model: Any, alone: Callable[[int], list[int]]) -> None:
    slot_bytes = 128 * 2 * 2 * 2 * 16 * 4  # tokens, keys and values, layers, heads, values a head, bytes a value
    decoder = open_decoder(model, 16, free_bytes=10 * slot_bytes)
    counts: set[int] = set()
    numbers = [number for number in range(100) if len(prompt(number)[0]) <= 128 - MOST_TOKENS][:20]
    submitted = [Submitted(decoder, *prompt(number)) for number in numbers]
    while not decoder.is_idle:
        decoder.advance()
        counts.add(decoder.slots)
    assert [each.tokens for each in submitted] == [alone(number) for number in numbers]
    assert counts == {6}, "six tenths of it"
    Submitted(decoder, [1, *range(300, 500), 4], None)
    run_to_end(decoder)
    assert decoder.slots == 3
    Submitted(decoder, *prompt(numbers[0]))
    run_to_end(decoder)
    assert decoder.slots == 6, "short slots again, once no request needs long ones"


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Limits beyond which memory runs out: slots of a step, tokens of a prefill, windows encoded at once."""
    limits = {"step_slots": 10**9, "prefill": 10**9, "encode": 10**9}
    for owner, name in ((TextModel, "step_slots"), (TextModel, "prefill"), (SharedModel, "encode")):
        monkeypatch.setattr(owner, name, _limited(getattr(owner, name), limits, name))
    return limits


def _limited(original: Any, limits: dict[str, int], name: str) -> Any:
    def call(self: Any, given: Any, *rest: Any) -> Any:
        if given.shape[0] > limits[name]:
            raise MemoryError(name)
        return original(self, given, *rest)

    return call


@pytest.mark.parametrize("limits", [{"step_slots": 3}, {"encode": 3}, {"step_slots": 1, "encode": 2}])
def test_when_memory_runs_out_there_are_fewer_slots_and_the_same_replies(
    model: Any, alone: Callable[[int], list[int]], tight: dict[str, int], limits: dict[str, int]
) -> None:
    expected = [alone(number) for number in range(20)]
    tight.update(limits)
    decoder = open_decoder(model, 8, encoded_together=8)  # GPUs encode so many.
    submitted = [Submitted(decoder, *prompt(number)) for number in range(20)]
    run_to_end(decoder)
    assert [each.tokens for each in submitted] == expected


def test_a_prompt_that_is_too_long_for_the_memory_fails_alone(
    model: Any, alone: Callable[[int], list[int]], tight: dict[str, int]
) -> None:
    expected = [alone(number) for number in range(8)]
    tight["prefill"] = 150
    decoder = open_decoder(model, 4)
    submitted = [Submitted(decoder, *prompt(number)) for number in range(4)]
    large = Submitted(decoder, [1, *range(300, 500), 4], None)
    submitted += [Submitted(decoder, *prompt(number)) for number in range(4, 8)]
    run_to_end(decoder)
    assert [each.tokens for each in submitted] == expected
    assert [type(each) for each in large.notified] == [MemoryError]


def test_a_prompt_without_its_audio_is_refused_and_the_rest_goes_on(
    model: Any, alone: Callable[[int], list[int]]
) -> None:
    decoder = open_decoder(model, 2)
    wrong = Submitted(decoder, [1, 3, 25, *[AUDIO] * WINDOW, 4], None)
    right = Submitted(decoder, *prompt(1))
    run_to_end(decoder)
    assert [type(each) for each in wrong.notified] == [ModelError]
    assert right.tokens == alone(1)


def test_a_cancelled_request_ends_with_the_next_token(model: Any) -> None:
    decoder = open_decoder(model, 1)
    number = next(number for number in range(100) if prompt(number)[1] is None)
    first, second = Submitted(decoder, *prompt(number)), Submitted(decoder, *prompt(number))
    decoder.advance()
    generated = len(first.notified)
    first.is_cancelled = second.is_cancelled = True
    run_to_end(decoder)
    assert len(first.tokens) == generated
    assert (second.tokens, second.request.generations) == ([], 0)


def test_fail_ends_all_requests_with_the_error(model: Any) -> None:
    decoder = open_decoder(model, 2)
    submitted = [Submitted(decoder, *prompt(number)) for number in range(4)]
    decoder.advance()
    decoder.fail(ModelError("gone"))
    assert decoder.is_idle
    assert all(isinstance(each.notified[-1], ModelError) or each.notified[-1] is None for each in submitted)
    assert sum(isinstance(each.notified[-1], ModelError) for each in submitted) >= 2


def test_sampling_draws_for_each_slot(model: Any) -> None:
    sampler = Sampler(Sampling(4, frozenset(), temperature=1.0, top_p=0.6, seed=1), torch.device("cpu"))
    logits = torch.tensor([[0.0, 9.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    drawn = [tuple(sampler.sample_each(logits).tolist()) for _ in range(40)]
    assert set(drawn) == {(1, 0), (2, 0)}
