"""`voxcli once`: one turn from a file or standard input."""

import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface.common import (
    INTERRUPTED,
    AllowToolFlag,
    ConfigFlag,
    ContinueFlag,
    DeviceFlag,
    EngineFlag,
    ForceFlag,
    InstructionsFlag,
    JsonFlag,
    LanguageFlag,
    ModelFlag,
    PersonaFlag,
    QuantizeFlag,
    SessionFlag,
    TemperatureFlag,
    UnderstoodFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    check_stdin,
    files_read,
    given,
    note,
    set_by_ctrl_c,
    text_or_stdin,
)
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.app.once import Speak

SourceArgument = Annotated[
    str | None,
    typer.Argument(metavar="FILE|URL|-", help="A recording; - is standard input. Not needed with --prompt."),
]
PromptFlag = Annotated[
    str,
    typer.Option("--prompt", metavar="TEXT|-", help="Text for the model, with a recording or alone; - reads stdin."),
]
SpeakFlag = Annotated[
    bool | None,
    typer.Option(
        "--speak/--no-speak",
        help="Speak the reply through the default output device.",
        show_default="if stdout is a terminal and a device exists",
    ),
]
SaveReplyFlag = Annotated[Path | None, typer.Option("--save-reply", metavar="FILE.wav", help="Save the spoken reply.")]
RawRateFlag = Annotated[
    int | None, typer.Option("--raw-rate", metavar="HZ", help="Standard input is raw 16-bit mono PCM at this rate.")
]


def once(
    source: SourceArgument = None,
    session: SessionFlag = None,
    continue_: ContinueFlag = False,
    prompt: PromptFlag = "",
    speak: SpeakFlag = None,
    save_reply: SaveReplyFlag = None,
    force: ForceFlag = False,
    raw_rate: RawRateFlag = None,
    allow_tool: AllowToolFlag = None,
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
    _verbose: VerboseFlag = False,
) -> None:
    """Answer a recorded or typed question: print the reply, speak it, remember the turn."""
    from voxcli.app.once import OnceOptions, open_turn
    from voxcli.app.parts import SessionChoice, session_settings
    from voxcli.app.views import JsonView, TextView

    check_stdin(source, prompt, config, instructions)
    prompt = text_or_stdin(prompt)
    _check_question(source, prompt, raw_rate)
    flags = given(engine=engine, url=url, model=model, device=device, quantize=quantize, temperature=temperature)
    flags |= given(persona=persona, instructions=instructions, language=language, voice=voice, understood=understood)
    _check_voice(voice, speak, save_reply)
    is_new = {"new_instructions": instructions is not None, "new_persona": persona is not None}
    choice = SessionChoice(session, continue_, **is_new)
    settings, choice = session_settings(config, flags, choice, note)
    options = OnceOptions(
        source=source,
        prompt=prompt,
        session=choice,
        speak=_speech(speak, as_json=json),
        save_reply=save_reply,
        raw_rate=raw_rate,
        force=force,
        other_inputs=files_read(config, flags),
        allow_tools=allow_tool or (),
    )
    interrupt = threading.Event()
    try:
        with ExitStack() as stack:
            turn = open_turn(settings, options, stack, note)
            with set_by_ctrl_c(interrupt):
                turn.answer(JsonView() if json else TextView(), interrupt)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)  # a normal exit would wait for the threads of an engine that is still loading
    if interrupt.is_set():
        raise typer.Exit(INTERRUPTED)


def _check_question(source: str | None, prompt: str, raw_rate: int | None) -> None:
    """Raise ConfigError if a prompt without a recording is no question."""
    if source is not None:
        return
    if raw_rate is not None:
        raise ConfigError("--raw-rate is for standard input", hint=f"voxcli once - --raw-rate {raw_rate}")
    if not prompt.strip():
        raise ConfigError("there is nothing to answer", hint='name a recording, or ask: voxcli once --prompt "TEXT"')


def _check_voice(voice: str | None, speak: bool | None, save_reply: Path | None) -> None:
    """Raise ConfigError for a voice that nothing is spoken with."""
    if voice and speak is False and not save_reply:
        raise ConfigError("--voice needs a spoken reply", hint="leave out --no-speak, or add --save-reply reply.wav")


def _speech(speak: bool | None, *, as_json: bool) -> "Speak":
    """Return whether to speak; without a flag, only if a person is likely to listen."""
    if speak is None:
        return "if possible" if not as_json and sys.stdout is not None and sys.stdout.isatty() else "never"
    return "always" if speak else "never"
