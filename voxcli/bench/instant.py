"""Programs that the benchmark runs beside `voxcli chat`: `python -m voxcli.bench.instant MODE`.

`chat REPLY.wav [FOLDER]` is the whole live conversation, with an engine that replies at once and a voice that has
one recording: what is left is what the pipeline itself takes. `copy` plays what the microphone hears: what is left
is what the devices take. Both tell their events as `voxcli chat --json` does. They know nothing of what is measured.
"""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import soundfile

from voxcli.audio import AudioClip
from voxcli.live.attempt import Answering
from voxcli.live.conversation import Conversation, ConversationOptions
from voxcli.live.echo import Timeline, open_canceller
from voxcli.live.endpoint import EndPointer, EndpointSettings
from voxcli.live.events import LiveEvent, Notice, Ready, TurnTaken
from voxcli.live.inbound import Crashed, Inbound, Interrupt
from voxcli.live.listener import PLAYED_SECONDS, Listener
from voxcli.live.recording import Recording
from voxcli.live.recovery import AudioDevices
from voxcli.live_view.lines import JsonLiveView
from voxcli.memory import Memory
from voxcli.session import Session
from voxcli.turn import Engine, PassReport, SpeechOutput, Utterance
from voxcli.vad import Detector

READ_SECONDS = 0.1
COPIED = 0.003  # -50 dBFS: fainter blocks are not played, so that each sound finds an idle loudspeaker, as a reply does


@dataclass
class InstantEngine(Engine):
    """Implements `voxcli.turn.Engine`: says one word at once."""

    name: str = "instant"
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
class InstantVoice:
    """Implements `voxcli.turn.Synthesizer`: whatever is to be said, it is the same recording."""

    recording: AudioClip

    def wait_until_ready(self) -> None:
        pass

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:  # noqa: ARG002 - the protocol's
        yield self.recording

    def close(self) -> None:
        pass


def chat(reply: Path, folder: Path | None) -> None:
    """Talk until Ctrl-C comes twice; keep the utterances in `folder`, if there is one."""
    inbox: SimpleQueue[Inbound] = SimpleQueue()
    view = JsonLiveView()
    show = _shown_and_kept(view, Recording(folder) if folder else None)
    samples, rate = soundfile.read(reply, dtype="float32")
    engine, voice = InstantEngine(), InstantVoice(AudioClip(samples, rate))
    with AudioDevices(inbox.put) as devices:
        if devices.speaker is None:
            raise RuntimeError("a conversation is measured with a loudspeaker")
        listener, echo = _listener(devices, inbox)
        answering = Answering(engine, SpeechOutput(voice, devices.speaker), listener.commit, inbox.put)
        conversation = Conversation(
            Memory(Session()), answering, listener, inbox, show, ConversationOptions(), read_line=str
        )
        signal.signal(signal.SIGINT, lambda _number, _frame: inbox.put(Interrupt()))
        view.show(_ready(engine.name, devices, echo))
        listener.start()
        answering.start()
        conversation.run()
        listener.close()
        answering.finish()


def _listener(devices: AudioDevices, inbox: SimpleQueue[Inbound]) -> tuple[Listener, str]:
    """Return the listener as `chat` has it by default, and how it keeps from hearing itself."""
    settings = EndpointSettings()
    played = Timeline(PLAYED_SECONDS + settings.max_utterance_seconds)
    canceller, _notice = open_canceller("auto", played)
    listener = Listener(
        devices.microphone,
        devices.speaker,
        Detector().probability,
        EndPointer(settings),
        canceller,
        played,
        inbox.put,
    )
    return listener, "cancelled" if canceller else "half-duplex"


def _shown_and_kept(view: JsonLiveView, recording: Recording | None) -> Callable[[LiveEvent], None]:
    def show(event: LiveEvent) -> None:
        view.show(event)
        if recording and isinstance(event, TurnTaken):
            recording.keep(event)

    return show


def _ready(engine: str, devices: AudioDevices, echo: str) -> Ready:
    heard = devices.microphone.device.name
    return Ready(engine, "", None, heard, devices.speaker.device.name if devices.speaker else None, None, echo)


def copy() -> None:
    """Play what the microphone hears, block by block, until Ctrl-C."""
    over = threading.Event()
    signal.signal(signal.SIGINT, lambda _number, _frame: over.set())
    view = JsonLiveView()

    def show(posted: Notice | Crashed) -> None:
        if isinstance(posted, Crashed):
            raise posted.error
        view.show(posted)

    with AudioDevices(show) as devices:
        view.show(_ready("copy", devices, "off"))
        while not over.is_set():
            block = devices.microphone.read(READ_SECONDS)
            if block and devices.speaker and np.abs(block.samples).max(initial=0.0) > COPIED:
                devices.speaker.play(AudioClip(block.samples), over)


def main(arguments: list[str]) -> None:
    """Run one of the programs."""
    mode, *paths = arguments
    if mode == "copy":
        copy()
    else:
        chat(Path(paths[0]), Path(paths[1]) if len(paths) > 1 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
