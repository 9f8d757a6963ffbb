"""A virtual sound card: a private PulseAudio with a silent microphone and loudspeaker.

Both are channels of one null sink. One recording holds them on one clock, so the channels need no alignment. The
user's sound server is not touched.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from voxcli.audio.clip import AudioClip, Samples
from voxcli.errors import AudioDeviceError

# Hertz of both devices and of recordings. PortAudio opens Pulse's devices at this rate: nothing is resampled on the
# way, and a recording can be compared with what was played sample by sample.
RATE = 44_100
PROGRAMS = ("pulseaudio", "pactl", "pacat", "parec")
HINT = "sudo apt-get install pulseaudio pulseaudio-utils libasound2-plugins"
START_SECONDS = 10.0
RECORD_MS = 100  # lag of the recording; longer than the buffers of the devices, so that it does not pace them
MARGIN_SECONDS = 0.5  # after a spoken clip, for that lag
ALSA = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"
SINK = "module-null-sink sink_name=room format=float32le channels=2 channel_map=front-left,front-right"
ONE = "channels=1 channel_map=mono remix=no"
MODULES = (
    f"{SINK} rate={RATE}",
    f"module-remap-sink sink_name=voice master=room {ONE} master_channel_map=front-left",
    f"module-remap-sink sink_name=loudspeaker master=room {ONE} master_channel_map=front-right",
    f"module-remap-source source_name=microphone master=room.monitor {ONE} master_channel_map=front-left",
)


@dataclass(frozen=True)
class SpokenClip:
    """A clip that was spoken into the microphone, and the positions of the recording that enclose it."""

    clip: AudioClip
    start: int
    stop: int


class Recording(threading.Thread):
    """Everything that both devices carried: channel 0 is the microphone, channel 1 the loudspeaker."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(name="recording", daemon=True)
        self._stream = stream
        self._data = bytearray()
        self._lock = threading.Lock()
        self._began_at = math.inf  # monotonic seconds of position 0, by the block that came with the least delay

    @property
    def position(self) -> int:
        """Samples so far."""
        return len(self._data) // 8

    def read(self, start: int, stop: int, channel: int) -> Samples:
        """Return the recorded part of a stretch of one channel, shape (n,)."""
        with self._lock:
            data = bytes(self._data[max(0, start) * 8 : max(0, min(stop, self.position)) * 8])
        return np.frombuffer(data, "<f4").reshape(-1, 2)[:, channel]

    def time_of(self, position: int) -> float:
        """Return when the devices carried a sample, in monotonic seconds."""
        with self._lock:
            return self._began_at + position / RATE

    def run(self) -> None:
        with self._stream:
            while data := self._stream.read(RATE // 50 * 8):
                with self._lock:
                    self._data += data
                    self._began_at = min(self._began_at, time.monotonic() - self.position / RATE)


class SoundCard:
    """A running sound server; with `environment`, PortAudio and Pulse's programs use it."""

    def __init__(self, folder: Path) -> None:
        """Start the server, with its files in `folder`; raises AudioDeviceError."""
        self._folder = folder
        (folder / "asoundrc").write_text(ALSA)
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{folder}/socket",
            "PULSE_CONFIG_PATH": str(folder),
            "PULSE_COOKIE": f"{folder}/cookie",
            "ALSA_CONFIG_PATH": f"/usr/share/alsa/alsa.conf:{folder}/asoundrc",
        }
        self.start()

    def start(self) -> None:
        """Start the server and a new recording."""
        self.server = subprocess.Popen(
            [*_command(self._folder)],
            env={**self.environment, "HOME": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_for(lambda: self._pactl("info").returncode == 0)
        self.answers_since = time.monotonic()
        self.control("set-default-sink", "loudspeaker")
        self.control("set-default-source", "microphone")
        command = ["parec", "--device=room.monitor", "--raw", "--format=float32le", f"--rate={RATE}", "--channels=2"]
        self._recorder = subprocess.Popen(
            [*command, f"--latency-msec={RECORD_MS}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )
        self.recording = Recording(cast("IO[bytes]", self._recorder.stdout))
        self.recording.start()
        self._wait_for(lambda: self.recording.position > 0)

    def stop(self) -> None:
        """Kill the server, as a crash would; the recording stays readable."""
        for process in (self._recorder, self.server):
            process.kill()
            process.wait()
        self.recording.join()

    def speak(self, clip: AudioClip) -> SpokenClip:
        """Speak a clip into the microphone; return when it has been played."""
        margin = round(MARGIN_SECONDS * RATE)
        start = self.recording.position
        command = ["pacat", "--playback", "--raw", "--format=float32le", "--channels=1", f"--rate={RATE}"]
        subprocess.run(
            [*command, "--device=voice", "--latency-msec=300"],
            input=clip.resampled(RATE).samples.tobytes(),
            env=self.environment,
            check=True,
        )
        return SpokenClip(clip, start, self.recording.position + margin)

    def leak(self, level_db: float, delay_ms: int) -> None:
        """Play the loudspeaker into the microphone from now on, as an echo."""
        self.control(
            "load-module",
            "module-loopback",
            "source=loudspeaker.monitor",
            "sink=voice",
            f"latency_msec={delay_ms}",
            "source_dont_move=true",
            "sink_dont_move=true",
        )
        inputs = self.control("list", "short", "sink-inputs").splitlines()
        loopback = next(line.split("\t")[0] for line in inputs if "module-loopback" in line)
        self.control("set-sink-input-volume", loopback, f"{level_db:g}dB")

    def control(self, *command: str) -> str:
        """Run a `pactl` command and return its output; raises AudioDeviceError."""
        done = self._pactl(*command)
        if done.returncode:
            raise AudioDeviceError(f"pactl {command[0]} fails: {done.stderr.strip()}", hint=HINT)
        return done.stdout

    def _pactl(self, *command: str) -> "subprocess.CompletedProcess[str]":
        words = ["pactl", *command]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)

    def _wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            if self.server.poll() is not None or time.monotonic() > deadline:
                self.server.kill()
                raise AudioDeviceError("the virtual sound card does not start", hint=HINT)
            time.sleep(0.02)


def _command(folder: Path) -> Iterator[str]:
    yield from ("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--log-level=error", "--use-pid-file=no")
    for module in (f"module-native-protocol-unix socket={folder}/socket auth-anonymous=1", *MODULES):
        yield from ("-L", module)


@contextmanager
def sound_card() -> Iterator[SoundCard]:
    """Run a sound card during the context.

    Raises:
        AudioDeviceError: this is not Linux, or PulseAudio is not installed or does not start.
    """
    if sys.platform != "linux":
        raise AudioDeviceError("the virtual sound card needs Linux", hint="voxcli devices --loopback")
    if missing := next((program for program in PROGRAMS if shutil.which(program) is None), None):
        raise AudioDeviceError(f"the program {missing} is missing", hint=HINT)
    with tempfile.TemporaryDirectory(prefix="voxcli-live-", ignore_cleanup_errors=True) as folder:
        card = SoundCard(Path(folder))
        try:
            yield card
        finally:
            card.stop()
