"""A conversation that runs as a program of its own, seen through its events."""

import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from voxcli.errors import VoxError

READY_SECONDS = 300.0  # a model may have to be fetched
END_SECONDS = 15.0
SETTLE_SECONDS = 1.0  # after "ready": the devices' clocks are known better then
ERROR_CHARACTERS = 300  # of what the program says last, where it fails


class Talk(threading.Thread):
    """The events of a program in the order in which they came, each with `at`: monotonic seconds."""

    def __init__(self, process: "subprocess.Popen[bytes]", stream: IO[bytes]) -> None:
        super().__init__(name="events", daemon=True)
        self._process = process
        self._stream = stream
        self._events: list[dict[str, Any]] = []
        self._come = threading.Condition()
        self._over = False

    def run(self) -> None:
        for line in self._stream:
            with suppress(ValueError), self._come:  # a line that is cut where the program was killed
                self._events.append({**json.loads(line), "at": time.monotonic()})
                self._come.notify_all()
        with self._come:
            self._over = True
            self._come.notify_all()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name so far."""
        with self._come:
            return self._named(name)

    def wait_for(self, name: str, count: int, timeout: float) -> bool:
        """Wait until there have been so many events of a name; False if they did not come."""
        with self._come:
            self._come.wait_for(lambda: self._over or len(self._named(name)) >= count, timeout)
            return len(self._named(name)) >= count

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event["event"] == name]

    def end(self) -> None:
        """Press Ctrl-C twice; kill it if that does not help."""
        for _ in range(2):
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
                time.sleep(0.2)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.join()
        self._stream.close()


@contextmanager
def talking(command: Sequence[str], environment: dict[str, str]) -> Iterator[Talk]:
    """Run a program that converses, for the time of the context; it is ready when that is entered.

    Raises:
        VoxError: it did not become ready.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment)
        stream = process.stdout
        if stream is None:
            raise RuntimeError("the program has no output")
        talk = Talk(process, stream)
        talk.start()
        try:
            if not talk.wait_for("ready", 1, READY_SECONDS):
                process.kill()
                said.seek(0)
                words = said.read().decode(errors="replace").strip()[-ERROR_CHARACTERS:]
                raise VoxError(f"the conversation did not begin: {words or 'it said nothing'}")
            time.sleep(SETTLE_SECONDS)
            yield talk
        finally:
            talk.end()
