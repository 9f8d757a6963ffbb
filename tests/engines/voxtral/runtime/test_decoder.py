"""The decoder on the real classes: what it feeds, yields and leaves in the cache."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_voxtral as tiny
from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from voxcli.engines.voxtral.runtime.acceleration import Backends  # noqa: E402
from voxcli.engines.voxtral.runtime.decoder import Decoder, PrefillResult  # noqa: E402
from voxcli.engines.voxtral.runtime.model import SharedModel  # noqa: E402
from voxcli.engines.voxtral.runtime.sampler import Sampling  # noqa: E402

torch.set_num_threads(1)  # a model this small is slower with more

AS_ON_A_GPU = Backends(looks_ahead=True)
AUDIO = 24
END = 2
WINDOW = 25  # audio tokens of 2 s
TEXT = list(range(300, 340))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint whose encoder takes 2 s at once: 25 audio tokens, and much less to compute."""
    return tiny.make(tmp_path_factory.mktemp("checkpoint") / "quick-voxtral", window_seconds=2)


@pytest.fixture(scope="module")
def model(quick: Path) -> Any:
    return load(quick)


def load(folder: Path) -> Any:
    return transformers.VoxtralForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()


class Script:
    """Makes `ids[n]` the likeliest token of the n-th logits during its context, and all others equally likely."""

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.ids = ids
        self.steps = 0
        self.before: dict[int, threading.Event] = {}  # events by the number of computed logits
        self._hook = model.lm_head.register_forward_hook(self._logits)

    def _logits(self, _module: Any, _inputs: Any, logits: Any) -> Any:
        if self.steps in self.before:
            self.before[self.steps].set()
        logits.zero_()
        logits[..., END] = -100.0
        logits[..., 50:] = -1e9  # a small vocabulary, so that probabilities are easy to count with
        logits[..., self.ids[self.steps]] = 4.0
        self.steps += 1
        return logits

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def sampling(max_tokens: int = 8, **options: Any) -> Any:
    return Sampling(max_tokens, frozenset({END}), **options)


def noise(windows: int, seed: int = 0) -> Any:
    values = np.random.default_rng(seed).standard_normal((windows, 128, 200)).astype(np.float32)
    return torch.from_numpy(values)


def spoken(windows: int = 1, before: Sequence[int] = ()) -> list[int]:
    return [1, 3, *before, 25, *[AUDIO] * (WINDOW * windows), 4]


def stream(decoder: Any, interrupt: threading.Event | None = None, **options: Any) -> list[int]:
    return list(decoder.stream(sampling(**options), interrupt or threading.Event()))


def reply(model: Any, ids: list[int], features: Any = None, **options: Any) -> list[int]:
    """Return the reply of a new decoder."""
    decoder = Decoder(SharedModel(model), capacity=1500)
    decoder.prefill(ids, features)
    return stream(decoder, **options)


@pytest.fixture(params=["cpu", "gpu"])
def make(request: pytest.FixtureRequest, model: Any) -> Callable[..., Any]:
    """Make decoders: as on a CPU, and with the look-ahead and the buckets of a GPU."""

    def make(capacity: int = 200) -> Any:
        return Decoder(SharedModel(model), capacity=capacity, backends=AS_ON_A_GPU if request.param == "gpu" else None)

    return make


@pytest.fixture
def fed(model: Any) -> Iterator[list[int]]:
    """How many tokens went through the text model at a time."""
    counts: list[int] = []
    layer = model.model.language_model.layers[0].self_attn.o_proj
    hook = layer.register_forward_pre_hook(lambda _module, inputs: counts.append(inputs[0].shape[0]))
    yield counts
    hook.remove()


def test_the_prompt_goes_in_once_and_then_one_token_at_a_time(model: Any, fed: list[int]) -> None:
    decoder = Decoder(SharedModel(model), capacity=100)
    with Script(model, [7, 8, END]):
        assert decoder.prefill(spoken(), noise(1)) == PrefillResult(29, 0)
        assert stream(decoder) == [7, 8]
    assert fed == [29, 1, 1]
    assert decoder.cached == 31
    assert decoder.generations == 1


def test_it_stops_before_the_end_token(model: Any) -> None:
    with Script(model, [END]):
        assert reply(model, [1]) == []


def test_it_stops_at_the_longest_reply(model: Any, fed: list[int]) -> None:
    with Script(model, [7] * 9):
        assert reply(model, [1], max_tokens=3) == [7, 7, 7]
    assert fed == [1, 1, 1], "the last token is not fed"


def test_it_stops_where_the_cache_is_full(model: Any, make: Callable[..., Any]) -> None:
    decoder = make(44)
    with Script(model, [7] * 9):
        decoder.prefill(TEXT)
        assert stream(decoder) == [7] * 4
    with pytest.raises(ModelError, match="44 tokens and a reply don't fit into a cache of 44"):
        decoder.prefill([*TEXT, 1, 2, 3, 4])


@pytest.mark.parametrize("at_step", [0, 1, 4])
def test_an_interrupt_ends_it_within_one_token(model: Any, fed: list[int], at_step: int) -> None:
    interrupt = threading.Event()
    decoder = Decoder(SharedModel(model), capacity=100)
    decoder.prefill([1])
    with Script(model, [7] * 9) as script:
        script.before[at_step] = interrupt
        assert len(stream(decoder, interrupt)) == at_step + 1
    assert sum(fed) == at_step + 1
    assert decoder.cached == at_step + 1


@pytest.mark.parametrize("at_step", [1, 4])
def test_with_the_look_ahead_an_interrupt_ends_it_within_two_tokens(model: Any, fed: list[int], at_step: int) -> None:
    interrupt = threading.Event()
    decoder = Decoder(SharedModel(model), capacity=100, backends=AS_ON_A_GPU)
    decoder.prefill([1])
    with Script(model, [7] * 9) as script:
        script.before[at_step] = interrupt
        said = stream(decoder, interrupt)
    assert len(said) == at_step, "the token before the one that is under way"
    assert sum(fed) <= at_step + 2
    assert decoder.cached == 1 + len(said), "what was computed beyond is not in the cache"


def test_an_interrupt_before_the_first_token_costs_nothing(model: Any, fed: list[int]) -> None:
    interrupt = threading.Event()
    interrupt.set()
    decoder = Decoder(SharedModel(model), capacity=100)
    assert decoder.prefill(spoken(), noise(1), interrupt) == PrefillResult(29, 0)
    assert stream(decoder, interrupt) == []
    assert (fed, decoder.cached, decoder.generations) == ([], 0, 0)


def test_an_interrupt_between_chunks_leaves_what_was_fed(model: Any, fed: list[int]) -> None:
    long = [300 + number % 700 for number in range(1200)]
    decoder, interrupt = Decoder(SharedModel(model), capacity=1500), threading.Event()
    hook = model.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda *_: interrupt.set() if len(fed) == 2 else None
    )
    decoder.prefill(long, None, interrupt)
    hook.remove()
    assert (fed, decoder.cached) == ([512, 512], 1024)
    with pytest.raises(RuntimeError, match="no prompt was prefilled"):
        stream(decoder)
    assert decoder.prefill(long) == PrefillResult(1200, 1024)
    assert stream(decoder) == reply(model, long)


@pytest.mark.parametrize(
    ("ids", "windows", "found"),
    [
        (spoken(1), 0, "25 audio tokens for 0"),
        ([1, AUDIO], 1, "1 audio tokens for 25"),
        ([1], 2, "0 .* for 50"),
    ],
)
def test_audio_tokens_and_features_must_fit_together(
    model: Any, fed: list[int], ids: list[int], windows: int, found: str
) -> None:
    decoder = Decoder(SharedModel(model), capacity=100)
    with pytest.raises(ModelError, match=found):
        decoder.prefill(ids, noise(windows) if windows else None)
    assert not fed


def test_only_what_comes_after_the_common_prefix_is_fed(model: Any, make: Callable[..., Any], fed: list[int]) -> None:
    decoder = make()
    decoder.prefill([1, *TEXT])
    assert decoder.prefill([1, *TEXT, 5, 6]) == PrefillResult(43, 41)
    assert decoder.prefill([1, *TEXT[:10], 7, 8, 9]) == PrefillResult(14, 11)
    assert decoder.prefill([1, *TEXT[:5]]) == PrefillResult(6, 5), "one token is fed at least: the reply begins there"
    assert fed == [41, 2, 3, 1]
    assert stream(decoder) == reply(model, [1, *TEXT[:5]])


def test_a_reply_is_a_prefix_of_the_next_prompt(model: Any, make: Callable[..., Any]) -> None:
    decoder = make()
    decoder.prefill(spoken(), noise(1))
    said = stream(decoder, max_tokens=6)
    assert decoder.cached == 29 + len(said) - 1
    decoder.rewind(10)
    assert decoder.cached == 10
    with pytest.raises(RuntimeError, match="no prompt was prefilled"):
        stream(decoder)


def test_clips_of_one_length_are_not_taken_for_each_other(model: Any, make: Callable[..., Any]) -> None:
    decoder = make()
    decoder.prefill(spoken(), noise(1, seed=1))
    first = stream(decoder)
    decoder.prefill(spoken(), noise(1, seed=2))
    second = stream(decoder)
    assert first == reply(model, spoken(), noise(1, seed=1))
    assert second == reply(model, spoken(), noise(1, seed=2))
    assert first != second


@pytest.mark.parametrize("windows", [0, 2])
def test_a_prompt_is_extended_without_its_clip(
    model: Any, make: Callable[..., Any], fed: list[int], windows: int
) -> None:
    decoder = make()
    ids, features = (spoken(windows), noise(windows)) if windows else ([1, *TEXT], None)
    decoder.prefill(ids, features)
    for added in ([400, 401], [500, 501, 502], [600]):
        ids += [*stream(decoder, max_tokens=3), END, *added]
        del fed[:]
        result = decoder.extend(ids)
        assert result.prompt_tokens == len(ids)
        assert sum(fed) == result.prompt_tokens - result.cached_tokens <= len(added) + 2, "the last token, the end"
        assert decoder.windows_encoded == windows
    assert stream(decoder) == reply(model, ids, features)


def test_an_extended_prompt_may_differ_from_what_was_generated(model: Any, make: Callable[..., Any]) -> None:
    decoder = make()
    ids = spoken(1)
    decoder.prefill(ids, noise(1))
    stream(decoder)
    ids += [400, 401, 402]
    assert decoder.extend(ids).cached_tokens == len(ids) - 3
    assert stream(decoder) == reply(model, ids, noise(1))


def test_a_clip_that_left_the_cache_is_missed(make: Callable[..., Any]) -> None:
    decoder = make()
    decoder.prefill(spoken(1), noise(1))
    decoder.rewind(10)
    with pytest.raises(RuntimeError, match="clip of the prompt is not in the cache"):
        decoder.extend([*spoken(1), 400])
    with pytest.raises(RuntimeError, match="no prompt was prefilled"):
        stream(decoder)


def test_a_prompt_is_not_extended_beyond_the_cache(model: Any, make: Callable[..., Any]) -> None:
    decoder = make(len(spoken(1)) + 4)
    decoder.prefill(spoken(1), noise(1))
    with pytest.raises(ModelError, match="don't fit into a cache"):
        decoder.extend([*spoken(1), 400, 401, 402, 403])
    assert decoder.extend([*spoken(1), 400, 401, 402]).cached_tokens == len(spoken(1))
    assert stream(decoder) == reply(model, [*spoken(1), 400, 401, 402], noise(1))[:1], "room for one token"


def test_an_interrupt_ends_an_extension_between_chunks(make: Callable[..., Any]) -> None:
    decoder, interrupt = make(), threading.Event()
    decoder.prefill(spoken(1), noise(1))
    interrupt.set()
    decoder.extend([*spoken(1), 400], interrupt)
    assert stream(decoder, interrupt) == []
    assert decoder.cached == len(spoken(1))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stream_that_is_closed_leaves_a_correct_cache(model: Any, make: Callable[..., Any], stop_after: int) -> None:
    decoder = make()
    decoder.prefill([1, *TEXT])
    tokens = decoder.stream(sampling(), threading.Event())
    said = [next(tokens) for _ in range(stop_after)]
    tokens.close()
    longer = [1, *TEXT, *said, 9, 10]
    assert decoder.prefill(longer).cached_tokens - 41 in (stop_after - 1, stop_after), "the last one may be fed ahead"
    assert stream(decoder) == reply(model, longer)


def test_a_failed_pass_leaves_a_correct_cache(model: Any, make: Callable[..., Any]) -> None:
    decoder = make()
    decoder.prefill([1, *TEXT])

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = model.model.language_model.layers[1].mlp.register_forward_pre_hook(fail)
    down = model.model.language_model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        decoder.prefill([1, *TEXT[:20], 5, 6])
    hook.remove()
    down.remove()
    assert decoder.prefill([1, *TEXT]).cached_tokens == 21
    assert stream(decoder) == reply(model, [1, *TEXT])


def test_another_size_drops_what_is_cached_and_the_same_size_does_not(model: Any) -> None:
    decoder = Decoder(SharedModel(model), capacity=100)
    decoder.prefill([1, *TEXT])
    decoder.resize(100)
    assert decoder.cached == 41
    decoder.resize(150)
    assert (decoder.cached, decoder.capacity) == (0, 150)
    decoder.prefill([1, *TEXT])
    assert stream(decoder) == reply(model, [1, *TEXT])


def test_windows_that_were_encoded_ahead_are_encoded_once(model: Any) -> None:
    encoded: list[int] = []
    hook = model.model.audio_tower.register_forward_pre_hook(lambda _module, inputs: encoded.append(len(inputs[0])))
    decoder, features = Decoder(SharedModel(model), capacity=200), noise(3)
    decoder.encode_partial(features[:1])
    decoder.encode_partial(features[:2])
    changed = features.clone()
    changed[1, 0, 0] += 1e-6
    decoder.prefill(spoken(3), changed)
    hook.remove()
    assert encoded == [1] * 4, "the second window was another one in the end"
    assert stream(decoder) == reply(model, spoken(3), changed)
    decoder.forget_clip()


def test_growing_into_the_next_bucket_changes_no_token(model: Any, make: Callable[..., Any]) -> None:
    decoder = make(1500)
    long = [300 + number % 700 for number in range(1015)]
    decoder.prefill(long)
    said = stream(decoder, max_tokens=20)
    assert decoder.cached > 1024
    assert said == expected_greedy(model, long, None, 20)


def test_buckets_double_up_to_the_capacity(model: Any) -> None:
    cache = SharedModel(model).text.allocate(1500)
    assert cache.buckets == [1024, 1500]
    assert [cache.bucket(length) for length in (1, 1024, 1025, 1500)] == [1024, 1024, 1500, 1500]


def test_decoders_of_one_model_do_not_disturb_each_other(model: Any) -> None:
    shared = SharedModel(model)
    large, small = Decoder(shared, capacity=1500), Decoder(shared, capacity=100)
    large.prefill(spoken(), noise(1, seed=1))
    small.prefill(spoken(), noise(1, seed=2))
    assert stream(large) == reply(model, spoken(), noise(1, seed=1))
    assert stream(small) == reply(model, spoken(), noise(1, seed=2))
    small.close()
    long = [300 + number % 700 for number in range(1015)]
    large.prefill(long)
    assert stream(large) == reply(model, long)


def test_a_seed_repeats_a_sampled_reply(model: Any) -> None:
    def said(seed: int | None) -> list[int]:
        with Script(model, [7] * 30):
            return reply(model, [1], max_tokens=30, temperature=1.0, seed=seed)

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert said(None) != said(None)


def test_temperature_and_top_p_narrow_the_choice(model: Any) -> None:
    def said(count: int, **options: Any) -> list[int]:
        with Script(model, [7] * count):
            return reply(model, [1], max_tokens=count, seed=3, **options)

    # At temperature 1 the scripted token has exp(4) / (exp(4) + 48) = 0.53 of the probability.
    assert 70 < said(200, temperature=1.0).count(7) < 140
    assert set(said(50, temperature=1.0, top_p=0.5)) == {7}
    assert set(said(50, temperature=0.1)) == {7}
    assert len(set(said(50, temperature=1.0, top_p=0.6))) > 1


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_senseless_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a way to sample"):
        sampling(**options)


def expected_greedy(model: Any, ids: list[int], features: Any, count: int) -> list[int]:
    """Return what transformers' own `generate` replies."""
    found: list[int] = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        input_features=features,
        max_new_tokens=count,
        do_sample=False,
    )[0, len(ids) :].tolist()
    return found[: found.index(END) if END in found else None]


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_greedy_tokens_are_those_of_generate(tiny_voxtral: Path, windows: int) -> None:
    model = load(tiny_voxtral)
    values = np.random.default_rng(windows).standard_normal((windows, 128, 3000)).astype(np.float32)
    features = torch.from_numpy(values) if windows else None
    ids = [1, 3, *[25][:windows], *[AUDIO] * (375 * windows), 300, 400, 500, 4]
    expected = expected_greedy(model, ids, features, 24)
    found = reply(model, ids, features, max_tokens=24)
    assert found == expected
    assert len(set(found)) > 3, "a reply that says something about the loop"
