"""`voxcli stats`: the latency of spoken turns, stage by stage and per day."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from voxcli.app.stats import SPARK_COLUMNS, sparkline
from voxcli.cli import app
from voxcli.core.session import Turn
from voxcli.core.storage.database import FILE_NAME
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import StageTimes, TurnDetails
from voxcli.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home"


@pytest.fixture
def spoken(home: Path) -> None:
    """Ten spoken turns in one session, on two days; one turn in another; a typed one."""
    with Store.open(home) as store:
        for number in range(1, 11):
            latency = StageTimes(600.0, 600.0 + 10 * number, 1000.0 * number)
            store.append(
                "kitchen", Turn("[User audio input - 16000 samples, 1.00s]", "Yes."), TurnDetails(latency=latency)
            )
        store.append(
            "attic", Turn("[User audio input - 16000 samples, 1.00s]", "Yes."), TurnDetails(latency=StageTimes(700))
        )
        store.append("kitchen", Turn("typed", "Yes."))
    with closing(sqlite3.connect(home / FILE_NAME)) as changed, changed:
        changed.execute("UPDATE turns SET created_at = '2026-11-0' || (1 + number / 6) || 'T12:00:00+00:00'")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["stats", *arguments])


@pytest.mark.usefixtures("spoken")
def test_json_has_the_percentiles_of_each_stage_and_day() -> None:
    figures = json.loads(run("kitchen", "--json").stdout)
    assert (figures["session"], figures["turns"]) == ("kitchen", 10)
    assert figures["latency"]["first_audio_ms"] == {"p50": 5000.0, "p95": 10000.0}
    assert [(day["day"], day["turns"]) for day in figures["days"]] == [("2026-11-01", 5), ("2026-11-02", 5)]
    assert figures["days"][1]["latency"]["first_token_ms"] == {"p50": 680.0, "p95": 700.0}
    everywhere = json.loads(run("--json").stdout)
    assert (everywhere["session"], everywhere["turns"]) == (None, 11)
    attic = json.loads(run("attic", "--json").stdout)
    assert attic["latency"] == {
        "endpoint_ms": {"p50": 700.0, "p95": 700.0},
        "first_token_ms": None,
        "first_audio_ms": None,
    }


@pytest.mark.usefixtures("spoken")
def test_people_see_tables_with_a_sparkline() -> None:
    shown = run("kitchen").stdout
    rows = [line.split() for line in shown.splitlines()]
    assert "10 spoken turns in kitchen" in shown
    assert ["voice", "5.00", "10.00", "▁▂▃▄▅▅▆▇██"] in rows
    assert ["2026-11-02", "5", "0.60", "0.60", "0.68", "0.70", "8.00", "10.00"] in rows
    assert "voice" not in run("attic").stdout, "no turn reached that stage"


@pytest.mark.usefixtures("spoken")
def test_a_picture_holds_the_figures_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "stats.svg"
    assert run("--svg", str(file)).stdout == ""
    text = "".join(ElementTree.parse(file).getroot().itertext()).replace("\xa0", " ")  # noqa: S314 - our own
    assert "11 spoken turns" in text
    assert "10.00" in text
    assert "url(http" not in file.read_text("utf-8")
    assert "font-face" not in file.read_text("utf-8")
    again = run("--svg", str(file))
    assert again.exit_code == ConfigError.exit_code
    assert "--force" in again.stderr


def test_without_spoken_turns_it_says_so(home: Path) -> None:
    with Store.open(home) as store:
        store.append("kitchen", Turn("typed", "Yes."))
    result = run()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no turn was spoken" in result.stderr
    assert json.loads(run("--json").stdout)["latency"]["first_audio_ms"] is None
    assert run("kitchn").exit_code == ConfigError.exit_code


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([5], "█"), ([0, 0], "▁▁"), ([1, 4, 8], "▂▅█"), ([-3, 2], "▁█")]
)
def test_a_sparkline_has_a_bar_for_each_value(values: list[float], line: str) -> None:
    assert sparkline(values) == line


def test_a_sparkline_shows_medians_of_many_values() -> None:
    line = sparkline([1.0] * 500 + [8.0] * 500)
    assert len(line) == SPARK_COLUMNS
    assert line == "▂" * (SPARK_COLUMNS // 2) + "█" * (SPARK_COLUMNS // 2)
