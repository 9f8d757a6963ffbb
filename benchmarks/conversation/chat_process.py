"""A conversation in a process of its own, seen through the events that it prints as JSON."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from voxcli.errors import VoxError

READY_SECONDS = 300.0  # a model may have to be fetched
END_SECONDS = 15.0
SETTLE_SECONDS = 1.0  # after "ready", until the latency of the devices is known
TERMINAL = {"TERM": "xterm-256color"}
ERROR_CHARACTERS = 300  # shown from the end of what a failing program prints


class ChatProcess(threading.Thread):
    """The events of a running conversation in their order, each with `at`, in monotonic seconds."""

    def __init__(self, process: "subprocess.Popen[bytes]", stream: IO[bytes]) -> None:
        super().__init__(name="events", daemon=True)
        self._process = process
        self._stream = stream
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._over = False

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def run(self) -> None:
        for line in self._stream:
            with suppress(ValueError), self._changed:  # a killed program leaves half a line
                self._events.append({**json.loads(line), "at": time.monotonic()})
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events with this name so far."""
        with self._changed:
            return self._named(name)

    def wait_for(self, name: str, count: int, timeout: float) -> bool:
        """Wait until there are `count` events with this name; return False after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._named(name)) >= count, timeout)
            return len(self._named(name)) >= count

    def _named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event["event"] == name]

    def end(self) -> None:
        """Press Ctrl-C twice; kill the process if it goes on."""
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
def running_chat(command: Sequence[str], environment: dict[str, str]) -> Iterator[ChatProcess]:
    """Run a program that converses during the context, which is entered when the program is ready.

    Raises:
        VoxError: the program does not become ready.
    """
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, env=environment
        )
        stream = process.stdout
        if stream is None:
            raise RuntimeError("the program has no output")
        chat = ChatProcess(process, stream)
        chat.start()
        try:
            if not chat.wait_for("ready", 1, READY_SECONDS):
                process.kill()
                messages.seek(0)
                words = messages.read().decode(errors="replace").strip()[-ERROR_CHARACTERS:]
                raise VoxError(f"the conversation did not begin: {words or 'the program printed nothing'}")
            time.sleep(SETTLE_SECONDS)
            yield chat
        finally:
            chat.end()


@contextmanager
def chat_on_terminal(command: Sequence[str], environment: dict[str, str]) -> Iterator[int]:
    """Run a program that converses on a terminal during the context, entered when it listens; yield its process id.

    Raises:
        VoxError: the program does not begin to listen.
    """
    import pty  # Not on Windows.

    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | TERMINAL, start_new_session=True
        )
    finally:
        os.close(theirs)
    screen = _Screen(ours)
    screen.start()
    try:
        if not screen.listens.wait(READY_SECONDS) or process.poll() is not None:
            raise VoxError("the conversation on a terminal did not begin")
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        screen.join()
        os.close(ours)


class _Screen(threading.Thread):
    """Reads what a program writes to a terminal until the program ends."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="screen", daemon=True)
        self.listens = threading.Event()  # Set when the state "listening" was shown, or the program has ended.
        self._descriptor = descriptor

    def run(self) -> None:
        end = b""
        with suppress(OSError):  # EIO: the program has closed the terminal
            while data := os.read(self._descriptor, 4096):
                end = (end + data)[-4096:]
                if b"listening" in end:
                    self.listens.set()
        self.listens.set()


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its living descendants have used; Linux."""
    ticks = 0
    for each in (pid, *_descendants(pid)):
        with suppress(OSError):  # It has ended meanwhile.
            fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc_pid_stat(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="utf-8").split()):
            yield child
            yield from _descendants(child)
