"""Tests of `voxcli results` through the real command."""

import html
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from voxcli.cli import app

runner = CliRunner()


def record(index: int) -> dict[str, Any]:
    if index % 10 == 3:
        return {"id": f"q{index}", "error": {"code": "audio_input", "message": "the file is empty"}}
    seconds = 0.2 + index % 7 / 10
    return {
        "id": f"q{index}",
        "user": "[User audio input - 16000 samples, 1.00s]",
        "reply": f"Reply {index} to a question, with \x1b[31m and more words than fit one line of a terminal.",
        "audio": {"seconds": 60.0, "damaged_seconds": 2.0 if index == 8 else 0.0},
        "tokens": {"reply": 5},
        "timings": {"first_token_seconds": seconds, "total_seconds": seconds + 1},
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record(index)) + "\n" for index in range(100)))
    return path


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_the_table_fits_the_terminal(results: Path, columns: int) -> None:
    shown = runner.invoke(app, ["results", str(results)], env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0
    assert all(cell_len(line) <= columns for line in shown.stdout.splitlines())
    assert "\x1b" not in shown.stdout
    assert "… and 50 more; -n 0 shows all" in shown.stdout
    assert "90 answered · 10 failed · 90.0 min of audio" in " ".join(shown.stdout.split())
    bars = [line.split() for line in shown.stdout.splitlines() if line.strip().startswith(("up to", "over"))]
    assert sum(int(word) for words in bars for word in words if word.isdigit()) == 90


def test_failed_items_alone(results: Path) -> None:
    shown = runner.invoke(app, ["results", str(results), "--failed"])
    rows = [line for line in shown.stdout.splitlines() if line.startswith("q")]
    assert len(rows) == 10
    assert all("audio_input: the file is empty" in row for row in rows)


def test_json_counts_everything(results: Path) -> None:
    shown = runner.invoke(app, ["results", str(results), "--json"])
    assert json.loads(shown.stdout) == {
        "answered": 90,
        "failed": 10,
        "audio_seconds": 5400.0,
        "reply_tokens": 450,
        "first_token_seconds": {"p50": 0.5, "p95": 0.8},
        "failures": {"audio_input": {"count": 10, "first": "q3: the file is empty"}},
        "flaws": {"damaged_seconds": {"count": 1, "first": "q8"}},
    }


def test_flaws_of_recordings_are_told(results: Path) -> None:
    for arguments in ([], ["--format", "md"], ["--format", "html"]):
        shown = runner.invoke(app, ["results", str(results), *arguments])
        text = html.unescape(" ".join(shown.stdout.split()))
        assert "damaged recordings (damaged_seconds): 1, the first q8" in text


def test_failed_items_alone_where_none_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(record(1)) + "\n")
    assert "no item has failed" in runner.invoke(app, ["results", str(path), "--failed"]).stdout


def test_figures_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    figures = ["NaN", "Infinity", "1e300", "9" * 400]
    lines = (json.dumps(record(1)).replace("60.0", figure).replace("0.30000000000000004", figure) for figure in figures)
    path.write_text("".join(f"{line}\n" for line in lines))
    shown = runner.invoke(app, ["results", str(path)])
    assert (shown.exit_code, "4 answered" in shown.stdout) == (0, True), shown.stderr


@pytest.mark.parametrize(
    "arguments", [["--json", "--format", "csv"], ["--json", "--failed"], ["-n1", "--json"], ["--force"]]
)
def test_a_flag_that_would_do_nothing_is_refused(results: Path, arguments: list[str]) -> None:
    assert runner.invoke(app, ["results", str(results), *arguments]).exit_code == 2


def test_an_export_is_private_and_replaces_nothing(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ["results", str(results), "--format", "html", "-o", str(page)]
    assert runner.invoke(app, command).exit_code == 0
    assert page.read_text().count("<tr>") == 101
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    again = runner.invoke(app, command)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert runner.invoke(app, [*command, "--force"]).exit_code == 0


def test_standard_input(results: Path) -> None:
    shown = runner.invoke(app, ["results", "-", "--format", "csv", "-n", "2"], input=results.read_bytes())
    assert [line.split(",")[0] for line in shown.stdout.splitlines()] == ["id", "q0", "q1"]


@pytest.mark.parametrize("name", ["missing.jsonl", ".", "other.txt"])
def test_what_is_no_results_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("hello\n")
    refused = runner.invoke(app, ["results", name])
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 2


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").touch()
    shown = runner.invoke(app, ["results", str(tmp_path / "results.jsonl")])
    assert shown.exit_code == 0
    assert "no results yet" in shown.stdout
