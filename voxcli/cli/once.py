"""`voxcli once`: one turn from a file or from standard input."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.common import (
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    JsonFlag,
    ModelFlag,
    VerboseFlag,
    VoiceFlag,
    engine_options,
    given,
    note,
)
from voxcli.errors import AudioDeviceError, VoxError

if TYPE_CHECKING:
    from voxcli.audio import AudioClip
    from voxcli.config import Settings
    from voxcli.memory import Memory
    from voxcli.turn import Engine, Speaker, SpeechOutput, Utterance
    from voxcli.ui import View

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells count


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, beside the settings."""

    source: str
    session: str | None
    prompt: str
    speak: bool | None  # None: where somebody may be listening
    save_reply: Path | None
    raw_rate: int | None
    new_instructions: bool  # given as a flag, so they hold for a stored session too
    json: bool


def once(
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="A recording; - is standard input.")],
    session: Annotated[
        str | None, typer.Option("--session", metavar="NAME", help="Conversation to go on with, or to begin.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="Text to give beside the audio.")] = "",
    speak: Annotated[
        bool | None,
        typer.Option(
            "--speak/--no-speak",
            help="Speak the reply through the default output device.",
            show_default="if stdout is a terminal and there is a device",
        ),
    ] = None,
    save_reply: Annotated[
        Path | None, typer.Option("--save-reply", metavar="FILE.wav", help="Write the spoken reply to a file.")
    ] = None,
    raw_rate: Annotated[
        int | None, typer.Option("--raw-rate", metavar="HZ", help="Standard input is raw 16-bit mono PCM of this rate.")
    ] = None,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Answer a recorded question: print the reply, speak it, remember the turn."""
    from voxcli.config import load

    flags = given(engine=engine, model=model, device=device, instructions=instructions, voice=voice)
    settings = load(config, flags)
    asked = _Asked(source, session, prompt, speak, save_reply, raw_rate, instructions is not None, json)
    with ExitStack() as stack:
        interrupted = _run(asked, settings, stack)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(asked: _Asked, settings: "Settings", stack: ExitStack) -> bool:
    """Open the parts, those that are cheap and may be refused first; run the turn; return if it was interrupted."""
    from voxcli.audio import read_audio
    from voxcli.turn import Utterance

    memory = _open_memory(asked, settings, stack)
    speech = _open_speech(asked, settings, stack)
    clip = read_audio(asked.source, max_seconds=settings.audio.max_seconds, raw_rate=asked.raw_rate)
    listening = threading.Thread(target=_note_if_without_speech, args=(clip,), name="vad", daemon=True)
    listening.start()  # while the engine loads
    started = time.perf_counter()
    engine = _open_engine(settings, stack)
    load_seconds = time.perf_counter() - started
    listening.join()
    return _turn(asked, memory, engine, Utterance(clip, asked.prompt), speech, load_seconds)


def _note_if_without_speech(clip: "AudioClip") -> None:
    from voxcli.vad import has_speech

    if not has_speech(clip):
        note("no speech was found in the recording; it is asked about as the sound it is")


def _open_memory(asked: _Asked, settings: "Settings", stack: ExitStack) -> "Memory":
    from voxcli.memory import Memory
    from voxcli.paths import data_folder
    from voxcli.session import Session, session_name
    from voxcli.store import Store

    if asked.session is None:
        return Memory(Session(instructions=settings.instructions))
    name = session_name(asked.session)
    store = stack.enter_context(Store.open(data_folder()))
    return Memory.resumed(store, name, settings.instructions, override=asked.new_instructions)


def _open_speech(asked: _Asked, settings: "Settings", stack: ExitStack) -> "SpeechOutput | None":
    """Open the voice and what it is heard through; None for a reply that is only read."""
    speaker = _open_loudspeaker(asked, stack)
    if asked.save_reply:
        from voxcli.speech.wav import WavSpeaker

        speaker = stack.enter_context(WavSpeaker(asked.save_reply, then=speaker))
    if speaker is None:
        return None
    from voxcli.speech.voices import open_synthesizer
    from voxcli.turn import SpeechOutput

    synthesizer = open_synthesizer(
        settings.voice,
        words_per_minute=settings.speech.words_per_minute,
        timeout_seconds=settings.speech.timeout_seconds,
    )
    stack.callback(synthesizer.close)
    return SpeechOutput(synthesizer, speaker)


def _open_loudspeaker(asked: _Asked, stack: ExitStack) -> "Speaker | None":
    by_default = asked.speak is None
    if asked.speak is False or (by_default and (asked.json or not sys.stdout.isatty())):
        return None
    from voxcli.live.devices import open_speaker

    try:
        return stack.enter_context(open_speaker())
    except AudioDeviceError:
        if by_default:
            return None
        raise


def _open_engine(settings: "Settings", stack: ExitStack) -> "Engine":
    from voxcli.engines.choice import open_engine
    from voxcli.paths import cache_folder
    from voxcli.ui import download_progress

    with download_progress() as progress:
        engine = open_engine(engine_options(settings), cache_folder(), note, progress)
    return stack.enter_context(closing(engine))


def _turn(
    asked: _Asked,
    memory: "Memory",
    engine: "Engine",
    utterance: "Utterance",
    speech: "SpeechOutput | None",
    load_seconds: float,
) -> bool:
    from voxcli.record import Context, record_of
    from voxcli.turn import SpeechFailed, TurnEnded
    from voxcli.ui import JsonView, TextView

    view: View = JsonView() if asked.json else TextView()
    failure: VoxError | None = None
    with _interrupted_by_signal() as interrupt:
        for event in memory.take_turn(engine, utterance, interrupt, speech):
            view.show(event)
            if isinstance(event, SpeechFailed):
                failure = event.error
            elif isinstance(event, TurnEnded):
                context = Context(engine, utterance, asked.source, asked.session, memory.turn_number, load_seconds)
                view.finish(record_of(event, context))
    if failure and (asked.speak or asked.save_reply):
        raise failure
    return interrupt.is_set()


@contextmanager
def _interrupted_by_signal() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets; the second ends the program."""
    interrupt = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
