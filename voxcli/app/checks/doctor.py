"""Gathers the checks of `voxcli doctor`: settings, engine, devices, voice, folders."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxcli.app.checks import diagnostics as checks
from voxcli.app.checks.verdict import COMMANDS, Command, Finding, Probe
from voxcli.app.microphone import no_access, run_query, why_silent
from voxcli.app.parts import engine_options, load_settings, open_voice
from voxcli.app.tools import broken_tools, has_tools
from voxcli.errors import ConfigError, ModelError, VoxError

if TYPE_CHECKING:
    from voxcli.chat.speech.turn_detector import Setting
    from voxcli.config.loading import Settings
    from voxcli.engines.voxtral.device.hardware import Hardware

LEVEL_SECONDS = 0.2  # over which the microphone's level is measured


def probes(config: Path | None, flags: dict[str, Any], progress: Callable[[str], None]) -> Iterator[Probe]:
    """Yield the checks for the settings in force, in the order in which they are shown.

    Args:
        progress: told what is looked at between two checks, where that takes long.
    """
    from voxcli.config.loading import Settings
    from voxcli.config.paths import cache_folder, config_file, data_folder

    def settings_file() -> Finding:
        load_settings(config, flags)
        path = config or config_file()
        return checks.settings_file(path, os.path.exists(path))  # noqa: PTH110 - a Path raises where it may not look

    try:
        settings = load_settings(config, flags)
    except ConfigError:
        settings = Settings()  # the line "settings" reports it; the others check the defaults
    yield Probe("python", lambda: checks.python(sys.version_info[:3]))
    yield Probe("settings", settings_file)
    yield from _engine_probes(settings, progress)
    yield Probe("devices", lambda: _devices(settings), needed_by=("chat",))
    yield Probe("microphone", lambda: _microphone(settings), needed_by=("chat",))
    yield Probe("echo", lambda: _echo(settings.live.echo), needed_by=("chat",))
    if settings.live.wake_word != "off":
        yield Probe("wake-word", lambda: _wake_word(settings), needed_by=("chat",))
    turns = settings.live.end_of_turn
    needed_by: tuple[Command, ...] = ("chat",) if turns == "smart-turn" else ()
    yield Probe("end-of-turn", lambda: _end_of_turn(turns, cache_folder()), needed_by)
    yield Probe("voice", lambda: _voice(settings), needed_by=("chat",))
    if has_tools(settings):
        yield Probe("tools", lambda: _tools(settings), needed_by=())
    yield Probe("data", lambda: checks.folder(data_folder(), checks.DATA_BYTES), needed_by=())
    yield Probe("permissions", lambda: checks.permissions(data_folder()), needed_by=())


def _engine_probes(settings: "Settings", progress: Callable[[str], None]) -> Iterator[Probe]:
    from voxcli.engines.factory import looks_like_gpu, why_not_voxtral

    here, hardware, gpu_present = _located(settings.model), None, looks_like_gpu()
    may_be_voxtral = settings.engine == "voxtral" or (settings.engine == "auto" and gpu_present)
    if may_be_voxtral:
        progress("torch")  # importing it takes seconds
        hardware = _hardware(settings.device)
    memory = _memory_check(settings, hardware, here)
    why_not = why_not_voxtral(settings.device) or _why_not(memory) if settings.engine == "auto" else ""
    used = checks.engine_in_use(settings.engine, why_not, here)

    yield Probe("engine", lambda: checks.engine(settings.engine, used, why_not))
    large = bool(settings.embedded.answer_model)
    yield Probe("language", lambda: checks.language(used, settings.remote.model, _system_language(), large=large))
    if used == "remote":
        yield Probe("server", lambda: _server(settings))
    yield Probe("gpu", lambda: checks.gpu(hardware, present=gpu_present))
    if may_be_voxtral:
        yield from _voxtral_probes(settings, hardware, memory, COMMANDS if used == "voxtral" else ())
    else:
        yield Probe("torch", lambda: checks.not_used(used, _installed("torch")))
        yield Probe("checkpoint", lambda: checks.not_used(used, f"{settings.model} is {'' if here else 'not '}here"))
    yield from _embedded_probes(COMMANDS if used == "embedded" else ())
    if used == "embedded":
        yield Probe("models", lambda: _models(settings))


def _voxtral_probes(
    settings: "Settings",
    hardware: "Hardware | None",
    memory: Callable[[], Finding] | None,
    needed_by: tuple[Command, ...],
) -> Iterator[Probe]:
    from voxcli.config.paths import cache_folder
    from voxcli.engines.factory import looks_like_gpu

    lacking = checks.missing_packages(checks.VOXTRAL_PACKAGES)
    yield Probe(
        "torch",
        lambda: checks.torch_device(hardware, lacking, settings.device, gpu_present=looks_like_gpu()),
        needed_by,
    )
    if hardware and not lacking:
        device = hardware.best if settings.device == "auto" else settings.device
        yield Probe("acceleration", lambda: _acceleration(device, settings, cache_folder()), needed_by=())
    if memory:
        yield Probe("memory", memory, needed_by)
    yield Probe("checkpoint", lambda: _checkpoint(settings.model), needed_by)


def _embedded_probes(needed_by: tuple[Command, ...]) -> Iterator[Probe]:
    from voxcli.config.paths import cache_folder
    from voxcli.engines.embedded import weights

    cache = cache_folder()
    prepared = weights.prepared(cache)
    missing = checks.missing_packages(checks.EMBEDDED_PACKAGES) + ([] if prepared else weights.missing_packages())
    yield Probe("embedded", lambda: _embedded(prepared, missing, needed=bool(needed_by)), needed_by)
    needed_bytes = 0 if prepared else weights.TOTAL_BYTES
    yield Probe("cache", lambda: checks.folder(cache, needed_bytes), () if prepared else needed_by)


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"


def _system_language() -> str:
    """Return the language of the system's texts, such as "de"; empty if unknown."""
    named = (os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return re.split(r"[_.@]", next(filter(None, named), ""))[0].lower()


def _hardware(device: str) -> "Hardware | None":
    """Return the hardware that torch finds; None without torch."""
    from voxcli.engines.voxtral.device.hardware import look

    try:
        return look(device)
    except ModelError:
        return None


def _memory_check(settings: "Settings", hardware: "Hardware | None", here: Path | None) -> Callable[[], Finding] | None:
    """Return the check that the model fits in memory; None without torch, or if its size is unknown."""
    from voxcli.engines.factory import demand_here
    from voxcli.engines.voxtral.device.demand import ASIDE_TOKENS
    from voxcli.engines.voxtral.device.placement import Wanted

    if hardware is None:
        return None
    after_prompt = settings.reply.max_tokens + ASIDE_TOKENS
    wanted = Wanted(settings.device, settings.quantize, settings.session.context_tokens, after_prompt)
    try:
        needs = demand_here(settings.model, here)
    except VoxError:  # the line "checkpoint" says why
        return None
    return partial(checks.memory, hardware, wanted, needs) if needs else None


def _why_not(check: Callable[[], Finding] | None) -> str:
    try:
        if check:
            check()
    except VoxError as error:
        return error.message
    return ""


def _server(settings: "Settings") -> Finding:
    """Ask the server for its models, without generating anything."""
    from voxcli.engines.factory import find_server

    server = find_server(engine_options(settings).remote, settings.remote.url)
    from voxcli.engines.openai.engine import list_models
    from voxcli.servers.errors import NoModelListError
    from voxcli.servers.server import WRONG_VOXTRAL

    model = settings.remote.model
    try:
        listed = list_models(server)
    except NoModelListError as error:
        return Finding(False, error.message, error.hint, blocks=not model)
    return checks.server(model, listed.names, WRONG_VOXTRAL if listed.from_llama_cpp else "", server.way)


def _acceleration(device: str, settings: "Settings", cache: Path) -> Finding:
    """Try a small computation at each level of acceleration."""
    from voxcli.engines.voxtral.runtime import acceleration

    backends = acceleration.Backends.of(device.partition(":")[0])
    return checks.acceleration(*acceleration.try_out(backends, device, settings.voxtral.acceleration, cache))


def _embedded(prepared: Path | None, missing: list[str], *, needed: bool) -> Finding:
    from voxcli.engines.embedded import libraries, weights

    if needed and not missing:  # importing them takes most of a second
        libraries.check_libraries()
    return checks.embedded(prepared, missing, weights.INSTALL)


def _models(settings: "Settings") -> Finding:
    """Check the models that the settings choose for the embedded engine."""
    from voxcli.engines.embedded import chosen
    from voxcli.engines.embedded.gguf import check_answers, read_header
    from voxcli.engines.embedded.recommended import recommended
    from voxcli.engines.voxtral.device.ram import ram_free_bytes

    chosen.whisper(settings.embedded.whisper)
    if path := chosen.answer_model(settings.embedded.answer_model):
        check_answers(path, read_header(path))
    pair = recommended(ram_free_bytes(), os.cpu_count() or 1)
    return checks.models(settings.embedded.whisper, settings.embedded.answer_model, pair)


def _located(model: str) -> Path | None:
    from voxcli.engines.voxtral.checkpoint import catalog

    try:
        return catalog.locate(model)
    except ModelError:
        return None  # the line "checkpoint" says why


def _checkpoint(model: str) -> Finding:
    from voxcli.engines.voxtral.checkpoint import catalog, kinds
    from voxcli.hub.cache import Hub

    here = catalog.locate(model)
    name = catalog.resolve(model)
    size = next((known.bytes for known in kinds.KNOWN.values() if known.repo_id == name), 0)
    try:
        hub = Hub().folder()
    except ImportError:  # the line "torch" names the package
        hub = Path.home()
    return checks.checkpoint(model, here, size, checks.free_bytes(hub), hub)


def _devices(settings: "Settings") -> Finding:
    from voxcli.chat.devices.portaudio import find_device, input_devices, output_devices

    outputs = [find_device("output", settings.live.output_device or None).name] if output_devices() else []
    inputs = [find_device("input", settings.live.input_device or None).name] if input_devices() else []
    return checks.devices(outputs, inputs, no_access())


def _microphone(settings: "Settings") -> Finding:
    """Measure the level of the microphone."""
    from voxcli.chat.devices.calibration import levels
    from voxcli.chat.devices.echo_path import PUSH_TO_TALK_NOISE_DBFS
    from voxcli.chat.devices.microphone import Microphone
    from voxcli.chat.devices.portaudio import find_device, input_devices

    if not input_devices():
        return Finding(False, "there is no input device", "connect a microphone, or type: voxcli chat --text")
    with closing(Microphone(find_device("input", settings.live.input_device or None))) as microphone:
        *_, level = islice(levels(microphone, LEVEL_SECONDS), 2)  # the first may be what a device gives at its start
    silence = why_silent(run_query) if level.is_zero else ("", "")
    return checks.microphone(level.dbfs, is_zero=level.is_zero, silence=silence, noisy_dbfs=PUSH_TO_TALK_NOISE_DBFS)


def _echo(setting: str) -> Finding:
    from voxcli.chat.speech.echo import load_audio_processing

    installed = not checks.missing_packages(["livekit"])
    if installed and setting != "off":
        load_audio_processing()
    return checks.echo(setting, installed=installed)


def _wake_word(settings: "Settings") -> Finding:
    """Load the wake word's model, as a chat does."""
    from voxcli.app.listening import open_sleep

    open_sleep(settings, lambda _message: None)
    return Finding(True, settings.live.wake_word)


def _end_of_turn(setting: "Setting", cache: Path) -> Finding:
    from voxcli.chat.speech import turn_detector, turn_model

    model = turn_detector.find_model(setting, cache)
    if model:
        turn_detector.TurnDetector(model)
    return checks.end_of_turn(setting, here=model is not None, pull=turn_model.PULL)


def _tools(settings: "Settings") -> Finding:
    """Look for the programs of tools, and start the MCP servers."""
    return checks.tools(broken_tools(settings))


def _voice(settings: "Settings") -> Finding:
    """Let the voice say a word, because a voice that is listed may still not speak."""
    from voxcli.tts.voices import resolved

    name = resolved(settings.voice)
    with open_voice(settings.model_copy(update={"voice": name})) as synthesizer:
        seconds = sum(clip.seconds for clip in synthesizer.synthesize("Ready."))
    return checks.voice(name if name == settings.voice else f"{settings.voice}: {name}", seconds)
