"""What every part reports in the same way: levels, percentiles, other people's errors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.audio.levels import SILENCE_DBFS, dbfs
from voxcli.core.percentiles import percentile
from voxcli.printable import ERROR_CHARACTERS, first_line


@pytest.mark.parametrize(("power", "level"), [(1.0, 0.0), (0.01, -20.0), (1e-6, -60.0), (0.0, SILENCE_DBFS)])
def test_levels_are_below_full_scale(power: float, level: float) -> None:
    assert dbfs(power) == pytest.approx(level)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent / 100)
    assert found in values
    needed = math.ceil(percent / 100 * len(values))
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first \n second"), "first"),
        (ValueError(" \n"), "ValueError"),
        (KeyError(), "KeyError"),
        (OSError("a\x1b[31mb"), "a\\x1b[31mb"),
        (OSError("x" * 999), "x" * ERROR_CHARACTERS),
    ],
)
def test_an_error_is_told_in_one_safe_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
