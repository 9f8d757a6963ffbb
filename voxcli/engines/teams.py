"""Work on a thread that ends with it, so that no team of OpenMP threads is left behind on a CPU.

Each thread that has called torch keeps such a team until it ends. Where the teams of a process have more
threads than there are cores, libgomp lets them sleep between two parallel loops instead of watching for the
next one (`gomp_throttled_spin_count_var`), and a step of a small model takes twice as long. It knows nothing
of what the work is.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from voxcli.turn import SIGNAL_SECONDS

Result = TypeVar("Result")


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
