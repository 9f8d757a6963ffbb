"""A virtual microphone for tests, on the server of `virtual_audio`."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.virtual_audio import LOUDSPEAKER, RATE, SoundCard, sound_card
from voxcli.audio.clip import AudioClip
from voxcli.chat.devices.portaudio import refresh_devices

SOURCE = ("module-null-sink", "sink_name=room", f"rate={RATE}")
MICROPHONE = ("module-remap-source", "source_name=microphone", "master=room.monitor")


def plug_in(card: SoundCard, default_sink: str = "speaker") -> None:
    """Add the microphone to the server; it becomes the default one."""
    for module in (SOURCE, MICROPHONE):
        subprocess.run(["pactl", "load-module", *module], env=card.environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["pactl", "set-default-source", "microphone"], env=card.environment, check=True)
    subprocess.run(["pactl", "set-default-sink", default_sink], env=card.environment, check=True)


def unplug_loudspeaker(card: SoundCard) -> None:
    """Remove the loudspeaker from the server; the microphone stays."""
    listed = subprocess.run(
        ["pactl", "list", "short", "modules"], env=card.environment, check=True, capture_output=True, text=True
    )
    (line,) = [line for line in listed.stdout.splitlines() if "sink_name=speaker" in line]
    subprocess.run(["pactl", "unload-module", line.split()[0]], env=card.environment, check=True)


def plug_in_loudspeaker(card: SoundCard) -> None:
    """Add the loudspeaker to the server again."""
    command = ["pactl", "load-module", *LOUDSPEAKER]
    subprocess.run(command, env=card.environment, check=True, stdout=subprocess.DEVNULL)


def say(card: SoundCard, clip: AudioClip) -> None:
    """Play a clip into the microphone; returns when it has been played."""
    command = ["pacat", "--playback", "--raw", "--format=float32le", "--channels=1", f"--rate={clip.sample_rate}"]
    subprocess.run(
        [*command, "--device=room", "--latency-msec=500"],
        input=clip.samples.tobytes(),
        env=card.environment,
        check=True,
    )


@contextmanager
def restarted(card: SoundCard) -> Iterator[None]:
    """Kill the server, and run a new one within the context."""
    card.server.kill()
    card.server.wait()
    with subprocess.Popen(card.server.args, env=card.environment, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _answers(card))
            plug_in(card)
            yield
        finally:
            server.kill()


def _answers(card: SoundCard) -> bool:
    return subprocess.run(["pactl", "info"], env=card.environment, capture_output=True, check=False).returncode == 0


def wait_until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds; raises TimeoutError after 30 s."""
    pause = threading.Event()
    for _ in range(600):
        if holds():
            return
        pause.wait(0.05)
    raise TimeoutError("it did not become true")


@contextmanager
def studio(default_sink: str = "speaker") -> Iterator[SoundCard]:
    """Give this process's PortAudio a sound card with a loudspeaker and a microphone.

    With "room" as the default sink, only the streams of programs that name the loudspeaker play on it.
    """
    with sound_card() as card, pytest.MonkeyPatch.context() as patch:
        plug_in(card, default_sink)
        for name, value in card.environment.items():
            if os.environ.get(name) != value:
                patch.setenv(name, value)
        refresh_devices()
        yield card
    refresh_devices()
