"""`voxcli doctor`: whether `voxcli once` would work here, and what mends what would not."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from voxcli.cli.common import (
    ConfigFlag,
    DeviceFlag,
    EngineFlag,
    InstructionsFlag,
    JsonFlag,
    ModelFlag,
    UrlFlag,
    VerboseFlag,
    VoiceFlag,
    given,
)
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.config import Settings
    from voxcli.doctor import Check, Finding, Probe

MARKS = {"ok": "\N{CHECK MARK}", "warn": "!", "fail": "\N{BALLOT X}"}
ASCII_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(
    engine: EngineFlag = None,
    url: UrlFlag = None,
    model: ModelFlag = None,
    device: DeviceFlag = None,
    instructions: InstructionsFlag = None,
    voice: VoiceFlag = None,
    config: ConfigFlag = None,
    json_: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Check what `voxcli once` needs; the exit code is 0 only if it would work."""
    from voxcli.doctor import examine, would_work

    flags = given(engine=engine, url=url, model=model, device=device, instructions=instructions, voice=voice)
    checks = examine(_probes(config, flags))
    well = would_work(checks)
    if json_:
        typer.echo(json.dumps({"ok": well, "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            typer.echo(_line(check, sys.stdout.encoding or "ascii"))
    raise typer.Exit(0 if well else 1)


def _line(check: "Check", encoding: str) -> str:
    """Return the line of a check, in characters that `encoding` has."""
    mark = (MARKS if encoding.lower().replace("-", "") == "utf8" else ASCII_MARKS)[check.state]
    mend = f" -> {check.mend}" if check.mend else ""
    line = printable(f"{mark} {check.name:<12} {check.found}{mend}")
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _probes(config: Path | None, flags: dict[str, Any]) -> "Iterator[Probe]":
    from voxcli import doctor as checks
    from voxcli.cli.parts import load_settings
    from voxcli.config import Settings
    from voxcli.doctor import Probe
    from voxcli.errors import ConfigError
    from voxcli.paths import config_file, data_folder

    def settings_file() -> "Finding":
        load_settings(config, flags)
        path = config or config_file()
        return checks.settings_file(path, path.exists())

    try:
        settings = load_settings(config, flags)
    except ConfigError:
        settings = Settings()  # its own line says so; the others tell of the defaults
    yield Probe("python", lambda: checks.python(sys.version_info[:3]))
    yield Probe("settings", settings_file)
    yield from _engine_probes(settings)
    yield Probe("devices", _devices, needed=False)
    yield Probe("voice", lambda: _voice(settings), needed=False)
    yield Probe("data", lambda: checks.folder(data_folder(), checks.DATA_BYTES), needed=False)
    yield Probe("permissions", lambda: checks.permissions(data_folder()), needed=False)


def _engine_probes(settings: "Settings") -> "Iterator[Probe]":
    from voxcli import doctor as checks
    from voxcli.doctor import Probe
    from voxcli.engines import accelerator, weights
    from voxcli.engines.choice import looks_like_gpu, why_not_voxtral
    from voxcli.paths import cache_folder

    cache = cache_folder()
    prepared = weights.prepared(cache)
    missing = checks.missing_packages(checks.EMBEDDED_PACKAGES) + ([] if prepared else weights.missing_packages())
    here = _located(settings.model)
    why_no_gpu = why_not_voxtral(settings.device)
    used = checks.engine_in_use(settings.engine, why_no_gpu, here)
    voxtral = used == "voxtral"
    gpu = accelerator.probe()
    lacking = checks.missing_packages(checks.VOXTRAL_PACKAGES)

    yield Probe("engine", lambda: checks.engine(settings.engine, used, why_no_gpu))
    if used == "remote":
        yield Probe("server", lambda: _server(settings))
    yield Probe(
        "torch", lambda: checks.torch_device(gpu, lacking, settings.device, gpu_present=looks_like_gpu()), voxtral
    )
    if gpu and not lacking:
        device = gpu.kind if settings.device == "auto" else settings.device
        yield Probe("acceleration", lambda: _acceleration(device, settings, cache), needed=False)
    if gpu and here and settings.device != "cpu":
        yield Probe("gpu memory", lambda: checks.gpu_memory(gpu, checks.weight_bytes(here)), voxtral)
    yield Probe("checkpoint", lambda: _checkpoint(settings.model), voxtral)
    yield Probe("embedded", lambda: _embedded(prepared, missing), used == "embedded")
    needed_bytes = 0 if prepared else weights.TOTAL_BYTES
    yield Probe("cache", lambda: checks.folder(cache, needed_bytes), used == "embedded" and not prepared)


def _server(settings: "Settings") -> "Finding":
    """Ask the server for its models: nothing is generated."""
    from voxcli import doctor as checks
    from voxcli.cli.parts import engine_options
    from voxcli.engines.choice import find_server

    server = find_server(engine_options(settings).remote, settings.remote.url)
    from voxcli.engines.remote import list_models

    return checks.server(settings.remote.model, list_models(server))


def _acceleration(device: str, settings: "Settings", cache: Path) -> "Finding":
    """Try a small computation at each level."""
    from voxcli import doctor as checks
    from voxcli.engines import fast_path

    backends = fast_path.Backends.of(device)
    return checks.acceleration(*fast_path.try_out(backends, device, settings.voxtral.acceleration, cache))


def _embedded(prepared: Path | None, missing: list[str]) -> "Finding":
    from voxcli import doctor as checks
    from voxcli.engines import embedded, weights

    if not missing:
        embedded.check_libraries()
    return checks.embedded(prepared, missing, weights.INSTALL)


def _located(model: str) -> Path | None:
    from voxcli.engines import checkpoints
    from voxcli.errors import ModelError

    try:
        return checkpoints.locate(model)
    except ModelError:
        return None  # the line about the checkpoint tells why


def _checkpoint(model: str) -> "Finding":
    from voxcli import doctor as checks
    from voxcli.engines import checkpoints

    here = checkpoints.locate(model)
    name = checkpoints.resolve(model)
    size = next((known.bytes for known in checkpoints.KNOWN.values() if known.repo_id == name), 0)
    try:
        hub = checkpoints.Hub().folder()
    except ImportError:  # the line about torch names the package
        hub = Path.home()
    return checks.checkpoint(model, here, size, checks.free_bytes(hub), hub)


def _devices() -> "Finding":
    from voxcli import doctor as checks
    from voxcli.live.devices import input_devices, output_devices

    names = [
        [device.name for device in sorted(devices, key=lambda device: not device.is_default)]
        for devices in (output_devices(), input_devices())
    ]
    return checks.devices(*names)


def _voice(settings: "Settings") -> "Finding":
    """Let the voice say a word: a voice that is listed may still not speak."""
    from voxcli import doctor as checks
    from voxcli.speech.voices import open_synthesizer

    speech = settings.speech
    with open_synthesizer(
        settings.voice, words_per_minute=speech.words_per_minute, timeout_seconds=speech.timeout_seconds
    ) as synthesizer:
        seconds = sum(clip.seconds for clip in synthesizer.synthesize("Ready."))
    return checks.voice(settings.voice, seconds)
