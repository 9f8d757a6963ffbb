"""`python -m benchmarks.start`: the arithmetic of its pairs, and what it refuses."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import start
from voxcli.errors import VoxError


def test_the_ratio_of_a_pair_is_that_of_its_commands() -> None:
    slow, fast = ([sys.executable, "-c", f"sum(range({count}))"] for count in (30_000_000, 0))
    first, second, ratio = start.paired(slow, fast, 3)
    assert first > second
    assert ratio > 1


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(start.app, ["--json", str(tmp_path / "none" / "figures.json")])
    assert result.exit_code == 2
    assert "can't write" in result.stderr


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(VoxError, match="exit status 3"):
        start.wall_seconds([sys.executable, "-c", "raise SystemExit(3)"])
