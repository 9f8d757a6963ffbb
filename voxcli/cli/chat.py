"""`voxcli chat`: the live conversation."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface import completion
from voxcli.cli.interface.common import (
    INTERRUPTED,
    ConfigFlag,
    ContinueFlag,
    DeviceFlag,
    EngineFlag,
    InputDeviceFlag,
    InstructionsFlag,
    JsonFlag,
    LanguageFlag,
    ModelFlag,
    OutputDeviceFlag,
    PersonaFlag,
    QuantizeFlag,
    SessionFlag,
    TemperatureFlag,
    UnderstoodFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    given,
    note,
    print_text,
)
from voxcli.cli.interface.log import leave_stderr
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.app.chat import ChatOptions
    from voxcli.config.loading import Settings

PushToTalkFlag = Annotated[
    str | None,
    typer.Option(
        "--push-to-talk",
        metavar="hold|toggle",
        help="Listen only while the space key is held, or between two presses.",
    ),
]

WakeWordFlag = Annotated[
    str | None,
    typer.Option(
        "--wake-word",
        metavar="NAME",
        autocompletion=completion.wake_words,
        help="Sleep until this is said: hey_jarvis, alexa, hey_mycroft or okay_nabu.",
    ),
]

ControlFlag = Annotated[
    str | None,
    typer.Option("--control", metavar="auto|PATH", help="Take commands from `voxcli control` at a socket."),
]

NoSaveFlag = Annotated[bool, typer.Option("--no-save", help="Keep the conversation in memory only.")]
FactsFlag = Annotated[
    bool | None, typer.Option("--facts/--no-facts", help="Remember facts about you, and tell them to the model.")
]
RecordFlag = Annotated[
    Path | None, typer.Option("--record", metavar="DIR", help="Save a recording and a record of each turn in DIR.")
]
PlainFlag = Annotated[
    bool, typer.Option("--plain", help="Print lines of text and redraw nothing, as for a screen reader.")
]

ControlPath = Annotated[
    str | None,
    typer.Option("--path", metavar="PATH", help="What the chat was started with: --control PATH."),
]


def chat(
    session: SessionFlag = None,
    continue_: ContinueFlag = False,
    no_save: NoSaveFlag = False,
    text: Annotated[bool, typer.Option("--text", help="Type instead of talking; needs no audio device.")] = False,
    input_device: InputDeviceFlag = None,
    output_device: OutputDeviceFlag = None,
    push_to_talk: PushToTalkFlag = None,
    wake_word: WakeWordFlag = None,
    control: ControlFlag = None,
    no_barge_in: Annotated[bool, typer.Option("--no-barge-in", help="Don't let speech interrupt a reply.")] = False,
    facts: FactsFlag = None,
    no_speak: Annotated[bool, typer.Option("--no-speak", help="Print replies without speaking them.")] = False,
    max_turns: Annotated[int | None, typer.Option("--max-turns", metavar="N", min=1, help="End after N turns.")] = None,
    record: RecordFlag = None,
    plain: PlainFlag = False,
    engine: EngineFlag = None,
    url: UrlFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    temperature: TemperatureFlag = None,
    instructions: InstructionsFlag = None,
    persona: PersonaFlag = None,
    language: LanguageFlag = None,
    understood: UnderstoodFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Hold a live conversation: speak, listen, and interrupt at any time; or type."""
    from voxcli.app.chat import ChatOptions, run_chat
    from voxcli.app.parts import SessionChoice, session_settings

    if no_speak:
        _check_silent(voice, output_device)
    live = given(input_device=input_device, push_to_talk=push_to_talk, wake_word=wake_word, control=control)
    if text:
        _check_typed(**live, no_barge_in=no_barge_in, understood=understood, record=record)
    if no_save and (session is not None or continue_):
        flag = "--continue" if continue_ else "--session"
        raise ConfigError(f"--no-save and {flag} contradict each other", hint="leave out one of them")
    flags = given(engine=engine, url=url, model=model, device=device, quantize=quantize, temperature=temperature)
    flags |= given(persona=persona, instructions=instructions, language=language, voice=voice, understood=understood)
    live |= given(output_device=output_device, barge_in=False if no_barge_in else None)
    flags |= given(facts=facts) | {f"live.{name}": value for name, value in live.items()}
    if sys.stdout.isatty() and not json and not plain and not text:
        leave_stderr()
    choice = SessionChoice(
        session, continue_, not no_save, new_instructions=instructions is not None, new_persona=persona is not None
    )
    settings, choice = session_settings(config, flags, choice, note)
    options = ChatOptions(choice, not no_speak, max_turns, record, json, plain=plain, stages=verbose)
    if text:
        raise typer.Exit(_run_typed(settings, options))
    if run_chat(settings, options):
        raise typer.Exit(INTERRUPTED)


def _check_silent(voice: str | None, output_device: str | None) -> None:
    """Raise ConfigError for flags of spoken replies, where none is spoken."""
    for flag, value in (("--voice", voice), ("--output-device", output_device)):
        if value:
            raise ConfigError(f"{flag} is for spoken replies", hint=f"leave out --no-speak or {flag}")


def control(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            autocompletion=completion.control_commands,
            help="mute, unmute, toggle-mute, talk, send, interrupt, undo, quit or status.",
        ),
    ],
    path: ControlPath = None,
    _verbose: VerboseFlag = False,
) -> None:
    """Send a command to a running chat that was started with --control, and print its state."""
    from voxcli.chat.control import COMMANDS, send_command
    from voxcli.config.paths import control_address

    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command}", hint=f"one of {', '.join(COMMANDS)}")
    print_text(send_command(path or control_address(), command))


def _run_typed(settings: "Settings", options: "ChatOptions") -> int:
    """Run a typed conversation; return the exit code."""
    from voxcli.app.typed import run_typed

    try:
        return run_typed(settings, options)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # a normal exit would wait for the threads of an engine that is still loading


def _check_typed(**spoken: str | Path | bool | None) -> None:
    """Raise ConfigError for a flag that is for speech."""
    for name, value in spoken.items():
        if value:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for a spoken chat", hint=f"leave out --text or {flag}")
