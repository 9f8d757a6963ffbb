"""`voxcli once`: one turn from a file or from standard input."""

import os
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
    INTERRUPTED,
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    JsonFlag,
    ModelFlag,
    QuantizeFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    given,
    note,
    set_by_ctrl_c,
)
from voxcli.cli.parts import load_settings, open_engine, open_memory, open_voice
from voxcli.errors import AudioDeviceError, SpeechError, VoxError

if TYPE_CHECKING:
    from voxcli.audio import AudioClip
    from voxcli.config import Settings
    from voxcli.memory import Memory
    from voxcli.turn import Engine, Speaker, SpeechOutput, Utterance
    from voxcli.ui import View


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

    @property
    def speech_is_wanted(self) -> bool:
        """Whether speech was asked for, so that it is a failure if there is none."""
        return bool(self.speak or self.save_reply)


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
    url: UrlFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Answer a recorded question: print the reply, speak it, remember the turn."""
    flags = given(
        engine=engine,
        url=url,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        voice=voice,
    )
    settings = load_settings(config, flags)
    asked = _Asked(source, session, _text(prompt), speak, save_reply, raw_rate, instructions is not None, json)
    try:
        with ExitStack() as stack:
            interrupted = _run(asked, settings, stack)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # an engine may still be loading: an interpreter that ends would wait for its threads
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _text(given: str) -> str:
    """Return text from the command line without what was not UTF-8 in it, which no model and no store can take."""
    return given.encode(errors="replace").decode().strip()


def _run(asked: _Asked, settings: "Settings", stack: ExitStack) -> bool:
    """Open the parts, those that are cheap and may be refused first; run the turn; return if it was interrupted."""
    from voxcli.audio import read_audio
    from voxcli.turn import Utterance
    from voxcli.ui import loading_progress

    memory = open_memory(asked.session, settings, stack, new_instructions=asked.new_instructions)
    speech = _open_speech(asked, settings, stack)
    clip = read_audio(asked.source, max_seconds=settings.audio.max_seconds, raw_rate=asked.raw_rate)
    listening = threading.Thread(target=_note_if_without_speech, args=(clip,), name="vad", daemon=True)
    listening.start()  # while the engine loads
    started = time.perf_counter()
    with loading_progress() as (fetching, warming):
        engine = open_engine(settings, stack, note, fetching, warming)
    load_seconds = time.perf_counter() - started
    listening.join()
    return _turn(asked, memory, engine, Utterance(clip, asked.prompt), speech, load_seconds)


def _note_if_without_speech(clip: "AudioClip") -> None:
    from voxcli.vad import has_speech

    if not has_speech(clip):
        note("no speech was found in the recording; it is asked about as the sound it is")


def _open_speech(asked: _Asked, settings: "Settings", stack: ExitStack) -> "SpeechOutput | None":
    """Open the voice and what it is heard through; None for a reply that is only read."""
    speaker = _open_loudspeaker(asked, stack)
    if asked.save_reply:
        from voxcli.speech.wav import WavSpeaker

        speaker = stack.enter_context(WavSpeaker(asked.save_reply, then=_losable(speaker, asked, stack)))
    if speaker is None:
        return None
    from voxcli.turn import SpeechOutput

    try:
        return SpeechOutput(open_voice(settings, stack), speaker)
    except SpeechError as error:
        if asked.speech_is_wanted:
            raise
        note(f"no speech: {error}")
        return None


def _open_loudspeaker(asked: _Asked, stack: ExitStack) -> "Speaker | None":
    by_default = asked.speak is None
    somebody_listens = not asked.json and sys.stdout is not None and sys.stdout.isatty()
    if asked.speak is False or (by_default and not somebody_listens):
        return None
    from voxcli.live.speaker import open_speaker

    try:
        return stack.enter_context(open_speaker())
    except AudioDeviceError:
        if by_default:
            return None
        raise


def _losable(speaker: "Speaker | None", asked: _Asked, stack: ExitStack) -> "Speaker | None":
    """Return a loudspeaker whose failure is told when the file that the reply goes to is whole."""
    if speaker is None:
        return None
    from voxcli.live.losable import LosableSpeaker

    losable = LosableSpeaker(speaker)

    def tell() -> None:
        if losable.failure and asked.speak:
            raise losable.failure
        if losable.failure:
            note(f"no speech: {losable.failure}")

    stack.callback(tell)
    return losable


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
    interrupt = threading.Event()
    with (
        set_by_ctrl_c(interrupt),
        closing(memory.take_turn(engine, utterance, interrupt, speech)) as events,
        _abandoned_on_error(view),
    ):
        for event in events:
            if isinstance(event, SpeechFailed) and asked.speech_is_wanted:
                failure = event.error  # raised when the turn is over
                continue
            view.show(event)
            if isinstance(event, TurnEnded):
                name, number = memory.session.name, memory.turn_number
                view.finish(
                    record_of(event, Context(engine, utterance, _text(asked.source), name, number, load_seconds))
                )
    if failure:
        raise failure
    return interrupt.is_set()


@contextmanager
def _abandoned_on_error(view: "View") -> Iterator[None]:
    try:
        yield
    except BaseException:
        view.abandon()
        raise
