"""Gathers the checks of `voxcli doctor`: settings, engine, devices, voice, folders."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxcli.app import diagnostics as checks
from voxcli.app.diagnostics import Probe
from voxcli.app.parts import engine_options, load_settings, open_voice
from voxcli.errors import ConfigError, ModelError, VoxError

if TYPE_CHECKING:
    from voxcli.app.diagnostics import Finding
    from voxcli.config.loading import Settings
    from voxcli.engines.voxtral.device.hardware import Hardware


def probes(config: Path | None, flags: dict[str, Any]) -> Iterator[Probe]:
    """Yield the checks for the settings in force, in the order in which they are shown."""
    from voxcli.config.loading import Settings
    from voxcli.config.paths import config_file, data_folder

    def settings_file() -> "Finding":
        load_settings(config, flags)
        path = config or config_file()
        return checks.settings_file(path, os.path.exists(path))  # noqa: PTH110 - a Path raises where it may not look

    try:
        settings = load_settings(config, flags)
    except ConfigError:
        settings = Settings()  # the line "settings" reports it; the others check the defaults
    yield Probe("python", lambda: checks.python(sys.version_info[:3]))
    yield Probe("settings", settings_file)
    yield from _engine_probes(settings)
    yield Probe("devices", _devices, needed=False)
    yield Probe("voice", lambda: _voice(settings), needed=False)
    yield Probe("data", lambda: checks.folder(data_folder(), checks.DATA_BYTES), needed=False)
    yield Probe("permissions", lambda: checks.permissions(data_folder()), needed=False)


def _engine_probes(settings: "Settings") -> Iterator[Probe]:
    from voxcli.config.paths import cache_folder
    from voxcli.engines.embedded import weights
    from voxcli.engines.factory import looks_like_gpu, why_not_voxtral

    cache = cache_folder()
    prepared = weights.prepared(cache)
    missing = checks.missing_packages(checks.EMBEDDED_PACKAGES) + ([] if prepared else weights.missing_packages())
    here = _located(settings.model)
    hardware = _hardware(settings.device)
    memory = _memory_check(settings, hardware, here)
    why_not = why_not_voxtral(settings.device) or _why_not(memory)
    used = checks.engine_in_use(settings.engine, why_not, here)
    voxtral = used == "voxtral"
    lacking = checks.missing_packages(checks.VOXTRAL_PACKAGES)

    yield Probe("engine", lambda: checks.engine(settings.engine, used, why_not))
    if used == "remote":
        yield Probe("server", lambda: _server(settings))
    yield Probe(
        "torch", lambda: checks.torch_device(hardware, lacking, settings.device, gpu_present=looks_like_gpu()), voxtral
    )
    if hardware and not lacking:
        device = hardware.best if settings.device == "auto" else settings.device
        yield Probe("acceleration", lambda: _acceleration(device, settings, cache), needed=False)
    if memory:
        yield Probe("memory", memory, voxtral)
    yield Probe("checkpoint", lambda: _checkpoint(settings.model), voxtral)
    yield Probe("embedded", lambda: _embedded(prepared, missing), used == "embedded")
    needed_bytes = 0 if prepared else weights.TOTAL_BYTES
    yield Probe("cache", lambda: checks.folder(cache, needed_bytes), used == "embedded" and not prepared)


def _hardware(device: str) -> "Hardware | None":
    """Return the hardware that torch finds; None without torch."""
    from voxcli.engines.voxtral.device.hardware import look

    try:
        return look(device)
    except ModelError:
        return None


def _memory_check(
    settings: "Settings", hardware: "Hardware | None", here: Path | None
) -> Callable[[], "Finding"] | None:
    """Return the check that the model fits in memory; None without torch, or if its size is unknown."""
    from voxcli.engines.factory import demand_here
    from voxcli.engines.voxtral.device.placement import Wanted

    if hardware is None:
        return None
    wanted = Wanted(settings.device, settings.quantize, settings.session.context_tokens, settings.reply.max_tokens)
    try:
        needs = demand_here(settings.model, here)
    except VoxError:  # the line "checkpoint" says why
        return None
    return partial(checks.memory, hardware, wanted, needs) if needs else None


def _why_not(check: Callable[[], "Finding"] | None) -> str:
    try:
        if check:
            check()
    except VoxError as error:
        return error.message
    return ""


def _server(settings: "Settings") -> "Finding":
    """Ask the server for its models, without generating anything."""
    from voxcli.engines.factory import find_server

    server = find_server(engine_options(settings).remote, settings.remote.url)
    from voxcli.engines.openai.engine import list_models
    from voxcli.engines.openai.errors import NoModelListError
    from voxcli.engines.openai.server import WRONG_VOXTRAL

    model = settings.remote.model
    try:
        listed = list_models(server)
    except NoModelListError as error:
        return checks.Finding(False, error.message, error.hint, blocks=not model)
    return checks.server(model, listed.names, WRONG_VOXTRAL if listed.from_llama_cpp else "", server.way)


def _acceleration(device: str, settings: "Settings", cache: Path) -> "Finding":
    """Try a small computation at each level of acceleration."""
    from voxcli.engines.voxtral.runtime import acceleration

    backends = acceleration.Backends.of(device.partition(":")[0])
    return checks.acceleration(*acceleration.try_out(backends, device, settings.voxtral.acceleration, cache))


def _embedded(prepared: Path | None, missing: list[str]) -> "Finding":
    from voxcli.engines.embedded import engine, weights

    if not missing:
        engine.check_libraries()
    return checks.embedded(prepared, missing, weights.INSTALL)


def _located(model: str) -> Path | None:
    from voxcli.engines.voxtral.checkpoint import catalog

    try:
        return catalog.locate(model)
    except ModelError:
        return None  # the line "checkpoint" says why


def _checkpoint(model: str) -> "Finding":
    from voxcli.engines.voxtral.checkpoint import catalog, hub_cache, kinds

    here = catalog.locate(model)
    name = catalog.resolve(model)
    size = next((known.bytes for known in kinds.KNOWN.values() if known.repo_id == name), 0)
    try:
        hub = hub_cache.Hub().folder()
    except ImportError:  # the line "torch" names the package
        hub = Path.home()
    return checks.checkpoint(model, here, size, checks.free_bytes(hub), hub)


def _devices() -> "Finding":
    from voxcli.chat.devices.portaudio import input_devices, output_devices

    names = [
        [device.name for device in sorted(devices, key=lambda device: not device.is_default)]
        for devices in (output_devices(), input_devices())
    ]
    return checks.devices(*names)


def _voice(settings: "Settings") -> "Finding":
    """Let the voice say a word, because a voice that is listed may still not speak."""
    with open_voice(settings) as synthesizer:
        seconds = sum(clip.seconds for clip in synthesizer.synthesize("Ready."))
    return checks.voice(settings.voice, seconds)
