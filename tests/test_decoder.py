"""The decode loop, on a model that is scripted and on the real classes."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from voxcli.errors import ModelError

torch = pytest.importorskip("torch")
decoding = pytest.importorskip("voxcli.engines.decoder")

torch.set_num_threads(1)  # a model this small is slower with more

AUDIO = 24
END = 2


class ScriptedModel:
    """Likes token `script[n]` best at its n-th call; the other tokens are equally likely."""

    def __init__(self, script: Sequence[int], before: Callable[[int], None] = lambda _: None) -> None:
        audio = SimpleNamespace(max_source_positions=8, hidden_size=2, intermediate_size=8)
        self.config = SimpleNamespace(audio_config=audio, audio_token_id=AUDIO)
        self.device = torch.device("cpu")
        self.script = script
        self.before = before
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        self.before(len(self.calls))
        self.calls.append(inputs)
        logits = torch.zeros(1, 1, 50)
        logits[0, 0, END] = -100.0
        logits[0, 0, self.script[len(self.calls) - 1]] = 4.0
        return SimpleNamespace(logits=logits, past_key_values=f"cache {len(self.calls)}")


def sampling(max_tokens: int = 8, **options: Any) -> Any:
    return decoding.Sampling(max_tokens, frozenset({END}), **options)


def stream(
    model: Any, ids: list[int], features: Any = None, interrupt: threading.Event | None = None, **options: Any
) -> list[int]:
    return list(decoding.Decoder(model).stream(ids, features, sampling(**options), interrupt or threading.Event()))


def test_the_prompt_goes_in_once_and_then_one_token_at_a_time() -> None:
    model = ScriptedModel([7, 8, END])
    features = torch.zeros(1, 128, 16)
    assert stream(model, [1, AUDIO, AUDIO], features) == [7, 8]
    assert [call["input_ids"].tolist() for call in model.calls] == [[[1, AUDIO, AUDIO]], [[7]], [[8]]]
    assert [call["past_key_values"] for call in model.calls] == [None, "cache 1", "cache 2"]
    assert [call["input_features"] is features for call in model.calls] == [True, False, False]
    assert model.calls[1]["input_features"] is None, "or the encoder would run again"


def test_it_stops_before_the_end_token() -> None:
    assert stream(ScriptedModel([END]), [1]) == []


def test_it_stops_at_the_longest_reply() -> None:
    model = ScriptedModel([7] * 9)
    assert stream(model, [1], max_tokens=3) == [7, 7, 7]
    assert len(model.calls) == 3


@pytest.mark.parametrize("at_call", [0, 1, 4])
def test_an_interrupt_ends_it_within_one_token(at_call: int) -> None:
    interrupt = threading.Event()
    model = ScriptedModel([7] * 9, before=lambda call: interrupt.set() if call == at_call else None)
    assert len(stream(model, [1], interrupt=interrupt)) == at_call + 1
    assert len(model.calls) == at_call + 1


def test_an_interrupt_before_the_first_token_costs_nothing() -> None:
    interrupt = threading.Event()
    interrupt.set()
    model = ScriptedModel([7])
    assert stream(model, [1], interrupt=interrupt) == []
    assert not model.calls


@pytest.mark.parametrize(
    ("ids", "windows", "found"),
    [([1, AUDIO, AUDIO], 0, "2 audio tokens for 0"), ([1, AUDIO], 1, "1 audio tokens for 2"), ([1], 2, "0 .* for 4")],
)
def test_audio_tokens_and_features_must_fit_together(ids: list[int], windows: int, found: str) -> None:
    model = ScriptedModel([7])
    with pytest.raises(ModelError, match=found):
        stream(model, ids, torch.zeros(windows, 128, 16) if windows else None)
    assert not model.calls


def test_a_seed_repeats_a_sampled_reply() -> None:
    def reply(seed: int | None) -> list[int]:
        return stream(ScriptedModel([7] * 30), [1], max_tokens=30, temperature=1.0, seed=seed)

    assert reply(1) == reply(1)
    assert reply(1) != reply(2)
    assert reply(None) != reply(None)


def test_temperature_and_top_p_narrow_the_choice() -> None:
    # At temperature 1 the scripted token has exp(4) / (exp(4) + 48) = 0.53 of the probability.
    wide = stream(ScriptedModel([7] * 200), [1], max_tokens=200, temperature=1.0, seed=3)
    assert 70 < wide.count(7) < 140
    assert set(stream(ScriptedModel([7] * 50), [1], max_tokens=50, temperature=1.0, top_p=0.5, seed=3)) == {7}
    assert set(stream(ScriptedModel([7] * 50), [1], max_tokens=50, temperature=0.1, seed=3)) == {7}
    assert len(set(stream(ScriptedModel([7] * 50), [1], max_tokens=50, temperature=1.0, top_p=0.6, seed=3))) > 1


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_senseless_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a way to sample"):
        sampling(**options)


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_greedy_tokens_are_those_of_generate(tiny_voxtral: Path, windows: int) -> None:
    import transformers

    classes: Any = transformers
    model = classes.VoxtralForConditionalGeneration.from_pretrained(tiny_voxtral, local_files_only=True)
    noise = np.random.default_rng(windows).standard_normal((windows, 128, 3000)).astype(np.float32)
    features = torch.from_numpy(noise) if windows else None
    ids = [1, 3, *[25][:windows], *[AUDIO] * (375 * windows), 300, 400, 500, 4]
    expected = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        input_features=features,
        max_new_tokens=24,
        do_sample=False,
    )[0, len(ids) :].tolist()
    found = stream(model, ids, features, max_tokens=24)
    assert found == expected[: expected.index(END) if END in expected else None]
    assert len(set(found)) > 3, "a reply that says something about the loop"
