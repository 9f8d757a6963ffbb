"""The benchmark of what asking what was understood does to the next turn, on the smallest random model."""

import pytest

pytest.importorskip("torch")

from benchmarks.random_model import open_model
from benchmarks.understood import Times, figures, measure
from voxcli.core.understanding import LINE_TOKENS


def test_both_conversations_are_measured_and_one_of_them_asks() -> None:
    found = measure(open_model("random:tiny", "cpu"), 0.5, turns=2, reply_tokens=4)
    assert {mode: len(times.first_token_seconds) for mode, times in found.items()} == {"off": 2, "show": 2}
    assert found["off"].line_tokens == []
    assert all(0 < tokens <= LINE_TOKENS for tokens in found["show"].line_tokens)


def test_a_user_who_does_not_wait_cancels_the_line_with_its_first_token() -> None:
    found = measure(open_model("random:tiny", "cpu"), 0, turns=1, reply_tokens=4)
    assert found["show"].line_tokens == [1]


@pytest.mark.parametrize(("seconds", "met"), [(1.0, True), (1.2, False)])
def test_the_bar_is_the_time_without_asking(seconds: float, met: bool) -> None:
    found = {"off": Times([1.0, 1.0], [0.1]), "show": Times([seconds], [0.2], [48])}
    off, show = figures(found, 2)
    assert (off.met, show.met) == (None, met)
    assert show.values["ratio"] == seconds
