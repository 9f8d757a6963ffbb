"""A virtual sound card for tests: PulseAudio with a null sink that can be recorded."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from voxcli.audio.clip import Samples

RATE = 48_000  # Hertz; the rate of the loudspeaker and of recordings.
LOUDSPEAKER = ("module-null-sink", "sink_name=speaker", f"rate={RATE}", "norewinds=1")
PROGRAMS = ("pulseaudio", "pactl", "parec")
READ_BYTES = RATE // 50 * 4


def missing_program() -> str | None:
    """Return the name of a required program that is not installed, or None."""
    return next((program for program in PROGRAMS if shutil.which(program) is None), None)


@dataclass(frozen=True)
class SoundCard:
    """A running PulseAudio server; `environment` makes PortAudio and PulseAudio's programs use it."""

    server: "subprocess.Popen[bytes]"
    environment: dict[str, str]

    @contextmanager
    def recording(self) -> Iterator["Recording"]:
        """Record the loudspeaker; the recording is running when the context is entered."""
        command = ["parec", "--device=speaker.monitor", "--raw", "--format=float32le", f"--rate={RATE}"]
        command += ["--channels=1", "--latency-msec=20"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment) as process:
            recording = Recording(cast("IO[bytes]", process.stdout))
            try:
                recording.wait_for(0.1)
                yield recording
            finally:
                process.kill()
                recording.join()


class Recording(threading.Thread):
    """A running recording of the loudspeaker."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(name="recording", daemon=True)
        self._stream = stream
        self._data = bytearray()
        self._grown = threading.Condition()
        self.start()

    @property
    def samples(self) -> Samples:
        """The samples recorded so far; float32, shape (n,), at RATE."""
        with self._grown:
            return np.frombuffer(bytes(self._data[: len(self._data) // 4 * 4]), "<f4")

    def wait_for(self, seconds: float) -> None:
        """Wait until the recording is `seconds` longer."""
        with self._grown:
            wanted = len(self._data) + round(seconds * RATE) * 4
            if not self._grown.wait_for(lambda: len(self._data) >= wanted, timeout=30):
                raise TimeoutError("the sound card gives no sound")

    def run(self) -> None:
        while data := self._stream.read(READ_BYTES):
            with self._grown:
                self._data += data
                self._grown.notify_all()


@contextmanager
def sound_card() -> Iterator[SoundCard]:
    """Run a server separate from the user's."""
    with tempfile.TemporaryDirectory(prefix="voxcli-sound-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        # A stream ends with its device; the server would move it to another one. Streams on the default device move
        # none the less, to the next default one.
        (folder / "daemon.conf").write_text("rescue-streams = no\n")
        environment = {
            **os.environ,
            "PULSE_CONFIG": str(folder / "daemon.conf"),
            "HOME": name,  # Hides the settings of the user's server.
            "XDG_RUNTIME_DIR": name,
            "PULSE_SERVER": f"unix:{folder}/socket",
            "ALSA_CONFIG_PATH": f"/usr/share/alsa/alsa.conf:{folder}/asoundrc",
        }
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--log-level=error",
            "--use-pid-file=no",
        ]
        command += ["-L", f"module-native-protocol-unix socket={folder}/socket auth-anonymous=1"]
        command += ["-L", " ".join(LOUDSPEAKER)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
            try:
                _wait_until_ready(server, environment)
                yield SoundCard(server, environment)
            finally:
                server.kill()


def _wait_until_ready(server: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    ready = threading.Event()
    for _ in range(100):
        info = subprocess.run(["pactl", "info"], env=environment, capture_output=True, check=False)
        if info.returncode == 0:
            return
        if server.poll() is not None:
            raise RuntimeError("pulseaudio ended at once")
        ready.wait(0.05)
    raise TimeoutError("pulseaudio does not answer")
