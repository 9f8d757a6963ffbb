"""`voxcli chat`: the live conversation."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from queue import SimpleQueue
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
)
from voxcli.cli.parts import load_settings, open_engine, open_memory, open_voice
from voxcli.errors import ConfigError, VoxError

if TYPE_CHECKING:
    from voxcli.audio import AudioClip
    from voxcli.config import Settings
    from voxcli.live.attempt import Answering
    from voxcli.live.events import LiveEvent, Ready
    from voxcli.live.inbound import Inbound
    from voxcli.live.keys import Keys
    from voxcli.live.listener import Listener
    from voxcli.live.recording import Recording
    from voxcli.live.recovery import AudioDevices
    from voxcli.live_view import LiveView
    from voxcli.memory import Memory
    from voxcli.session import Session
    from voxcli.turn import Engine, Synthesizer

WARMING = "warming up"
KEY_SECONDS = 0.1  # how long to wait for a key before looking whether the conversation is over


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, beside the settings."""

    session: str | None
    new_instructions: bool
    speak: bool
    max_turns: int | None
    record: Path | None
    json: bool


def chat(
    session: Annotated[
        str | None, typer.Option("--session", metavar="NAME", help="Conversation to go on with, or to begin.")
    ] = None,
    input_device: Annotated[
        str | None,
        typer.Option("--input-device", metavar="NAME|N", help="Microphone: part of its name, or number."),
    ] = None,
    output_device: Annotated[
        str | None, typer.Option("--output-device", metavar="NAME|N", help="Loudspeaker, likewise.")
    ] = None,
    push_to_talk: Annotated[
        str | None, typer.Option("--push-to-talk", metavar="hold|toggle", help="Listen only at the space key.")
    ] = None,
    no_barge_in: Annotated[
        bool, typer.Option("--no-barge-in", help="Don't let speech stop a reply that plays.")
    ] = False,
    no_speak: Annotated[bool, typer.Option("--no-speak", help="Print replies, don't speak them.")] = False,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", metavar="N", min=1, help="End after so many turns.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="DIR", help="Keep each utterance and its record in a folder.")
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
    """Talk: it listens, answers aloud, and stops when you speak."""
    flags = given(
        engine=engine,
        url=url,
        model=model,
        device=device,
        quantize=quantize,
        instructions=instructions,
        voice=voice,
    )
    live = {"input_device": input_device, "output_device": output_device, "push_to_talk": push_to_talk}
    flags |= {f"live.{name}": value for name, value in live.items() if value is not None}
    if no_barge_in:
        flags["live.barge_in"] = False
    settings = load_settings(config, flags)
    with ExitStack() as stack:
        _run(_Asked(session, instructions is not None, not no_speak, max_turns, record, json), settings, stack)


def _run(asked: _Asked, settings: "Settings", stack: ExitStack) -> None:
    """Open the parts, those that may be refused first; run the conversation."""
    from voxcli.live.attempt import Answering
    from voxcli.live.conversation import Conversation, ConversationOptions
    from voxcli.live.recording import Recording
    from voxcli.live_view import open_live_view
    from voxcli.turn import SpeechOutput

    inbox: SimpleQueue[Inbound] = SimpleQueue()
    recording = Recording(asked.record) if asked.record else None
    memory = open_memory(asked.session, settings, stack, new_instructions=asked.new_instructions)
    view = stack.enter_context(closing(open_live_view(as_json=asked.json)))
    keys = _open_keys(settings.live.push_to_talk, view, stack)
    devices = _open_devices(asked, settings, view, inbox, stack)
    listener, echo = _open_listener(settings, devices, view, inbox)
    synthesizer = open_voice(settings, stack) if devices.speaker else None
    fetching, warming = (partial(_show_share, view, what) for what in ("fetching", WARMING))
    ready = threading.Event()
    engine = open_engine(settings, stack, partial(_show_notice, view, inbox, ready), fetching, warming)
    _warm(engine, synthesizer, memory.session, view)
    speech = SpeechOutput(synthesizer, devices.speaker) if synthesizer and devices.speaker else None
    answering = Answering(engine, speech, listener.commit, inbox.put)
    options = ConversationOptions(settings.live.drafts, settings.live.push_to_talk, asked.max_turns)
    show = _shown_and_kept(view, recording)
    conversation = Conversation(memory, answering, listener, inbox, show, options, partial(_typed, keys))
    view.show(_ready(engine, settings, devices, memory, echo, spoken=speech is not None))
    ready.set()
    with _keys_read(keys, inbox), _running(listener, answering), _ctrl_c_to(inbox):
        conversation.run()
    if conversation.interrupted:
        raise typer.Exit(INTERRUPTED)


def _open_keys(push_to_talk: str, view: "LiveView", stack: ExitStack) -> "Keys | None":
    from voxcli.live.keys import open_keys

    hold = push_to_talk == "hold"
    keys = stack.enter_context(open_keys(releases=hold, paused=view.paused))
    if push_to_talk != "off" and keys is None:
        raise ConfigError("push-to-talk needs a terminal for its key", hint="leave out --push-to-talk")
    if hold and keys and not keys.supports_release:
        raise ConfigError(
            "this terminal does not tell when a key is let go",
            hint="use --push-to-talk toggle, or the terminal kitty or foot",
        )
    if keys:
        space = {"off": "mute", "hold": "hold to talk", "toggle": "talk"}[push_to_talk]
        view.hints = {"space": space, "i": "interrupt", "t": "type", "r": "repeat", "q": "end"}
    return keys


def _open_devices(
    asked: _Asked, settings: "Settings", view: "LiveView", inbox: "SimpleQueue[Inbound]", stack: ExitStack
) -> "AudioDevices":
    from voxcli.live.events import Notice
    from voxcli.live.recovery import AudioDevices

    view.starting("microphone and loudspeaker")
    return stack.enter_context(
        AudioDevices(
            lambda text: inbox.put(Notice(text)),
            wanted_input=settings.live.input_device or None,
            wanted_output=settings.live.output_device or None,
            speak=asked.speak,
        )
    )


def _show_share(view: "LiveView", what: str, done: int, total: int) -> None:
    view.starting(what, done / total)


def _show_notice(view: "LiveView", inbox: "SimpleQueue[Inbound]", ready: threading.Event, text: str) -> None:
    """Show what the engine has to say: while it loads in the view's line for that, later as a notice."""
    from voxcli.live.events import Notice

    if ready.is_set():
        inbox.put(Notice(text))
    else:
        view.starting(text)


def _warm(engine: "Engine", synthesizer: "Synthesizer | None", session: "Session", view: "LiveView") -> None:
    from voxcli.live.warm import warm_up

    view.starting(WARMING)
    if synthesizer:
        for _clip in synthesizer.synthesize("Ready."):
            pass
    warm_up(engine, session)


def _open_listener(
    settings: "Settings", devices: "AudioDevices", view: "LiveView", inbox: "SimpleQueue[Inbound]"
) -> tuple["Listener", str]:
    """Return the listener, and how it keeps voxcli from hearing itself."""
    from voxcli.live.echo import Timeline, open_canceller
    from voxcli.live.endpoint import EndPointer, EndpointSettings
    from voxcli.live.events import Notice
    from voxcli.live.listener import PLAYED_SECONDS, Listener
    from voxcli.vad import Detector

    live = settings.live
    by_voice = live.push_to_talk == "off"
    given = {name: getattr(live, name) for field in fields(EndpointSettings) if hasattr(live, name := field.name)}
    given |= {"drafts": live.drafts or live.end_of_turn != "silence", "by_voice": by_voice}  # both need pauses
    endpointer = EndPointer(EndpointSettings(**given))
    played = Timeline(PLAYED_SECONDS + live.max_utterance_seconds)
    canceller, notice = open_canceller(live.echo, played) if devices.speaker else (None, "")
    if notice:
        view.show(Notice(notice))
    listener = Listener(
        devices.microphone,
        devices.speaker,
        Detector().probability,
        endpointer,
        canceller,
        played,
        inbox.put,
        barge_in=live.barge_in and by_voice,
        is_complete=_end_of_turn(live.end_of_turn),
    )
    return listener, "off" if devices.speaker is None else "cancelled" if canceller else "half-duplex"


def _end_of_turn(setting: str) -> "Callable[[AudioClip], bool] | None":
    if setting == "silence":
        return None
    from voxcli.live import smart_turn

    return smart_turn.load()


def _ready(
    engine: "Engine", settings: "Settings", devices: "AudioDevices", memory: "Memory", echo: str, *, spoken: bool
) -> "Ready":
    from voxcli.live.events import Ready

    return Ready(
        engine.name,
        engine.model,
        settings.voice if spoken else None,
        devices.microphone.device.name,
        devices.speaker.device.name if devices.speaker else None,
        memory.session.name,
        echo,
    )


def _shown_and_kept(view: "LiveView", recording: "Recording | None") -> "Callable[[LiveEvent], None]":
    from voxcli.live.events import TurnFailed, TurnTaken

    def show(event: "LiveEvent") -> None:
        view.show(event)
        if recording and isinstance(event, TurnTaken):
            try:
                recording.keep(event)
            except VoxError as error:
                view.show(TurnFailed(error))

    return show


def _typed(keys: "Keys | None") -> str:
    """Let the user type a line; Ctrl-C gives it up."""
    if keys is None:
        return ""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return keys.read_line("you: ")
    except KeyboardInterrupt:
        return ""
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _keys_read(keys: "Keys | None", inbox: "SimpleQueue[Inbound]") -> Iterator[None]:
    """Put keys into the inbox for the time of the context."""
    over = threading.Event()

    def read() -> None:
        while keys and not over.is_set():
            if key := keys.read(KEY_SECONDS):
                inbox.put(key)

    reader = threading.Thread(target=read, name="keys", daemon=True)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


@contextmanager
def _ctrl_c_to(inbox: "SimpleQueue[Inbound]") -> Iterator[None]:
    from voxcli.live.inbound import Interrupt

    before = signal.signal(signal.SIGINT, lambda _number, _frame: inbox.put(Interrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _running(listener: "Listener", answering: "Answering") -> Iterator[None]:
    listener.start()
    answering.start()
    try:
        yield
    finally:
        listener.close()
        answering.finish()
