"""`voxcli voices`: lists voices, and speaks or saves a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.common import (
    ConfigFlag,
    ForceFlag,
    JsonFlag,
    VerboseFlag,
    VoiceFlag,
    check_stdin,
    files_read,
    given,
    note,
    print_json,
    print_text,
    text_or_stdin,
)
from voxcli.errors import ConfigError, SpeechError
from voxcli.printable import printable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from voxcli.config.loading import Settings
    from voxcli.core.turn import Speaker
    from voxcli.tts.voice import Voice


def voices(
    say: Annotated[
        str | None, typer.Option("--say", metavar="TEXT", help="Say TEXT instead of listing the voices.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.wav", help="Save the speech instead of playing it.")
    ] = None,
    force: ForceFlag = False,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """List the voices, or try one."""
    if say is None:
        if save:
            raise ConfigError("--save needs --say", hint='voxcli voices --say "Hello there." --save hello.wav')
        _list(as_json=json)
        return
    from voxcli.config.loading import load
    from voxcli.output_files import OutputFiles

    check_stdin(say, config)
    if save:
        files = OutputFiles(force=force)
        files.add_inputs(files_read(config, {}))
        files.check(save, "--save")
    _say(text_or_stdin(say), save, load(config, given(voice=voice)), as_json=json)


def _list(*, as_json: bool) -> None:
    found = _found()
    if as_json:
        rows = [
            {
                "voice": voice.setting,
                "kind": voice.kind,
                "name": voice.name,
                "id": voice.id,
                "languages": voice.languages,
            }
            for voice in found
        ]
        print_json({"voices": rows})
        return
    width = max(len(voice.setting) for voice in found)
    for voice in found:
        print_text(printable(f"{voice.setting.ljust(width)}  {', '.join(voice.languages)}"))


def _found() -> "list[Voice]":
    """Return the voices. Without a speech engine, return those of piper if there are any."""
    from voxcli.tts.voices import list_voices

    found: list[Voice] = []
    try:
        found.extend(list_voices())
    except SpeechError as error:
        if not found:
            raise
        note(f"{error.message}; {error.hint}")
    return found


def _say(text: str, save: Path | None, settings: "Settings", *, as_json: bool) -> None:
    import threading

    from voxcli.app.parts import open_voice
    from voxcli.tts.voices import say

    with _speaker(save) as speaker, open_voice(settings) as synthesizer:
        started = speaker.position
        said = say(text, synthesizer, speaker, threading.Event())
        seconds = speaker.position - started
    if not said:
        raise ConfigError(f"there is nothing to say in {text!r}")
    path = str(save) if save else None
    if as_json:
        print_json({"voice": settings.voice, "said": said, "seconds": round(seconds, 3), "path": path})
    elif path:
        print_text(printable(path))


def _speaker(save: Path | None) -> "AbstractContextManager[Speaker]":
    if save:
        from voxcli.tts.wav_speaker import WavSpeaker

        return WavSpeaker(save)
    from voxcli.chat.devices.speaker import open_speaker

    return open_speaker()
