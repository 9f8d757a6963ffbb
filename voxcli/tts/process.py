"""Runs a child process that answers each line of JSON with another, and that can be killed at any time."""

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, cast

GRACE_SECONDS = 1.0  # The wait for a process to end after its output has ended.


class WorkerFailed(Exception):  # noqa: N818 - named like subprocess.TimeoutExpired
    """The process died, hung or answered with an error; the message tells which."""


class WorkerProcess:
    """Runs `command` with a private folder (mode 0700) as its last argument.

    The process is outside the terminal's process group, so Ctrl-C does not reach it. It must exit when its standard
    input ends.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process; raises OSError if it can't be started."""
        self.folder = Path(tempfile.mkdtemp(prefix="voxcli-speech-"))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close(); a pipe would have to be drained
        try:
            self._process = subprocess.Popen(
                [*command, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # POSIX; the flag is for Windows.
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError:
            self._remove_files()
            raise
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        self._answers: SimpleQueue[bytes] = SimpleQueue()  # Lines; an empty one marks the end.
        self._reader = threading.Thread(target=self._read_answers, name="speech answers", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, timeout_seconds: float, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer; raises WorkerFailed."""
        try:
            self._requests.write(json.dumps(request).encode("ascii") + b"\n")
            self._requests.flush()
            line = self._answers.get(timeout=timeout_seconds)
            answer: dict[str, Any] = json.loads(line) if line else {"error": self._exit_message()}
        except Empty as error:
            raise WorkerFailed(f"gave no answer within {timeout_seconds:.1f} s") from error
        except OSError as error:  # The pipe is broken.
            raise WorkerFailed(self._exit_message()) from error
        except ValueError as error:
            raise WorkerFailed(f"gave an answer that is no JSON: {line[:80]!r}") from error
        if "error" in answer:
            raise WorkerFailed(str(answer["error"]))
        return answer

    def kill(self) -> None:
        """Kill the process; a pending `ask` raises WorkerFailed."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and remove its files."""
        self.kill()
        self._process.wait()
        self._reader.join()
        self._output.close()
        with suppress(BrokenPipeError):  # The process never read a request.
            self._requests.close()
        self._remove_files()

    def _read_answers(self) -> None:
        for line in self._output:
            self._answers.put(line)
        self._answers.put(b"")

    def _exit_message(self) -> str:
        """Return the last line that the process wrote to standard error, or its exit status."""
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # It closed its output but did not exit.
            status = 0
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"ended with status {status}")

    def _remove_files(self) -> None:
        self._stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # The process may have removed it.
