"""Work on a thread of its own, and how long OpenMP's threads wait."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from voxcli.engines.teams import leaving_none

ROOT = Path(__file__).parent.parent


def test_the_thread_of_the_work_has_ended_when_its_result_is_there() -> None:
    worker = leaving_none(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()


def test_what_the_work_raises_is_raised() -> None:
    def fail() -> None:
        raise TimeoutError("too late")

    with pytest.raises(TimeoutError, match="too late"):
        leaving_none(fail)


@pytest.mark.parametrize(("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_the_command_line_shortens_how_long_threads_spin_unless_told_otherwise(
    given: dict[str, str], found: str
) -> None:
    code = (
        "import atexit, os, voxcli.cli; atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'])); voxcli.cli.main()"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env={**inherited, "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == found
