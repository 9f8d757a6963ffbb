"""Runs a program for a tool: text in, text out, without a shell, within limits of time and size."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from voxcli.errors import VoxError
from voxcli.printable import first_line, printable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.01  # between two looks at a running program; its interrupt is noticed at once
END_SECONDS = 0.5  # Time for a program to end after SIGTERM, and for its last output.
CHUNK_BYTES = 65_536
OUTPUT_BYTES = 4 << 20  # a program that writes more is stopped
ERROR_BYTES = 65_536  # Most that is kept of its standard error.
LOGGED_LINES = 20
# What every program gets of the environment. Windows' own programs don't run without the second line.
PASSED = ("PATH", "HOME", "LANG")
PASSED_ON_WINDOWS = ("SYSTEMROOT", "USERPROFILE", "TEMP", "PATHEXT", "COMSPEC")
# Waits until its standard input ends, as it does when voxcli is killed, and stops the group that it is given.
GUARD = 'read -r _; kill -s TERM -- "-$1"; sleep 1; kill -s KILL -- "-$1"'


@dataclass(frozen=True)
class ProgramOutput:
    """What a program wrote, and how it ended."""

    output: str
    errors: str
    exit_code: int


def clean_environment(further: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program.

    Args:
        further: names of variables to pass on, or "NAME=VALUE".
    """
    passed = (*PASSED, *PASSED_ON_WINDOWS) if os.name == "nt" else PASSED
    names = [*passed, *(each for each in further if "=" not in each)]
    given = dict(each.split("=", 1) for each in further if "=" in each)
    return {name: environ[name] for name in names if name in environ} | given


def found_program(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return a command with the path of its program.

    Raises:
        VoxError: there is no such program, or it can't be run.
    """
    program = command[0]
    if program.startswith("~"):
        with suppress(RuntimeError):  # there is no such user
            program = str(Path(program).expanduser())
    if found := shutil.which(program, path=environ.get("PATH")):
        return [str(Path(found).absolute()), *command[1:]]
    shown = printable(program)
    if Path(program).is_file():
        raise VoxError(f"the program {shown} can't be run", hint=f"make it executable: chmod +x {shown}")
    raise VoxError(f"there is no program {shown}", hint="give its path, or check PATH")


def run_program(
    command: Sequence[str],
    text: str,
    environ: Mapping[str, str],
    *,
    timeout_seconds: float,
    interrupt: threading.Event,
    what: str,
) -> ProgramOutput:
    """Run a program in the user's home with `text` on its standard input, and return what it wrote.

    What it started and left behind is not waited for, and goes on.

    Args:
        what: names it in the log.

    Raises:
        VoxError: it can't be started, wrote too much, or `interrupt` was set.
        TimeoutError: it ran longer than `timeout_seconds`. Then, as above, it was stopped with all that it started.
    """
    program = found_program(command, environ)
    try:
        process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(environ),
            cwd=_home(),
            start_new_session=True,  # POSIX; the flags are for Windows.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, ValueError) as error:  # ValueError: a surrogate in an argument
        raise VoxError(f"{printable(program[0])} can't be run: {_reason(error)}") from error
    log.debug("%s: process %d", what, process.pid)
    output = OutputReader(cast("IO[bytes]", process.stdout), OUTPUT_BYTES, stops_at_limit=True)
    errors = OutputReader(cast("IO[bytes]", process.stderr), ERROR_BYTES)
    threading.Thread(target=_write, args=(process.stdin, text), name="tool input", daemon=True).start()
    try:
        with _guarded(process.pid):
            _wait_or_stop(process, output, time.monotonic() + timeout_seconds, interrupt)
    finally:
        end = time.monotonic() + END_SECONDS
        finished = ProgramOutput(output.text(end), errors.text(end), process.poll() or 0)
        for line in finished.errors.splitlines()[:LOGGED_LINES]:
            log.info("%s: stderr: %s", what, first_line(line))
    return finished


def _wait_or_stop(
    process: "subprocess.Popen[bytes]", output: "OutputReader", deadline: float, interrupt: threading.Event
) -> None:
    """Wait until a process has ended, or stop it; see `_wait`."""
    try:
        _wait(process, output, deadline, interrupt)
    except BaseException:
        stop(process)
        raise


def _wait(
    process: "subprocess.Popen[bytes]", output: "OutputReader", deadline: float, interrupt: threading.Event
) -> None:
    """Wait until a process has ended; raise VoxError or TimeoutError if it has to be stopped."""
    while process.poll() is None:
        if interrupt.wait(POLL_SECONDS):
            raise VoxError("stopped, because the user interrupted")
        if output.is_over.is_set():
            break
        if time.monotonic() > deadline:
            raise TimeoutError
    if output.is_over.is_set():  # The process may have ended by itself, because nobody reads what it writes any more.
        raise VoxError(f"it wrote more than {OUTPUT_BYTES >> 20} MB, and was stopped")


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Have a group of processes stopped if voxcli is killed meanwhile: a closed terminal doesn't reach it."""
    guard = None
    if os.name == "posix":
        try:
            guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "sh", str(group)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            log.info("no guard for process %d: %s", group, _reason(error))
    try:
        yield
    finally:
        if guard and guard.stdin:
            guard.kill()  # Its input stays open until it has ended, so that it stops nothing.
            guard.wait()
            guard.stdin.close()


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and all that it started: politely, then not."""
    if sys.platform == "win32":
        _stop_on_windows(process.pid)
    else:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
    process.kill()  # It may have left its group.
    with suppress(subprocess.TimeoutExpired):  # It hangs in the kernel.
        process.wait(END_SECONDS)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # They have all ended, or run as another user.
        os.killpg(group, number)


def _stop_on_windows(pid: int) -> None:
    """Stop a process and its children: Windows has no groups that are stopped as one."""
    taskkill = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "taskkill.exe"
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([str(taskkill), "/T", "/F", "/PID", str(pid)], capture_output=True, timeout=5, check=False)


def _write(stream: IO[bytes], text: str) -> None:
    """Write to a program that may not want it, and close its input."""
    with suppress(OSError), stream:
        stream.write(text.encode())


def _home() -> Path | None:
    """Return the user's home; None if there is none."""
    with suppress(RuntimeError):
        home = Path.home()
        return home if home.is_dir() else None
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


class OutputReader:
    """Reads a pipe on a thread of its own, and keeps its beginning."""

    def __init__(self, stream: IO[bytes], limit_bytes: int, *, stops_at_limit: bool = False) -> None:
        """Start to read.

        Args:
            stops_at_limit: whether more than `limit_bytes` ends the reading; otherwise the rest is dropped.
        """
        self.is_over = threading.Event()  # more than the limit has come
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._stops_at_limit = stops_at_limit
        self._kept = bytearray()
        self._is_left = False
        self._thread = threading.Thread(target=self._read, name="tool output", daemon=True)
        self._thread.start()

    def text(self, until: float) -> str:
        """Return what has come. What comes after `until`, on the monotonic clock, is not waited for.

        A process that was left behind may hold the pipe open; the pipe is closed at the next that it writes.
        """
        self._thread.join(max(0.0, until - time.monotonic()))
        self._is_left = True
        return bytes(self._kept[: self._limit_bytes]).decode("utf-8", "replace")

    def _read(self) -> None:
        with suppress(OSError), self._stream:
            while (chunk := self._stream.read(CHUNK_BYTES)) and not self._is_left:
                self._kept += chunk[: max(0, self._limit_bytes + 1 - len(self._kept))]
                if len(self._kept) > self._limit_bytes:
                    self.is_over.set()
                    if self._stops_at_limit:
                        break
