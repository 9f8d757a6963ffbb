"""`voxcli chat`: the live conversation."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
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
    given,
)
from voxcli.cli.parts import open_engine, open_memory, open_voice

if TYPE_CHECKING:
    from voxcli.config import Settings
    from voxcli.live.conversation import Inbound
    from voxcli.live.keys import Keys
    from voxcli.ui_live import LiveView

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
        str | None, typer.Option("--input-device", metavar="NAME|N", help="Microphone: part of its name, or its number.")
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
    model: ModelFlag = None,
    device: DeviceFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Talk: it listens, answers aloud, and stops when you speak."""
    from voxcli.config import load

    flags = given(engine=engine, model=model, device=device, instructions=instructions, voice=voice)
    live = {"input_device": input_device, "output_device": output_device, "push_to_talk": push_to_talk}
    flags |= {f"live.{name}": value for name, value in live.items() if value is not None}
    if no_barge_in:
        flags["live.barge_in"] = False
    settings = load(config, flags)
    with ExitStack() as stack:
        _run(_Asked(session, instructions is not None, not no_speak, max_turns, record, json), settings, stack)
