"""Programs that converse with the fewest parts: `python -m benchmarks.conversation.fixed_reply MODE`.

    chat REPLY.npy [FOLDER]   a whole `voxcli chat`: what remains is the time that the pipeline itself takes
    pass-through              plays what the microphone hears: what remains is the time that the devices take
    pulses                    plays short noises and prints when each is audible, as far as the device knows

All print events as `voxcli chat --json` does. REPLY.npy has the samples of the reply at 44.1 kHz; FOLDER keeps the
utterances.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.conversation.sound_card import RATE
from voxcli.app.chat import ChatOptions, run_chat
from voxcli.audio.clip import AudioClip
from voxcli.chat.devices.hotplug import AudioDevices
from voxcli.chat.devices.portaudio import DeviceStream, find_device, frames_of
from voxcli.chat.devices.speaker import LATENCY_SECONDS
from voxcli.chat.events import Notice, Ready
from voxcli.chat.messages import ThreadCrashed
from voxcli.chat.views.lines import JsonLiveView
from voxcli.cli.interface.log import logging_to_file
from voxcli.config.loading import Settings
from voxcli.config.schema import LiveSettings
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session

FIXED_REPLY = "fixed-reply"
READ_SECONDS = 0.1
# -50 dBFS. Fainter blocks are not played, so that each sound finds an idle loudspeaker, as a reply does.
PLAYED_LEVEL = 0.003
SETTLE_SECONDS = 3.0  # A null sink takes up to two seconds until it runs evenly.
PULSE_SECONDS, NOISE_SECONDS, PULSE_LEVEL = 0.57, 0.03, 0.2


@dataclass
class FixedReplyEngine(Engine):
    """Implements `voxcli.core.protocols.Engine`: answers one word at once."""

    name: str = FIXED_REPLY
    model: str = ""

    def reply(
        self,
        session: Session,  # noqa: ARG002 - the protocol's
        utterance: Utterance,  # noqa: ARG002
        interrupt: threading.Event,  # noqa: ARG002
    ) -> Generator[str, None, PassReport]:
        yield "Yes."
        return PassReport(model_passes=1, prompt_tokens=1, cached_tokens=0, reply_tokens=1)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class RecordedVoice:
    """Implements `voxcli.core.protocols.Synthesizer`: says every sentence with the same recording."""

    recording: AudioClip

    def wait_until_ready(self) -> None:
        pass

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:  # noqa: ARG002 - the protocol's
        yield self.recording

    def close(self) -> None:
        pass


def chat(reply: Path, folder: Path | None) -> None:
    """Converse until Ctrl-C comes twice; keep the utterances in `folder`, if there is one."""
    voice = RecordedVoice(AudioClip(np.load(reply, allow_pickle=False), RATE))
    settings = Settings(live=LiveSettings(cues=False))  # the first sound has to be the reply
    run_chat(settings, ChatOptions(record=folder, as_json=True), engine=FixedReplyEngine(), synthesizer=voice)


def pass_through() -> None:
    """Play what the microphone hears, block by block, until Ctrl-C."""
    over = threading.Event()
    signal.signal(signal.SIGINT, lambda _number, _frame: over.set())
    view = JsonLiveView()

    def show(posted: Notice | ThreadCrashed) -> None:
        if isinstance(posted, ThreadCrashed):
            raise posted.error
        view.show(posted)

    with AudioDevices(show) as devices:
        loudspeaker = devices.speaker.device.name if devices.speaker else None
        view.show(Ready("pass-through", "", None, devices.microphone.device.name, loudspeaker, None, "off"))
        while not over.is_set():
            block = devices.microphone.read(READ_SECONDS)
            if block and devices.speaker and np.abs(block.samples).max(initial=0.0) > PLAYED_LEVEL:
                devices.speaker.play(AudioClip(block.samples), over)


def pulses() -> None:
    """Play a noise of some blocks every PULSE_SECONDS until Ctrl-C; print when each begins, in monotonic seconds."""
    over = threading.Event()
    signal.signal(signal.SIGINT, lambda _number, _frame: over.set())
    begun: list[float] = []
    started = next_at = time.monotonic() + SETTLE_SECONDS

    def fill(out: memoryview, moment: float, _lost: bool) -> None:
        nonlocal next_at
        if next_at <= moment:
            begun.append(moment)
            next_at += PULSE_SECONDS
        if moment > started and moment - next_at + PULSE_SECONDS < NOISE_SECONDS:
            samples = frames_of(out, channels=1)
            samples[:] = np.random.default_rng(1).uniform(-PULSE_LEVEL, PULSE_LEVEL, samples.shape)

    stream = DeviceStream(find_device("output"), fill, LATENCY_SECONDS)
    print(json.dumps({"event": "ready"}), flush=True)
    while not over.wait(READ_SECONDS):
        while begun:
            print(json.dumps({"event": "pulse", "audible_at": begun.pop(0)}), flush=True)
    stream.close()


def main(arguments: list[str]) -> None:
    """Run one of the programs; log to the file that VOXCLI_LOG names."""
    mode, *paths = arguments
    with logging_to_file():
        if mode == "pass-through":
            pass_through()
        elif mode == "pulses":
            pulses()
        else:
            chat(Path(paths[0]), Path(paths[1]) if len(paths) > 1 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
