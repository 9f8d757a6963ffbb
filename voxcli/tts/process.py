"""A child process that answers one line of JSON with another, and can be given up at any moment.

It knows the protocol's form, not what is asked; what to do when a process fails is its owner's to say.
"""

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

GRACE_SECONDS = 1.0  # between the end of a process's output and its own


class WorkerFailed(Exception):  # noqa: N818 - in the manner of subprocess.TimeoutExpired
    """The process died, hung or answered with an error; the text says which."""


class WorkerProcess:
    """Runs `command` with a private folder (0700) as its last argument.

    The process is not in the terminal's group, so Ctrl-C does not reach it; it must end when its
    standard input does.
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
                start_new_session=True,  # of POSIX; the flag is of Windows
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError:
            self._remove_files()
            raise
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        self._answers: SimpleQueue[bytes] = SimpleQueue()  # lines; an empty one when there will be no more
        self._reader = threading.Thread(target=self._read, name="speech answers", daemon=True)
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
            answer: dict[str, Any] = json.loads(line) if line else {"error": self._how_it_ended()}
        except Empty as error:
            raise WorkerFailed(f"gave no answer within {timeout_seconds:.1f} s") from error
        except OSError as error:  # a broken pipe
            raise WorkerFailed(self._how_it_ended()) from error
        except ValueError as error:
            raise WorkerFailed(f"gave an answer that is no JSON: {line[:80]!r}") from error
        if "error" in answer:
            raise WorkerFailed(str(answer["error"]))
        return answer

    def kill(self) -> None:
        """End the process at once; whoever waits for an answer gets WorkerFailed."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and remove what it left."""
        self.kill()
        self._process.wait()
        self._reader.join()
        self._output.close()
        with suppress(BrokenPipeError):  # a request that was never read
            self._requests.close()
        self._remove_files()

    def _read(self) -> None:
        for line in self._output:
            self._answers.put(line)
        self._answers.put(b"")

    def _how_it_ended(self) -> str:
        """Return the last line that the process wrote to standard error, or its exit status."""
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its output but lives on
            status = 0
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"ended with status {status}")

    def _remove_files(self) -> None:
        self._stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # the process may have done so itself
