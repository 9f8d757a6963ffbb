"""`python -m benchmarks.batch`: a whole run on a tiny random model, and the arithmetic of its figures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import batch  # noqa: E402


def run(*flags: str) -> Any:
    return CliRunner().invoke(batch.app, ["--device", "cpu", *flags])


def test_three_ways_are_measured_on_the_same_clips(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    sizes = ("--clips", "5", "--singles", "2", "--reply-tokens", "4", "--reply-tokens", "6", "--clip-seconds", "1")
    done = run("--model", "random:tiny", "--json", str(path), "--batch-size", "2", *sizes)
    assert done.exit_code == 0, done.output
    record = json.loads(path.read_text())
    assert [each["what"].split(" tokens: ")[0] for each in record["figures"]] == [*["4"] * 6, *["6"] * 6]
    for figures in (record["figures"][:6], record["figures"][6:]):
        check(figures)
    assert "torch" in record["machine"]["versions"]


def check(measured: list[dict[str, Any]]) -> None:
    """See that the figures of one length of replies fit together."""
    generated, single, together, per_generate, per_single, equal = measured
    assert [each["values"]["clips"] for each in (generated, single, together)] == [2, 2, 5]
    assert set(together["values"]["part_seconds_a_clip"]) == {"encoder", "prompts", "decoding"}
    pace = [each["values"]["clips"] / each["values"]["seconds"] for each in (generated, single, together)]
    assert per_generate["values"]["ratio"] == pytest.approx(pace[2] / pace[0])
    assert per_single["values"]["ratio"] == pytest.approx(pace[2] / pace[1])
    assert per_single["met"] == (per_single["values"]["ratio"] >= 3)
    assert (equal["values"], equal["met"]) == ({"equal": 2, "compared": 2}, True)


def figures(device: str, dtype: Any) -> dict[str, Any]:
    """Return the figures of a run in which the ways take 30, 12 and 4 s for 2, 4 and 8 clips, by what they are of."""
    model = SimpleNamespace(device=torch.device(device), dtype=dtype)
    replies = [[1, 2], [3, 4], [5, 6], [7, 8]]
    together = batch.Result(4, [*replies[:3], [0]], 8, 24)
    plan = batch.Plan(clips=8, clip_seconds=5.0, slots=16)
    found = batch.figures(batch.Result(30, [], 2, 24), batch.Result(12, replies, 4, 24), together, plan, model)
    return {each.what.removeprefix("24 tokens: "): each for each in found}


def test_on_a_gpu_generate_is_the_measure_and_on_a_cpu_one_by_one() -> None:
    on_gpu, on_cpu = figures("cuda", torch.bfloat16), figures("cpu", torch.float32)
    for found in (on_gpu, on_cpu):
        assert found["together against generate"].values["ratio"] == pytest.approx(30)
        assert found["together against one by one"].values["ratio"] == pytest.approx(6)
    assert (on_gpu["together against generate"].met, on_gpu["together against one by one"].met) == (True, None)
    assert (on_cpu["together against generate"].met, on_cpu["together against one by one"].met) == (None, True)
    same = "replies that are the same together and one by one, token for token"
    assert (on_gpu[same].met, on_cpu[same].met, on_cpu[same].measured) == (None, False, "3 of 4")
    assert "48 tokens/s, 10 audio hours an hour" in on_cpu["voxcli, together, 16 slots"].measured


@pytest.mark.parametrize(
    ("flags", "code"), [(["--model", "random:huge"], 2), (["--batch-size", "1"], 2), (["--singles", "0"], 2)]
)
def test_what_cannot_be_measured_is_refused(flags: list[str], code: int) -> None:
    assert run(*flags).exit_code == code
