"""CUDA graphs, emulated on a CPU: operations are recorded once and replayed with other values in the buffers."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_voxtral as tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mistral_common")
attention = pytest.importorskip("voxcli.engines.voxtral.runtime.attention")
compiling = pytest.importorskip("voxcli.engines.voxtral.runtime.compiler")
from benchmarks.emulation import CountingCompiler, EmulatedGraphs, Reads, Tape  # noqa: E402 - needs torch
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import OVER, Sampler, Sampling  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more
END, AUDIO, WINDOW = 2, 24, 25
GREEDY = Sampling(24, frozenset({END}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny.make(tmp_path_factory.mktemp("checkpoint"), window_seconds=2)
    return transformers.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()


class Made:
    """A decoder that replays, and what it recorded."""

    def __init__(self, model: Any, sampling: Any = GREEDY, capacity: int = 1400, bucket: int = 64) -> None:
        self.recorder = EmulatedGraphs()
        self.progress: list[tuple[int, int]] = []
        self.backends = Backends(graphs=lambda: self.recorder, looks_ahead=True)
        self.decoder = Decoder(SharedModel(model), capacity=capacity, smallest_bucket=bucket, backends=self.backends)
        self.decoder.warm_up(sampling, progress=lambda *counts: self.progress.append(counts))
        self.recorder.replayed.clear()


@pytest.fixture(scope="module")
def made(model: Any) -> Made:
    return Made(model)


def text(count: int, seed: int = 0) -> list[int]:
    return [1, *np.random.default_rng(seed).integers(200, 2000, count - 1).tolist()]


def spoken(before: Sequence[int]) -> list[int]:
    return [*before, 3, 25, *[AUDIO] * WINDOW, 4]


def noise(seed: int) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 128, 200)).astype(np.float32))


def said(decoder: Any, ids: list[int], features: Any = None, sampling: Any = GREEDY) -> list[int]:
    decoder.prefill(ids, features)
    return list(decoder.stream(sampling, threading.Event()))


def plainly(model: Any, ids: list[int], features: Any = None) -> list[int]:
    return said(Decoder(SharedModel(model), capacity=1400), ids, features)


def test_a_conversation_is_replayed_and_says_what_it_says_uncaptured(model: Any, made: Made) -> None:
    """Turns of all lengths, each beginning at another place of the cache, over several buckets of 64, 128, ..."""
    ids = text(3)
    made.recorder.replayed.clear()
    recorded = made.recorder.captured
    for turn, words in enumerate((5, 14, 40, 100, 200, 300)):
        ids += text(words, turn)[1:]
        found = said(made.decoder, spoken(ids), noise(turn))
        assert found == plainly(model, spoken(ids), noise(turn)), f"turn {turn}"
        ids += [token for token in found if token != AUDIO]
    assert len(ids) > 700
    assert made.recorder.replayed
    assert made.recorder.captured == recorded, "no turn records anything"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 65, 383, 511, 512, 513, 1030])
def test_prompts_of_any_length_are_padded(model: Any, made: Made, count: int) -> None:
    made.decoder.rewind(0)
    assert said(made.decoder, text(count, count)) == plainly(model, text(count, count))


def test_growing_into_the_next_bucket_neither_records_nor_changes_a_token(model: Any, made: Made) -> None:
    long = Sampling(200, frozenset())
    recorded = made.recorder.captured
    plain = Decoder(SharedModel(model), capacity=1400)
    ids = text(50)
    assert said(made.decoder, ids, sampling=long) == said(plain, ids, sampling=long)
    assert made.decoder.cached > 128, "more than the buckets of 64 and 128 hold"
    assert made.recorder.captured == recorded


def test_where_there_is_no_room_for_padding_the_prompt_goes_in_unpadded(model: Any) -> None:
    made = Made(model, capacity=140)
    ids = text(133)
    assert said(made.decoder, ids) == plainly(model, ids)[:7]


def test_another_size_of_cache_works_uncaptured_and_the_old_one_is_captured_again(model: Any) -> None:
    made = Made(model, capacity=200)
    recorded, ids = made.recorder.captured, text(40)
    made.progress.clear()
    made.decoder.resize(300)
    assert said(made.decoder, spoken(ids), noise(1)) == plainly(model, spoken(ids), noise(1))
    assert (made.recorder.replayed, made.recorder.captured) == ([0], recorded), "the encoder alone"
    assert made.decoder.windows_encoded == 1
    made.decoder.resize(200)
    assert made.recorder.captured == 2 * recorded - 1, "the encoder does not depend on the cache"
    assert said(made.decoder, spoken(ids), noise(1)) == plainly(model, spoken(ids), noise(1))
    assert made.recorder.replayed
    assert not made.progress, "voxcli is ready already"


def test_progress_counts_to_the_end(made: Made) -> None:
    total = made.recorder.captured
    assert made.progress == [(done, total) for done in range(total + 1)]


def drawn(temperature: float = 1.0, seed: int | None = None) -> Any:
    return Sampling(12, frozenset(), temperature=temperature, top_p=0.9, seed=seed)


def test_sampling_is_captured_with_its_source_of_chance(model: Any) -> None:
    made, ids = Made(model, drawn(seed=4)), text(20)
    first = said(made.decoder, ids, sampling=drawn(seed=4))
    assert first == said(made.decoder, ids, sampling=drawn(seed=4))
    assert first == said(Decoder(SharedModel(model), capacity=1400), ids, sampling=drawn(seed=4))
    assert first != said(made.decoder, ids, sampling=drawn(seed=5))
    assert said(made.decoder, ids, sampling=drawn()) != said(made.decoder, ids, sampling=drawn())


def test_a_way_to_choose_that_was_not_captured_works_too(model: Any, made: Made) -> None:
    ids = text(20)
    plain = Decoder(SharedModel(model), capacity=1400)
    assert said(made.decoder, ids, sampling=drawn(seed=4)) == said(plain, ids, sampling=drawn(seed=4))


def ending_in(model: Any, ids: list[int], after: int) -> tuple[list[int], Any]:
    """Return a greedy reply of `after` ids, and the sampling with which the id after these ends it."""
    unended = Sampling(24, frozenset())
    reply = said(Decoder(SharedModel(model), capacity=1400), ids, sampling=unended)
    assert reply[after] not in reply[:after]
    return reply[:after], Sampling(24, frozenset({5, reply[after], 2047}))


@pytest.mark.parametrize("after", [0, 1, 7])
def test_the_end_of_a_reply_is_found_by_what_was_captured(model: Any, after: int) -> None:
    ids = text(20)
    expected, ended = ending_in(model, ids, after)
    made = Made(model, ended)
    recorded = made.recorder.captured
    for _ in range(2):  # what ended one reply is over for the next
        with Reads() as reads:
            assert said(made.decoder, ids, sampling=ended) == expected
        assert reads.count == after + 1, "one value a token, and one for the end"
        assert made.decoder.cached == len(ids) + after, "the reply, and nothing of what was computed beyond"
        longer = [*ids, *expected, 7, 8, 9]
        assert made.decoder.prefill(longer).cached_tokens == len(ids) + after
        assert said(made.decoder, longer) == plainly(model, longer)
    assert made.recorder.captured == recorded


@pytest.mark.parametrize("after", [0, 2])
def test_other_ends_than_the_captured_ones_work_too(model: Any, made: Made, after: int) -> None:
    ids = text(20)
    expected, ended = ending_in(model, ids, after)
    for _ in range(2):
        assert said(made.decoder, ids, sampling=ended) == expected
        assert made.decoder.cached == len(ids) + after
    assert said(made.decoder, ids) == plainly(model, ids), "and the captured ones do again"


def test_after_its_end_nothing_of_a_reply_counts() -> None:
    sampler = Sampler(Sampling(9, frozenset({3, 5})), torch.device("cpu"))
    logits, tape = torch.zeros(8), Tape()
    with torch.inference_mode(), tape:
        fed = sampler.sample_and_publish(logits)

    def published(token: int) -> int:
        logits.zero_()[token] = 1
        tape.replay()
        assert int(fed) == token, "an id is fed in any case"
        return int(sampler.published)

    sampler.begin(None)
    assert [published(token) for token in (4, 0, 5, 4, 3, 1)] == [4, 0, *[OVER] * 4]
    sampler.begin(None)
    assert published(1) == 1


def test_an_interrupt_leaves_a_correct_cache(model: Any, made: Made) -> None:
    ids, interrupt = text(70, 9), threading.Event()
    made.decoder.prefill(ids)
    tokens = made.decoder.stream(Sampling(50, frozenset()), interrupt)
    begun = [next(tokens) for _ in range(5)]
    interrupt.set()
    assert not list(tokens)
    longer = [*ids, *begun, 7, 8, 9]
    assert said(made.decoder, longer) == plainly(model, longer)


def test_the_double_refuses_what_a_graph_refuses() -> None:
    value = torch.ones(1)
    for read in (value.item, value.nonzero, lambda: bool(value > 0)):
        with pytest.raises(RuntimeError, match="reads a value back"), Tape():
            read()


def test_masked_attention_sees_what_comes_before_and_no_more() -> None:
    queries, keys, values = (
        torch.randn(heads, 12, 8, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries[None, :, :5], keys[None, :, :5], values[None, :, :5], is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    found = attention.masked(queries[:, 3:5], keys, values, torch.tensor([3, 4]))
    torch.testing.assert_close(found, expected[3:5])
    assert attention.best(4, 2, 8, torch.float32, torch.device("cpu")) is attention.masked


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)


def test_one_compilation_serves_all_layers_of_a_bucket(model: Any) -> None:
    compiler, done = CountingCompiler(), list[int]()
    text = SharedModel(model).text
    cache = text.allocate(200, 64)
    with compiling.kept_in(None):
        layer = compiling.compiled(text, cache, done.append, compiler)
    assert done == [1, 2, 3]
    assert compiler.compiled == len(cache.buckets) == 3, "not one for each of the layers"
    with torch.inference_mode():
        arguments = torch.tensor([[7]]), cache.positions_from(0, 1)[0], cache, 128
        plain = text.step(*arguments, masked=True)
        torch.testing.assert_close(text.step(*arguments, masked=True, through=layer), plain)
    assert compiler.compiled == 3


def test_compiled_kernels_lie_where_their_owner_alone_may_write(
    uncached: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    with compiling.kept_in(tmp_path / "cache"):
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    with compiling.kept_in(tmp_path / "other"):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere", "what the user says holds"
