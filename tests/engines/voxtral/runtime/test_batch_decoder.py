"""BatchDecoder of one cache: whatever waits, comes, goes and fails beside it, a reply is the one it would be alone."""

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
decoding = pytest.importorskip("voxcli.engines.voxtral.runtime.decoder")
rows_module = pytest.importorskip("voxcli.engines.voxtral.runtime.batch_decoder")

torch.set_num_threads(1)  # a model this small is slower with more

AUDIO, WINDOW = 24, 25  # the id, and how many of them 2 s become
MOST_TOKENS = 24
STOPS = frozenset(range(2, 2048, 12))  # so many ends that replies differ in length


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose encoder takes 2 s at once."""
    folder: Path = tiny.make(tmp_path_factory.mktemp("checkpoint") / "quick-voxtral", window_seconds=2)
    return transformers.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()


def sampling(max_tokens: int = MOST_TOKENS) -> Any:
    return decoding.Sampling(max_tokens, STOPS)


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
    """What a decoder that knows nothing replies to a prompt."""

    @cache
    def reply(number: int) -> list[int]:
        ids, features = prompt(number)
        decoder = decoding.Decoder(model, capacity=len(ids) + MOST_TOKENS)
        decoder.prefill(ids, features)
        return list(decoder.stream(sampling(), threading.Event()))

    return reply


class Asked:
    """A prompt that was handed over, and what was told of it."""

    def __init__(self, rows: Any, ids: list[int], features: Any) -> None:
        self.told: list[Any] = []
        self.is_cancelled = False
        self.request = rows_module.Request(ids, features, self.told.append, lambda: self.is_cancelled)
        rows.add(self.request)

    @property
    def tokens(self) -> list[int]:
        assert self.told[-1] is None, "it is over, and well"
        return self.told[:-1]


def open_rows(model: Any, most: int, free_bytes: int | None = None, longest: int = 400) -> Any:
    return decoding.Decoder(model, capacity=1).rows(
        sampling(),
        most=most,
        longest=longest,
        free_bytes=lambda: free_bytes,
        is_out_of_memory=lambda error: isinstance(error, MemoryError),
        smallest_capacity=128,
    )


def answer(rows: Any) -> None:
    for _ in range(10_000):
        if rows.is_idle:
            return
        rows.advance()
    pytest.fail("it does not come to an end")


def test_64_prompts_in_16_rows_get_the_replies_that_they_get_alone(
    model: Any, alone: Callable[[int], list[int]]
) -> None:
    rows = open_rows(model, 16)
    asked = [Asked(rows, *prompt(number)) for number in range(64)]
    answer(rows)
    assert [each.tokens for each in asked] == [alone(number) for number in range(64)]
    assert all((each.request.generations, each.request.encoder_calls) in {(1, 0), (1, 1)} for each in asked)
    lengths = {len(each.tokens) for each in asked}
    assert len(lengths) > 8, "replies of many lengths"


def test_windows_of_several_clips_are_encoded_at_once(model: Any, alone: Callable[[int], list[int]]) -> None:
    rows = open_rows(model, 16)
    rows._encoded_together = 8  # as on a GPU
    asked = [Asked(rows, *prompt(number)) for number in range(24)]
    answer(rows)
    assert [each.tokens for each in asked] == [alone(number) for number in range(24)]


def test_nobody_waits_for_the_longest_reply(model: Any, alone: Callable[[int], list[int]]) -> None:
    rows = open_rows(model, 4)
    numbers = [number for number in range(200) if prompt(number)[1] is None][:40]
    for number in numbers:
        Asked(rows, *prompt(number))
    answer(rows)
    steps = sum(min(len(alone(number)), MOST_TOKENS - 1) for number in numbers)  # the first token takes none
    assert steps / 4 <= rows.steps <= steps / 4 + MOST_TOKENS


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=20),
    most=st.integers(1, 5),
    given_up=st.sets(st.integers(0, 19), max_size=3),
)
def test_replies_do_not_depend_on_who_comes_when(
    model: Any, alone: Callable[[int], list[int]], arrivals: list[tuple[int, int]], most: int, given_up: set[int]
) -> None:
    rows = open_rows(model, most)
    asked: list[Asked] = []
    for number, steps in arrivals:
        asked.append(Asked(rows, *prompt(number)))
        for _ in range(steps):
            rows.advance()
        for gone in given_up & set(range(len(asked))):
            asked[gone].is_cancelled = True
    answer(rows)
    for place, ((number, _), each) in enumerate(zip(arrivals, asked, strict=True)):
        expected = alone(number)
        assert each.tokens == (expected[: len(each.tokens)] if place in given_up else expected)


def test_a_beginning_that_a_row_holds_is_not_fed_again(model: Any) -> None:
    rows = open_rows(model, 2)
    first = Asked(rows, [1, 3, *range(400, 440), 4], None)
    answer(rows)
    second = Asked(rows, [1, 3, *range(400, 440), 500, 4], None)
    answer(rows)
    assert (first.request.cached_tokens, second.request.cached_tokens) == (0, 42)


def test_the_audio_of_another_clip_is_never_taken_for_this_one(model: Any) -> None:
    ids, features = prompt(next(number for number in range(50) if prompt(number)[1] is not None))
    rows = open_rows(model, 1)
    for _ in range(2):
        asked = Asked(rows, ids, features)
        answer(rows)
    assert asked.request.cached_tokens == ids.index(AUDIO)


def test_rows_grow_for_a_long_prompt_and_all_are_answered_once(model: Any, alone: Callable[[int], list[int]]) -> None:
    rows = open_rows(model, 3, longest=300)
    long = [1, 3, *np.random.default_rng(1).integers(300, 2000, 350).tolist(), 4]  # longer than turns make a prompt
    asked = [Asked(rows, *prompt(number)) for number in range(6)]
    longest = Asked(rows, long, None)
    asked += [Asked(rows, *prompt(number)) for number in range(6, 12)]
    answer(rows)
    assert [each.tokens for each in asked] == [alone(number) for number in range(12)]
    assert all(each.request.generations == 1 for each in (*asked, longest))
    decoder = decoding.Decoder(model, capacity=500)
    decoder.prefill(long)
    assert longest.tokens == list(decoder.stream(sampling(), threading.Event()))


def test_there_are_as_many_rows_as_the_memory_has_room_for(model: Any, alone: Callable[[int], list[int]]) -> None:
    row_bytes = 128 * 2 * 2 * 2 * 16 * 4  # tokens, keys and values, layers, heads, values a head, bytes a value
    rows = open_rows(model, 16, free_bytes=10 * row_bytes)
    counts: set[int] = set()
    numbers = [number for number in range(100) if len(prompt(number)[0]) <= 128 - MOST_TOKENS][:20]
    asked = [Asked(rows, *prompt(number)) for number in numbers]
    while not rows.is_idle:
        rows.advance()
        counts.add(len(rows._slots))
    assert [each.tokens for each in asked] == [alone(number) for number in numbers]
    assert counts == {6}, "six tenths of it"
    Asked(rows, [1, *range(300, 500), 4], None)
    answer(rows)
    assert len(rows._slots) == 3
    Asked(rows, *prompt(numbers[0]))
    answer(rows)
    assert len(rows._slots) == 6, "short rows again, once nobody needs long ones"


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Memory that runs out: in a step of too many rows, with too many windows, and in a prompt of too many tokens."""
    limits = {"step_rows": 10**9, "prefill": 10**9, "together": 10**9}
    for owner, name in ((rows_module.TextModel, "step_rows"), (rows_module.TextModel, "prefill")):
        monkeypatch.setattr(owner, name, _limited(getattr(owner, name), limits, name))
    encoder = rows_module.WindowEncoder
    monkeypatch.setattr(encoder, "together", _limited(encoder.together, limits, "together"))
    return limits


def _limited(original: Any, limits: dict[str, int], name: str) -> Any:
    def call(self: Any, given: Any, *rest: Any) -> Any:
        if given.shape[0] > limits[name]:
            raise MemoryError(name)
        return original(self, given, *rest)

    return call


@pytest.mark.parametrize("limits", [{"step_rows": 3}, {"together": 3}, {"step_rows": 1, "together": 2}])
def test_where_memory_runs_out_there_are_fewer_rows_and_the_same_replies(
    model: Any, alone: Callable[[int], list[int]], tight: dict[str, int], limits: dict[str, int]
) -> None:
    expected = [alone(number) for number in range(20)]
    tight.update(limits)
    rows = open_rows(model, 8)
    rows._encoded_together = 8  # as on a GPU
    asked = [Asked(rows, *prompt(number)) for number in range(20)]
    answer(rows)
    assert [each.tokens for each in asked] == expected


def test_a_prompt_that_fits_nowhere_fails_alone(
    model: Any, alone: Callable[[int], list[int]], tight: dict[str, int]
) -> None:
    expected = [alone(number) for number in range(8)]
    tight["prefill"] = 150
    rows = open_rows(model, 4)
    asked = [Asked(rows, *prompt(number)) for number in range(4)]
    large = Asked(rows, [1, *range(300, 500), 4], None)
    asked += [Asked(rows, *prompt(number)) for number in range(4, 8)]
    answer(rows)
    assert [each.tokens for each in asked] == expected
    assert [type(told) for told in large.told] == [MemoryError]


def test_a_prompt_without_its_audio_is_refused_and_the_rest_goes_on(
    model: Any, alone: Callable[[int], list[int]]
) -> None:
    rows = open_rows(model, 2)
    wrong = Asked(rows, [1, 3, 25, *[AUDIO] * WINDOW, 4], None)
    right = Asked(rows, *prompt(1))
    answer(rows)
    assert [type(told) for told in wrong.told] == [ModelError]
    assert right.tokens == alone(1)


def test_what_is_given_up_ends_with_the_next_token(model: Any) -> None:
    rows = open_rows(model, 1)
    number = next(number for number in range(100) if prompt(number)[1] is None)
    first, second = Asked(rows, *prompt(number)), Asked(rows, *prompt(number))
    rows.advance()
    generated = len(first.told)
    first.is_cancelled = second.is_cancelled = True
    answer(rows)
    assert len(first.tokens) == generated
    assert (second.tokens, second.request.generations) == ([], 0)


def test_an_error_ends_all_that_was_begun(model: Any) -> None:
    rows = open_rows(model, 2)
    asked = [Asked(rows, *prompt(number)) for number in range(4)]
    rows.advance()
    rows.fail(ModelError("gone"))
    assert rows.is_idle
    assert all(isinstance(each.told[-1], ModelError) or each.told[-1] is None for each in asked)
    assert sum(isinstance(each.told[-1], ModelError) for each in asked) >= 2


def test_sampling_draws_for_each_row(model: Any) -> None:
    sampler = decoding.Sampler(
        decoding.Sampling(4, frozenset(), temperature=1.0, top_p=0.6, seed=1), torch.device("cpu")
    )
    logits = torch.tensor([[0.0, 9.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    drawn = [tuple(sampler.sample_each(logits).tolist()) for _ in range(40)]
    assert set(drawn) == {(1, 0), (2, 0)}
