"""`voxcli voices`: lists voices, and speaks or saves a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface.common import (
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

OTHER = "other"  # heads the voices that name no language

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from voxcli.config.loading import Settings
    from voxcli.core.protocols import Speaker
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
    speed: Annotated[
        int | None, typer.Option("--speed", metavar="WPM", help="Speed of the voice, in words per minute.")
    ] = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """List the voices by language, or try one."""
    from voxcli.config.loading import load

    if say is None:
        if save or speed is not None:
            flag = "--save" if save else "--speed"
            raise ConfigError(f"{flag} needs --say", hint='voxcli voices --say "Hello there." --save hello.wav')
        _list(load(config, given(voice=voice)).voice, as_json=json)
        return
    from voxcli.output_files import OutputFiles

    check_stdin(say, config)
    if save:
        files = OutputFiles(force=force)
        files.add_inputs(files_read(config, {}))
        files.check(save, "--save")
    flags = {"speech.words_per_minute": speed} if speed is not None else {}
    _say(text_or_stdin(say), save, load(config, given(voice=voice) | flags), as_json=json)


def _list(setting: str, *, as_json: bool) -> None:
    from voxcli.tts.voices import is_chosen, resolved

    found = _found()
    chosen = next((voice for voice in found if is_chosen(voice, resolved(setting))), None)
    if as_json:
        rows = [
            {
                "voice": voice.setting,
                "kind": voice.kind,
                "name": voice.name,
                "id": voice.id,
                "languages": voice.languages,
                "default": voice is chosen,
            }
            for voice in found
        ]
        print_json({"voices": rows})
        return
    width = max(len(voice.setting) for voice in found)
    for language, group in _by_language(found, chosen):
        print_text(printable(language))
        for voice in group:
            mark = "  the default" if voice is chosen else ""
            print_text(printable(f"  {voice.setting.ljust(width)}  {', '.join(voice.languages)}{mark}"))


def _by_language(found: "Sequence[Voice]", chosen: "Voice | None") -> "list[tuple[str, list[Voice]]]":
    """Return the voices by the code of their first language: that of the default first, then by the alphabet."""
    groups: dict[str, list[Voice]] = {}
    for voice in found:
        groups.setdefault(voice.language or OTHER, []).append(voice)
    first = chosen.language if chosen else ""
    return sorted(groups.items(), key=lambda group: (group[0] != first, group[0] == OTHER, group[0]))


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
    from voxcli.tts.voices import resolved, say

    with _speaker(save) as speaker, open_voice(settings) as synthesizer:
        started = speaker.position
        said = say(text, synthesizer, speaker, threading.Event())
        seconds = speaker.position - started
    if not said:
        raise ConfigError(f"there is nothing to say in {text!r}")
    path = str(save) if save else None
    if as_json:
        print_json({"voice": resolved(settings.voice), "said": said, "seconds": round(seconds, 3), "path": path})
    elif path:
        print_text(printable(path))


def _speaker(save: Path | None) -> "AbstractContextManager[Speaker]":
    if save:
        from voxcli.tts.wav_speaker import WavSpeaker

        return WavSpeaker(save)
    from voxcli.chat.devices.speaker import open_speaker

    return open_speaker()
