"""Runs coroutines on one thread of its own, for callers on other threads."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from voxcli.errors import VoxError

POLL_SECONDS = 0.02  # between two looks at the interrupt
CLOSE_SECONDS = 2.0  # Time for what still runs; users of the loop end their work before.

T = TypeVar("T")


class AsyncLoop:
    """One asyncio loop on one thread. It must be closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mcp", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine; return a future that another thread may cancel."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float, interrupt: threading.Event) -> T:
        """Run a coroutine and return its result. It is cancelled if it takes too long, or `interrupt` is set.

        Raises:
            VoxError: it was interrupted.
            TimeoutError: it took too long.
        """
        future, deadline = self.start(work), time.monotonic() + timeout_seconds
        try:
            while True:
                with suppress(TimeoutError):  # The wait's own; one of the coroutine is raised below.
                    return future.result(POLL_SECONDS)
                if future.done():
                    return future.result()
                if interrupt.is_set():
                    raise VoxError("stopped, because the user interrupted")
                if time.monotonic() > deadline:
                    raise TimeoutError
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.create_task, self._end())
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()
