"""`voxcli chat`: the live conversation."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxcli.cli.common import (
    INTERRUPTED,
    ConfigFlag,
    ContinueFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    JsonFlag,
    ModelFlag,
    QuantizeFlag,
    SessionFlag,
    TemperatureFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    given,
)
from voxcli.cli.log import leave_stderr
from voxcli.errors import ConfigError


def chat(
    session: SessionFlag = None,
    continue_: ContinueFlag = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep the conversation in memory only.")] = False,
    input_device: Annotated[
        str | None,
        typer.Option("--input-device", metavar="NAME|N", help="Microphone: part of its name, or number."),
    ] = None,
    output_device: Annotated[
        str | None, typer.Option("--output-device", metavar="NAME|N", help="Loudspeaker: part of its name, or number.")
    ] = None,
    push_to_talk: Annotated[
        str | None,
        typer.Option(
            "--push-to-talk",
            metavar="hold|toggle",
            help="Listen only while the space key is held, or between two presses.",
        ),
    ] = None,
    no_barge_in: Annotated[bool, typer.Option("--no-barge-in", help="Don't let speech interrupt a reply.")] = False,
    no_speak: Annotated[bool, typer.Option("--no-speak", help="Print replies without speaking them.")] = False,
    max_turns: Annotated[int | None, typer.Option("--max-turns", metavar="N", min=1, help="End after N turns.")] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="DIR", help="Save a recording and a record of each turn in DIR.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines of text and redraw nothing, as for a screen reader.")
    ] = False,
    engine: EngineFlag = None,
    url: UrlFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    temperature: TemperatureFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Hold a live conversation: speak, listen, and interrupt at any time."""
    from voxcli.app.chat import ChatOptions, run_chat
    from voxcli.app.parts import SessionChoice, load_settings

    for flag, value in (("--voice", voice), ("--output-device", output_device)):
        if value and no_speak:
            raise ConfigError(f"{flag} is for spoken replies", hint=f"leave out --no-speak or {flag}")
    if no_save and (session is not None or continue_):
        flag = "--continue" if continue_ else "--session"
        raise ConfigError(f"--no-save and {flag} contradict each other", hint="leave out one of them")
    flags = given(engine=engine, url=url, model=model, device=device, quantize=quantize)
    flags |= given(instructions=instructions, temperature=temperature, voice=voice)
    live = given(input_device=input_device, output_device=output_device, push_to_talk=push_to_talk)
    flags |= {f"live.{name}": value for name, value in live.items()}
    if no_barge_in:
        flags["live.barge_in"] = False
    if sys.stdout.isatty() and not json and not plain:
        leave_stderr()
    choice = SessionChoice(session, continue_, kept=not no_save, new_instructions=instructions is not None)
    options = ChatOptions(choice, not no_speak, max_turns, record, json, plain=plain, stages=verbose)
    if run_chat(load_settings(config, flags), options):
        raise typer.Exit(INTERRUPTED)
