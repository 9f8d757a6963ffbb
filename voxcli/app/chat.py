"""Builds and runs a live conversation."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from voxcli.app.facts import finding_facts, open_facts
from voxcli.app.listening import open_listener, open_sleep
from voxcli.app.parts import NOT_KEPT, SessionChoice, open_engine, open_memory, open_reply_voices, speech_output
from voxcli.app.tool_access import chat_toolbox
from voxcli.errors import AudioDeviceError, ConfigError, VoxError

if TYPE_CHECKING:
    from voxcli.chat.control import Control
    from voxcli.chat.cues import Cues
    from voxcli.chat.devices.hotplug import AudioDevices
    from voxcli.chat.events import LiveEvent, Ready
    from voxcli.chat.keyboard.keys import Keys
    from voxcli.chat.listener import Listener
    from voxcli.chat.messages import Inbound
    from voxcli.chat.recording import Recording
    from voxcli.chat.responses.approval import ChatTools
    from voxcli.chat.responses.response import Responder
    from voxcli.chat.speech.wake_word import SleepControl
    from voxcli.chat.views import LiveView
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.protocols import Engine, Synthesizer
    from voxcli.core.session import Session

WARMING = "warming up"


@dataclass(frozen=True)
class ChatOptions:
    """Options of a conversation that are not settings."""

    session: SessionChoice = NOT_KEPT
    speak: bool = True
    max_turns: int | None = None  # the conversation ends after this many turns
    record: Path | None = None  # folder for a recording and a record of each turn
    as_json: bool = False  # print events as JSON instead of showing a view for people
    plain: bool = False  # show people lines of text, as for a screen reader
    stages: bool = False  # show people the latency of each stage


def run_chat(
    settings: "Settings",
    options: ChatOptions,
    *,
    engine: "Engine | None" = None,
    synthesizer: "Synthesizer | None" = None,
) -> bool:
    """Run a conversation until the user ends it; return whether Ctrl-C ended it.

    Args:
        engine: used instead of the one in the settings; the caller closes it.
        synthesizer: used instead of the voice in the settings; the caller closes it.

    Raises:
        VoxError: a part can't be opened, or fails permanently.
    """
    with ExitStack() as stack:
        return _run(settings, options, stack, engine, synthesizer)


def _run(
    settings: "Settings",
    options: ChatOptions,
    stack: ExitStack,
    engine: "Engine | None",
    synthesizer: "Synthesizer | None",
) -> bool:
    """Open the parts and run the conversation."""
    from voxcli.chat.control import Control
    from voxcli.chat.conversation import Conversation, ConversationOptions
    from voxcli.chat.cues import Cues
    from voxcli.chat.devices.stderr import redirect_library_messages
    from voxcli.chat.events import Notice
    from voxcli.chat.keyboard.reader import keys_posted
    from voxcli.chat.keyboard.tools import user_tools
    from voxcli.chat.messages import Interrupt
    from voxcli.chat.recording import Recording
    from voxcli.chat.responses.response import Responder
    from voxcli.chat.views import open_live_view
    from voxcli.chat.views.terminal import TerminalView

    redirect_library_messages()  # it replaces sys.stderr, where the view writes
    inbox: SimpleQueue[Inbound] = SimpleQueue()
    stack.enter_context(_commands_posted(settings.live.control, inbox.put))
    stack.enter_context(_signal_posted("SIGUSR1", lambda: inbox.put(Control("toggle-mute"))))
    sleep = open_sleep(settings, inbox.put)
    recording = Recording(options.record) if options.record else None
    shown = open_live_view(as_json=options.as_json, plain=options.plain, stages=options.stages)
    view = stack.enter_context(closing(shown))
    ready = threading.Event()
    notice = partial(_show_notice, view, inbox, ready)
    memory = open_memory(options.session, settings, stack, notice)
    facts = open_facts(settings, memory, notice)
    keys = _open_keys(settings.live.push_to_talk, view, stack)
    devices = _open_devices(settings, options, view, inbox, stack)
    listener, echo = open_listener(settings, devices, inbox.put, notice, stack, sleep, kept=memory.is_kept)
    if devices.speaker and synthesizer is None:
        synthesizer = stack.enter_context(open_reply_voices(settings, lambda text: inbox.put(Notice(text))))
    if engine is None:
        fetching, warming = (partial(_show_share, view, what) for what in ("fetching", WARMING))
        engine = open_engine(settings, stack, notice, fetching, warming)
    tools = _open_tools(settings, engine, stack, inbox, notice, keys)
    _warm_up(engine, synthesizer, tools.given_to(memory.session) if tools else memory.session, view)
    speech = speech_output(synthesizer, devices.speaker) if synthesizer and devices.speaker else None
    responder = Responder(engine, speech, inbox.put, listener, tools)
    turns = ConversationOptions(
        settings.live.speculative_replies, settings.live.push_to_talk, options.max_turns, asleep=sleep is not None
    )
    cues = Cues(devices.speaker) if devices.speaker and settings.live.cues else None
    show = _show_and_record(view, recording, [each for each in (cues, sleep) if each])
    show = finding_facts(show, facts, responder, settings)
    editing = user_tools(keys, partial(_write_escape, view), erase=isinstance(view, TerminalView))
    conversation = Conversation(memory, responder, listener, inbox, show, turns, editing)
    view.show(_ready(engine, settings, devices, memory, echo, spoken=speech is not None, keys=keys is not None))
    ready.set()
    ctrl_c = partial(inbox.put, Interrupt())
    with keys_posted(keys, inbox.put), _running(listener, responder), _signal_posted("SIGINT", ctrl_c):
        conversation.run()
    return conversation.interrupted


def _open_keys(push_to_talk: str, view: "LiveView", stack: ExitStack) -> "Keys | None":
    from voxcli.chat.keyboard.opening import open_keys

    hold = push_to_talk == "hold"
    keys = stack.enter_context(open_keys(releases=hold, paused=view.paused))
    if push_to_talk != "off" and keys is None:
        raise ConfigError("push-to-talk needs a terminal for its key", hint="leave out --push-to-talk")
    if hold and keys and not keys.supports_release:
        raise ConfigError(
            "this terminal does not report when a key is released",
            hint="use --push-to-talk toggle, or the terminal kitty or foot",
        )
    return keys


def _open_devices(
    settings: "Settings", options: ChatOptions, view: "LiveView", inbox: "SimpleQueue[Inbound]", stack: ExitStack
) -> "AudioDevices":
    from voxcli.chat.devices.hotplug import AudioDevices

    view.starting("microphone and loudspeaker")
    try:
        devices = AudioDevices(
            inbox.put,
            wanted_input=settings.live.input_device or None,
            wanted_output=settings.live.output_device or None,
            speak=options.speak,
        )
    except AudioDeviceError as error:
        raise AudioDeviceError(error.message, hint=f"{error.hint}; or type: voxcli chat --text") from error
    return stack.enter_context(devices)


def _show_share(view: "LiveView", what: str, done: int, total: int) -> None:
    view.starting(what, done / total)


def _show_notice(view: "LiveView", inbox: "SimpleQueue[Inbound]", ready: threading.Event, text: str) -> None:
    """Show a message of the engine: at once while it loads, later by way of the conversation."""
    from voxcli.chat.events import Notice

    (inbox.put if ready.is_set() else view.show)(Notice(text))


def _open_tools(
    settings: "Settings",
    engine: "Engine",
    stack: ExitStack,
    inbox: "SimpleQueue[Inbound]",
    notice: Callable[[str], None],
    keys: "Keys | None",
) -> "ChatTools | None":
    from voxcli.chat.messages import Announcement

    def announce(text: str) -> None:
        inbox.put(Announcement(text))

    has_keys = keys is not None
    toolbox = chat_toolbox(settings, engine, inbox.put, stack, notice, announce, has_keys=has_keys, listens=True)
    return toolbox.tools_of(settings)


def _warm_up(engine: "Engine", synthesizer: "Synthesizer | None", session: "Session", view: "LiveView") -> None:
    from voxcli.chat.warm_up import warm_up

    view.starting(WARMING)
    warm_up(engine, session, synthesizer)


def _commands_posted(setting: str, post: "Callable[[Control], None]") -> AbstractContextManager[None]:
    from voxcli.chat.control import commands_posted
    from voxcli.config.paths import control_address

    if setting == "off":
        return nullcontext()
    return commands_posted(control_address() if setting == "auto" else str(Path(setting).expanduser()), post)


def _ready(
    engine: "Engine",
    settings: "Settings",
    devices: "AudioDevices",
    memory: "Memory",
    echo: str,
    *,
    spoken: bool,
    keys: bool,
) -> "Ready":
    from voxcli.chat.events import Ready
    from voxcli.tts.voices import resolved

    return Ready(
        engine.name,
        engine.model,
        resolved(settings.voice) if spoken else None,
        devices.microphone.device.name,
        devices.speaker.device.name if devices.speaker else None,
        memory.session.name,
        echo,
        turns=len(memory.session.turns),
        barge_in=settings.live.barge_in,
        push_to_talk=settings.live.push_to_talk,
        keys=keys,
        kept=memory.is_kept,
        persona=memory.persona,
        wake_word=None if settings.live.wake_word == "off" else settings.live.wake_word.replace("_", " "),
    )


def _show_and_record(
    view: "LiveView", recording: "Recording | None", others: "Sequence[Cues | SleepControl]"
) -> "Callable[[LiveEvent], None]":
    from voxcli.chat.events import TurnFailed, TurnTaken

    def show(event: "LiveEvent") -> None:
        view.show(event)
        for other in others:
            other.show(event)
        if recording and isinstance(event, TurnTaken):
            try:
                recording.keep(event)
            except VoxError as error:
                view.show(TurnFailed(error))

    return show


def _write_escape(view: "LiveView", sequence: str) -> None:
    """Send an escape sequence to the terminal, if there is one, while the view does not write."""
    from voxcli.output import Output

    terminal = next((stream for stream in (sys.stdout, sys.stderr) if stream.isatty()), None)
    if terminal:
        with view.paused():
            Output(terminal).write(sequence)


@contextmanager
def _signal_posted(name: str, post: "Callable[[], None]") -> Iterator[None]:
    """Call `post` at each signal, for the time of the context; do nothing where the platform lacks the signal."""
    number = getattr(signal, name, None)
    if number is None:
        yield
        return
    before = signal.signal(number, lambda _number, _frame: post())
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _running(listener: "Listener", responder: "Responder") -> Iterator[None]:
    listener.start()
    responder.start()
    try:
        yield
    finally:
        listener.close()
        responder.finish()
