"""Builds and runs a typed conversation, which needs no audio device."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from voxcli.app.chat import WARMING, ChatOptions
from voxcli.app.facts import finding_facts, open_facts
from voxcli.app.parts import open_engine, open_memory, open_reply_voices, speech_output
from voxcli.app.tool_access import ChatToolbox, chat_toolbox
from voxcli.errors import AudioDeviceError, ConfigError, SpeechError

if TYPE_CHECKING:
    from voxcli.chat.events import Ready
    from voxcli.chat.messages import Inbound
    from voxcli.chat.responses.response import Responder
    from voxcli.chat.typed import SlashCommand
    from voxcli.chat.views import LiveView
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.protocols import Engine, Speaker, SpeechOutput

SUCCESS, FAILURE, INTERRUPTED = 0, 1, 130  # exit codes


def run_typed(settings: "Settings", options: ChatOptions, *, engine: "Engine | None" = None) -> int:
    """Run a typed conversation until its input ends; return the exit code.

    The code is 1 if a line of a pipe was not answered; at a terminal the user has seen it, and the code is 0.

    Args:
        engine: used instead of the one in the settings; the caller closes it.

    Raises:
        VoxError: a part can't be opened.
    """
    from voxcli.chat.devices.stderr import redirect_library_messages
    from voxcli.chat.events import Notice
    from voxcli.chat.keyboard.lines import typed_answer
    from voxcli.chat.messages import Inbound
    from voxcli.chat.typed import TypedConversation

    if options.speak:
        redirect_library_messages()  # it replaces sys.stderr, where the view writes
    with ExitStack() as stack:
        view = stack.enter_context(closing(_open_view(options)))
        inbox: SimpleQueue[Inbound] = SimpleQueue()

        def notice(text: str) -> None:
            view.show(Notice(text))

        def notice_later(text: str) -> None:  # With the next reply, not beside a line that is being typed.
            inbox.put(Notice(text))

        memory = open_memory(options.session, settings, stack, notice)
        facts = open_facts(settings, memory, notice)
        speech = _open_speech(settings, options, stack, notice, notice_later)
        if engine is None:
            fetching, warming = (partial(_show_share, view, what) for what in ("fetching", WARMING))
            engine = open_engine(settings, stack, notice, fetching, warming)
        view.starting(WARMING)
        responder, toolbox = _open_responder(settings, engine, speech, memory, stack, view, inbox)
        view.show(_ready(engine, settings, speech, memory))
        commands = TypedCommands(settings, memory, responder, toolbox, stack, notice_later).by_name()
        conversation = TypedConversation(
            memory,
            responder,
            inbox,
            finding_facts(view.show, facts, responder, settings),
            _open_lines(options, memory, list(commands)),
            commands,
            read_answer=typed_answer if sys.stdin is not None and sys.stdin.isatty() else None,
            max_turns=options.max_turns,
        )
        responder.start()
        try:
            conversation.run()
        finally:
            responder.finish()
    if conversation.interrupted:
        return INTERRUPTED
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    return FAILURE if conversation.failures and not at_terminal else SUCCESS


class TypedCommands:
    """The commands of a typed conversation that change its memory or its parts."""

    def __init__(
        self,
        settings: "Settings",
        memory: "Memory",
        responder: "Responder",
        toolbox: ChatToolbox,
        stack: ExitStack,
        notice: Callable[[str], None],
    ) -> None:
        """Change these; close on `stack` what a command opens. A voice may call `notice` on its own thread."""
        self._settings = settings
        self._memory = memory
        self._responder = responder
        self._toolbox = toolbox
        self._stack = stack
        self._notice = notice

    def by_name(self) -> "dict[str, SlashCommand]":
        """Return the commands by name, without the slash."""
        from voxcli.chat.typed import SlashCommand

        return {
            "voice": SlashCommand("/voice [NAME]", "speak with another voice; without NAME: list them", self._voice),
            "instructions": SlashCommand(
                "/instructions [TEXT]", "change how the model should answer; without TEXT: show it", self._instructions
            ),
            "persona": SlashCommand("/persona [NAME]", "answer in another way; without NAME: list them", self._persona),
            "save": SlashCommand("/save NAME", "name this conversation, and keep it", self._save),
        }

    def _voice(self, name: str) -> str:
        from voxcli.tts.voices import list_voices

        if not name:
            return "\n".join(voice.setting for voice in list_voices())
        speech = self._responder.speech
        if speech is None:
            raise ConfigError("replies are not spoken here", hint="leave out --no-speak, and connect a loudspeaker")
        with ExitStack() as opened:
            settings = self._settings.model_copy(update={"voice": name})
            synthesizer = opened.enter_context(open_reply_voices(settings, self._notice))
            synthesizer.wait_until_ready()
            self._stack.enter_context(opened.pop_all())
        self._responder.speech = speech_output(synthesizer, speech.speaker)
        return f"voice {name}"

    def _instructions(self, text: str) -> str:
        from voxcli.config.values import INSTRUCTIONS_CHARACTERS

        if not text:
            return self._memory.instructions
        if len(text) > INSTRUCTIONS_CHARACTERS:
            raise ConfigError(f"instructions have at most {INSTRUCTIONS_CHARACTERS} characters")
        self._memory.instruct(text)
        return "from now on with these instructions"

    def _persona(self, choice: str) -> str:
        """Take the instructions, the voice and the tools of a persona; the rest counts from the beginning of a chat."""
        from voxcli.config.loading import value_of
        from voxcli.config.personas import chosen_persona, filled_instructions, known_personas
        from voxcli.config.templates import Moment

        own = self._settings.personas
        if not choice:
            return "\n".join(known_personas(own))
        name, persona = chosen_persona(value_of("persona", choice), own)
        text = filled_instructions(name, persona, persona.language or self._settings.language, Moment.now())
        tools = self._toolbox.tools_of(self._settings.model_copy(update={"persona": choice}))
        if persona.voice and self._responder.speech:
            self._voice(persona.voice)
        self._responder.tools = tools
        self._memory.take_persona(choice, text if persona.instructions else self._settings.instructions)
        return f"from now on as {choice}"

    def _save(self, name: str) -> str:
        from voxcli.config.paths import data_folder
        from voxcli.core.session import session_name
        from voxcli.core.storage.store import Store

        checked = session_name(name)
        store = self._stack.enter_context(Store.open(data_folder()))
        self._memory.save_as(checked, store, self._responder.engine)
        return f"kept as session {checked}"


def _open_view(options: ChatOptions) -> "LiveView":
    from voxcli.chat.views.lines import JsonLiveView
    from voxcli.chat.views.typed import TypedView

    if options.as_json:
        return JsonLiveView()
    return TypedView(is_terminal=False if options.plain else None, stages=options.stages)


def _open_speech(
    settings: "Settings",
    options: ChatOptions,
    stack: ExitStack,
    notice: Callable[[str], None],
    notice_later: Callable[[str], None],
) -> "SpeechOutput | None":
    """Open the voice and the loudspeaker; None if replies are only shown. A device that was asked for has to work."""
    if not options.speak:
        return None
    from voxcli.chat.devices.speaker import open_speaker

    wanted = settings.live.output_device or None
    try:
        speaker: Speaker = stack.enter_context(open_speaker(wanted))
        return speech_output(stack.enter_context(open_reply_voices(settings, notice_later)), speaker)
    except (AudioDeviceError, SpeechError) as error:
        if wanted and isinstance(error, AudioDeviceError):
            raise
        notice(f"replies are not spoken: {error.message}")
        return None


def _ready(engine: "Engine", settings: "Settings", speech: "SpeechOutput | None", memory: "Memory") -> "Ready":
    from voxcli.chat.events import Ready
    from voxcli.tts.voices import resolved

    voice = resolved(settings.voice) if speech else None
    name, turns, kept = memory.session.name, memory.turn_number, memory.is_kept
    return Ready(
        engine.name,
        engine.model,
        voice,
        None,
        _output_name(speech),
        name,
        "off",
        turns,
        kept=kept,
        persona=memory.persona,
    )


def _output_name(speech: "SpeechOutput | None") -> str | None:
    from voxcli.chat.devices.speaker import OutputSpeaker

    return speech.speaker.device.name if speech and isinstance(speech.speaker, OutputSpeaker) else None


def _open_lines(options: ChatOptions, memory: "Memory", commands: list[str]) -> Callable[[], str | None]:
    from voxcli.chat.keyboard.lines import piped_lines, typed_lines

    if sys.stdin is None:  # closed
        return lambda: None
    if not sys.stdin.isatty():
        return piped_lines(sys.stdin.buffer)
    history = [text for turn in memory.session.turns if (text := turn.typed_text)]
    slashes = [f"/{name}" for name in (*commands, "undo", "help", "quit")]
    return typed_lines(slashes, history, edited=sys.stdout.isatty() and not options.as_json)


def _open_responder(
    settings: "Settings",
    engine: "Engine",
    speech: "SpeechOutput | None",
    memory: "Memory",
    stack: ExitStack,
    view: "LiveView",
    inbox: "SimpleQueue[Inbound]",
) -> "tuple[Responder, ChatToolbox]":
    """Open the tools, and warm up what answers."""
    from voxcli.chat.events import Notice
    from voxcli.chat.responses.response import Responder
    from voxcli.chat.warm_up import warm_up

    def notice(text: str) -> None:
        view.show(Notice(text))

    def announce(text: str) -> None:  # While a line is being typed, or after the present reply.
        notice(text)
        responder.submit_announcement(text)

    toolbox = chat_toolbox(settings, engine, inbox.put, stack, notice, announce, has_keys=True, listens=False)
    tools = toolbox.tools_of(settings)
    session = tools.given_to(memory.session) if tools else memory.session
    warm_up(engine, session, speech.synthesizer if speech else None, typed=True)
    responder = Responder(engine, speech, inbox.put, tools=tools)
    return responder, toolbox


def _show_share(view: "LiveView", what: str, done: int, total: int) -> None:
    view.starting(what, done / total)
