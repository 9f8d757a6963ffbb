"""Work on a thread of its own, and how long OpenMP's threads wait."""

import os
import threading

import pytest

from voxcli.engines.teams import leaving_none, spin_briefly


def test_the_thread_of_the_work_has_ended_when_its_result_is_there() -> None:
    worker = leaving_none(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()


def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise TimeoutError("too late")

    with pytest.raises(TimeoutError, match="too late"):
        leaving_none(fail)


@pytest.mark.parametrize(("given", "found"), [(None, "10000"), ("7", "7")])
def test_threads_spin_briefly_unless_told_otherwise(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == found
