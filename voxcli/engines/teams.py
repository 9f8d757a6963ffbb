"""OpenMP's teams of threads on a CPU: how they wait, and work on a thread that leaves none of them behind.

Each thread that has called torch keeps such a team until it ends. Where the teams of a process have more
threads than there are cores, libgomp lets them sleep between two parallel loops instead of watching for the
next one (`gomp_throttled_spin_count_var`), and a step of a small model takes twice as long. It knows nothing
of what the work is.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from voxcli.turn import SIGNAL_SECONDS

Result = TypeVar("Result")

# How often a thread looks for the next parallel loop before it sleeps. It suffices between the loops of a decode
# step. With libgomp's own 300,000, one busy program beside makes a step of a tiny model take 200 times as long on
# two cores: threads that wait keep others from a core until the system takes it from them. With this, 15 times.
SPINS = "10000"


def spin_briefly() -> None:
    """Have threads sleep soon when there is nothing to do. To be called before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def leaving_none(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises. Ctrl-C ends the waiting, not the work."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again, on the caller's thread
            done.set_exception(error)

    thread = threading.Thread(target=run, name="apart", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(SIGNAL_SECONDS)
    return done.result()
