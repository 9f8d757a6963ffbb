"""`voxcli devices`: lists microphones and loudspeakers, shows levels, measures echo."""

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.interface.common import (
    ConfigFlag,
    InputDeviceFlag,
    JsonFlag,
    OutputDeviceFlag,
    VerboseFlag,
    given,
    note,
    print_json,
    print_text,
)
from voxcli.errors import ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.chat.devices.calibration import Level
    from voxcli.chat.devices.portaudio import Device
    from voxcli.config.loading import Settings

METER_SECONDS = 0.1  # between levels on a terminal
LINE_SECONDS = 1.0  # between levels elsewhere
ZERO_SECONDS = 3.0  # So many seconds of zeros are reported.
METER_DBFS = 60  # range of the bar
METER_WIDTH = 30
ADVICE = {
    "full-duplex": "talk at any time, even during a reply",
    "half-duplex": 'don\'t talk during a reply: set echo = "off" in [live]',
    "check-microphone": "it delivers only zeros: unmute it, or permit recording in the system's settings",
    "push-to-talk": "it is too loud here to find speech: voxcli chat --push-to-talk toggle",
}


def devices(
    meter: Annotated[bool, typer.Option("--meter", help="Show the level of the microphone until Ctrl-C.")] = False,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="Play a chirp, measure delay, echo and noise, and give advice.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="N", min=0.1, help="End --meter after N seconds.")
    ] = None,
    reset_pauses: Annotated[
        bool,
        typer.Option("--reset-pauses", help="Forget how long you pause: the silence that ends a turn is learned anew."),
    ] = False,
    input_device: InputDeviceFlag = None,
    output_device: OutputDeviceFlag = None,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """List the audio devices, or test them."""
    if meter + loopback + reset_pauses > 1:
        names = "--meter, --loopback and --reset-pauses" if reset_pauses else "--meter and --loopback"
        raise ConfigError(f"{names} exclude each other", hint="voxcli devices --loopback")
    if seconds is not None and not meter:
        raise ConfigError("--seconds needs --meter", hint="voxcli devices --meter --seconds 10")
    if reset_pauses:
        _reset_pauses(as_json=json)
        return
    if not (meter or loopback):
        _list(as_json=json)
        return
    from voxcli.config.loading import load

    asked = {"live.input_device": input_device, "live.output_device": output_device}
    settings = load(config, given(**asked))
    if meter:
        _meter(settings, seconds, as_json=json)
    else:
        _loopback(settings, as_json=json)


def _list(*, as_json: bool) -> None:
    from voxcli.chat.devices.portaudio import input_devices, output_devices

    found = {"inputs": input_devices(), "outputs": output_devices()}
    if as_json:
        print_json({kind: [_row(device) for device in listed] for kind, listed in found.items()})
        return
    width = max((len(printable(device.name)) for listed in found.values() for device in listed), default=0)
    for kind, listed in found.items():
        print_text(f"{kind}:" if listed else f"{kind}: none")
        for device in listed:
            mark = "*" if device.is_default else " "
            name = printable(device.name).ljust(width)
            about = f"{device.channels:>3} channels  {device.sample_rate:>6} Hz  {printable(device.host_api)}"
            print_text(f" {mark}{device.index:>3}  {name}  {about}")


def _reset_pauses(*, as_json: bool) -> None:
    from voxcli.chat.speech.learned_pauses import FILE_NAME, forget_pauses
    from voxcli.config.paths import data_folder

    try:
        number = forget_pauses(data_folder())
    except OSError as error:
        path = printable(str(data_folder() / FILE_NAME))
        raise ConfigError(f"can't remove {path}: {error.strerror}", hint="remove it yourself") from error
    if as_json:
        print_json({"microphones_forgotten": number})
    else:
        print_text(f"forgot the pauses of {number} microphone{'' if number == 1 else 's'}")


def _row(device: "Device") -> dict[str, object]:
    return {
        "index": device.index,
        "name": device.name,
        "channels": device.channels,
        "sample_rate": device.sample_rate,
        "host_api": device.host_api,
        "default": device.is_default,
    }


def _meter(settings: "Settings", seconds: float | None, *, as_json: bool) -> None:
    from itertools import islice

    from voxcli.chat.devices.calibration import levels
    from voxcli.chat.devices.microphone import SILENT_MICROPHONE, Microphone
    from voxcli.chat.devices.portaudio import find_device

    redrawn = not as_json and sys.stdout.isatty()
    every = METER_SECONDS if redrawn else min(LINE_SECONDS, seconds or LINE_SECONDS)
    with closing(Microphone(find_device("input", settings.live.input_device or None))) as microphone:
        count = None if seconds is None else max(1, round(seconds / every))
        zero_seconds = 0.0
        for level in islice(levels(microphone, every), count):
            _show(level, as_json=as_json, redrawn=redrawn)
            before, zero_seconds = zero_seconds, zero_seconds + every if level.is_zero else 0.0
            if before < ZERO_SECONDS <= zero_seconds:
                if redrawn:
                    print_text("")
                note(SILENT_MICROPHONE)
    if redrawn:
        print_text("")


def _show(level: "Level", *, as_json: bool, redrawn: bool) -> None:
    if as_json:
        print_json({"level_dbfs": round(level.dbfs, 1), "peak_dbfs": round(level.peak_dbfs, 1)})
        return
    filled = round(max(0.0, 1 + level.dbfs / METER_DBFS) * METER_WIDTH)
    bar = ("#" * filled).ljust(METER_WIDTH)
    line = f"[{bar}] {level.dbfs:6.1f} dBFS, peak {level.peak_dbfs:6.1f}"
    print_text(f"\r{line}" if redrawn else line, "" if redrawn else "\n")


def _loopback(settings: "Settings", *, as_json: bool) -> None:
    from importlib.util import find_spec

    from voxcli.chat.devices.calibration import measure
    from voxcli.chat.devices.microphone import Microphone
    from voxcli.chat.devices.portaudio import find_device
    from voxcli.chat.devices.speaker import open_speaker

    canceller = settings.live.echo != "off" and find_spec("livekit") is not None
    input_device = find_device("input", settings.live.input_device or None)
    with open_speaker(settings.live.output_device or None) as speaker, closing(Microphone(input_device)) as microphone:
        found = measure(microphone, speaker)
    advice = found.advice(canceller=canceller)
    if as_json:
        record = {"input": input_device.name, "output": speaker.device.name, "canceller": canceller, "advice": advice}
        measured = {"delay_ms": found.delay_ms, "echo_db": found.echo_db, "noise_dbfs": found.noise_dbfs}
        rounded = {name: None if value is None else round(value, 1) for name, value in measured.items()}
        print_json(record | rounded)
        return
    if found.is_zero:
        print_text("echo:   not known; the microphone delivers only zeros")
    elif found.delay_ms is None or found.echo_db is None:
        print_text("echo:   none; the microphone does not hear the loudspeaker")
    else:
        print_text(f"delay:  {found.delay_ms:.0f} ms from the loudspeaker to the microphone")
        print_text(f"echo:   {found.echo_db:.1f} dB of what is played comes back")
    print_text(f"noise:  {found.noise_dbfs:.1f} dBFS")
    print_text(f"advice: {advice}: {ADVICE[advice]}")
