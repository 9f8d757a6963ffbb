"""Chooses an engine and opens it.

With `auto`, the embedded engine is opened where Voxtral can't be: without a GPU, with too little memory, without
a checkpoint, or after any failure to load it. A checkpoint that can't fit is never downloaded.
"""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxcli.core.protocols import Engine
from voxcli.engines.embedded import weights
from voxcli.engines.voxtral.checkpoint import catalog, files, shapes
from voxcli.engines.voxtral.checkpoint.model_card import GREEDY, VOXTRAL, is_voxtral, long_context
from voxcli.engines.voxtral.device import hardware, placement
from voxcli.engines.voxtral.device.demand import ASIDE_TOKENS, Demand, demand, demand_of
from voxcli.engines.voxtral.device.formats import Asked
from voxcli.engines.voxtral.device.hardware import Hardware
from voxcli.engines.voxtral.device.placement import Placement, Wanted
from voxcli.errors import ConfigError, ModelError, RemoteError, VoxError
from voxcli.hub.cache import Hub
from voxcli.printable import first_line

if TYPE_CHECKING:
    from voxcli.engines.openai.engine import RemoteEngine
    from voxcli.engines.openai.pool import RemotePool
    from voxcli.engines.voxtral.engine import VoxtralEngine
    from voxcli.servers.server import Server

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # done and total: bytes of a download, steps of a warm-up


@dataclass(frozen=True)
class RemoteOptions:
    """A user's settings for a server; `voxcli.config.schema` explains the numbers."""

    url: str = ""
    model: str = ""  # empty: the server's only model
    audio_style: Literal["object", "string"] = "object"
    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    token_seconds: float = 20.0
    retries: int = 3


@dataclass(frozen=True)
class EngineOptions:
    """A user's settings for the engine."""

    engine: Literal["auto", "voxtral", "embedded", "remote"]
    model: str  # short name, hub id or folder
    device: str  # auto, cuda, cuda:N, mps or cpu
    instructions: str  # Instructions of the next session.
    max_reply_tokens: int
    temperature: float | None  # 0 is greedy; None for the model's default
    top_p: float | None  # None for the model's default
    context_tokens: int  # most tokens of the prompt, without the reply
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    quantize: Asked = "auto"  # format of the voxtral engine's large matrices
    acceleration: Literal["auto", "compiled", "graphs", "none"] = "auto"  # CUDA alone.
    slots: int = 1  # replies that the voxtral engine generates at once; 0: as many as suit the device
    items: int = 0  # number of replies to come, if `slots` is not 1; 0: unknown
    language: str = "auto"  # code of the language of all clips, for the embedded engine; auto: detected in each
    answer_model: str = ""  # GGUF file that answers in the embedded engine; empty for the one that comes with it
    whisper: str = "base"  # size or folder of the embedded engine's Whisper
    understood: bool = False  # the engine will be asked what it understood


def _ignore(_done: int, _total: int) -> None:
    """Ignore progress."""


def _loaded_embedded(**options: Any) -> Engine:
    from voxcli.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine.load(**options)


def _loaded_voxtral(**options: Any) -> "VoxtralEngine":
    from voxcli.engines.voxtral.engine import VoxtralEngine

    return VoxtralEngine.load(**options)


def looks_like_gpu() -> bool:
    """Return whether this machine may have a GPU, without importing torch, which takes seconds."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.name == "nt":
        return find_library("nvcuda") is not None
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


@dataclass(frozen=True)
class Surroundings:
    """The outside world of opening an engine; tests replace it."""

    looks_like_gpu: Callable[[], bool] = looks_like_gpu
    look: Callable[[str], Hardware] = hardware.look  # takes the value of `--device`
    hub: Hub = field(default_factory=Hub)
    prepare_weights: Callable[..., Path] = weights.prepare  # of the embedded engine
    load_embedded: Callable[..., Engine] = _loaded_embedded
    load_voxtral: Callable[..., "VoxtralEngine"] = _loaded_voxtral


HERE = Surroundings()


def open_engine(
    options: EngineOptions,
    cache: Path,
    notice: Notice,
    fetching: Progress = _ignore,
    warming: Progress = _ignore,
    around: Surroundings = HERE,
) -> Engine:
    """Choose and load an engine, downloading a checkpoint if needed.

    Args:
        cache: folder of the embedded engine's weights and the voxtral engine's compiled kernels.
        notice: receives a line about the chosen engine and the reason.
        fetching: called while a checkpoint is downloaded.
        warming: called while the voxtral engine compiles and captures the work of a turn.

    Raises:
        ModelError: the wanted engine can't be opened.
        RemoteError: the server does not answer.
        ConfigError: an invalid address or key of a server; no such device; a format that it does not support.
    """
    if options.engine == "remote":
        return open_server(options, options.remote.url, notice)
    if options.engine == "embedded":
        return _open_embedded(options, cache, notice, around, why="")
    if options.engine == "voxtral":
        return _open_voxtral(options, cache, notice, fetching, warming, around)
    why = why_not_voxtral(options.device, around)
    if not why:
        try:
            return _open_voxtral(options, cache, notice, fetching, warming, around)
        except ConfigError:  # the user has to correct a flag
            raise
        except VoxError as error:
            why = str(error)
    return _open_embedded(options, cache, notice, around, why)  # The failed model is freed by now.


def named_engine(options: EngineOptions) -> tuple[str | None, str | None]:
    """Return the names of engine and model that records will have; None for what is known only once it is opened.

    Raises:
        ModelError: there can be no such model.
    """
    if options.engine == "embedded":
        from voxcli.engines.embedded import chosen
        from voxcli.engines.embedded.engine import EmbeddedEngine, model_name

        return EmbeddedEngine.name, model_name(
            chosen.whisper(options.whisper), chosen.answer_model(options.answer_model)
        )
    if options.engine == "voxtral":
        return options.engine, str(catalog.resolve(options.model))
    return ("remote", options.remote.model or None) if options.engine == "remote" else (None, None)


def open_server(options: EngineOptions, url: str, notice: Notice) -> "RemoteEngine":
    """Return the engine for the server at `url`. Raises ConfigError and RemoteError."""
    from voxcli.engines.openai.engine import RemoteEngine
    from voxcli.engines.openai.request import RequestOptions
    from voxcli.servers.server import proxy_notice, warning

    server, remote = find_server(options.remote, url), options.remote
    for said in filter(None, (warning(server), proxy_notice(server))):
        notice(said)
    engine = RemoteEngine.open(
        server,
        RequestOptions(
            remote.model,
            options.max_reply_tokens,
            options.temperature,
            options.top_p,
            options.context_tokens,
            remote.audio_style,
        ),
        notice,
    )
    if is_voxtral(engine.model) and (said := long_context(options.context_tokens)):
        notice(said)
    notice(f"remote engine: {engine.model} at {server.url}")
    return engine


def find_server(remote: RemoteOptions, url: str) -> "Server":
    """Return the server at `url`, with its key and the proxy on the way. Raises ConfigError; nothing is sent."""
    from voxcli.config.proxies import find_proxy
    from voxcli.servers.server import Server, checked_url, find_key

    if not url:
        raise ConfigError("the remote engine needs a server", hint="give it with --url http://HOST:8000/v1")
    url = checked_url(url)
    limits = (remote.connect_seconds, remote.first_token_seconds, remote.token_seconds)
    return Server(url, find_key(url), *limits, remote.retries, find_proxy(url))


def open_pool(options: EngineOptions, urls: Sequence[str], concurrency: int, notice: Notice) -> "RemotePool":
    """Return one engine for several servers, with up to `concurrency` requests at once for each.

    A server that does not answer now is left out, with a notice.

    Raises:
        RemoteError: no server answers.
        ConfigError: an address or the key is invalid.
    """
    from voxcli.engines.openai.pool import RemotePool

    engines: list[RemoteEngine] = []
    failure: RemoteError | None = None
    for url in dict.fromkeys(urls or [options.remote.url]):
        try:
            engines.append(open_server(options, url, notice))
        except RemoteError as error:
            failure = error
            notice(f"left out: {error}")
    if failure and not engines:
        raise failure
    return RemotePool(engines, concurrency)


def _open_embedded(options: EngineOptions, cache: Path, notice: Notice, around: Surroundings, why: str) -> Engine:
    from voxcli.engines.embedded import chosen
    from voxcli.engines.embedded.engine import model_name

    reason = f" ({why})" if why else ""
    whisper = chosen.whisper(options.whisper, around.hub)
    answer_model = chosen.answer_model(options.answer_model, around.hub)
    known = "" if answer_model else ", small models that know little"
    notice(f"embedded engine{reason}: {model_name(whisper, answer_model)}{known}")
    sampling = GREEDY.but(options.temperature, options.top_p)
    return around.load_embedded(
        folder=around.prepare_weights(cache, notice=notice),
        instructions=options.instructions,
        max_reply_tokens=options.max_reply_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        language=options.language,
        context_tokens=options.context_tokens,
        whisper=whisper,
        answer_model=answer_model,
    )


def _open_voxtral(
    options: EngineOptions, cache: Path, notice: Notice, fetching: Progress, warming: Progress, around: Surroundings
) -> Engine:
    """Download and load a checkpoint that fits. Raises only VoxErrors."""
    sampling = VOXTRAL.but(options.temperature, options.top_p)
    try:
        found = around.look(options.device)
        checkpoint, where = _placed(options, found, notice, fetching, around)
        engine = around.load_voxtral(
            checkpoint=checkpoint,
            name=str(catalog.resolve(options.model)),
            device=where.device,
            max_reply_tokens=options.max_reply_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            context_tokens=options.context_tokens,
            notice=notice,
            progress=warming,
            quantize=where.form,
            acceleration=options.acceleration,
            folder=cache,
            many=options.slots != 1,
        )
        notice(f"voxtral engine: {engine.model} in {where.format_name} on {where.device}")
        return (
            engine
            if options.slots == 1
            else engine.for_many(options.slots, options.items, understood=options.understood)
        )
    except VoxError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ModelError(
            f"the voxtral engine could not be loaded: {kind}: {first_line(error)}",
            hint="--verbose shows the traceback; --engine embedded needs no torch",
        ) from error


def _placed(
    options: EngineOptions, found: Hardware, notice: Notice, fetching: Progress, around: Surroundings
) -> tuple[Path, Placement]:
    """Return the folder of the checkpoint, downloaded if needed, and its placement.

    Raises:
        ModelError: it does not fit; nothing was downloaded then.
    """
    after_prompt = options.max_reply_tokens + ASIDE_TOKENS
    wanted = Wanted(options.device, options.quantize, options.context_tokens, after_prompt)

    def check(config: Path, weight_bytes: int) -> None:
        placement.plan(wanted, found, fetched_demand(config, weight_bytes))

    placement.check_device(options.device, found)
    checkpoint = catalog.locate(options.model, around.hub)
    if checkpoint is None:
        if needs := demand_here(options.model, None):  # known without the hub
            placement.plan(wanted, found, needs)
        notice(f"fetching {catalog.resolve(options.model)} (once)")
        checkpoint = catalog.fetch(options.model, fetching, around.hub, check)
    return checkpoint, placement.plan(wanted, found, folder_demand(checkpoint))


def demand_here(model: str, checkpoint: Path | None) -> Demand | None:
    """Return the memory that a model needs, as far as it is known without the network.

    Args:
        checkpoint: the local folder of the model, if there is one.

    Raises:
        ModelError: the local checkpoint is damaged, or there can be no such model.
    """
    if checkpoint:
        return folder_demand(checkpoint)
    name = catalog.known_name(model)
    return demand_of(shapes.PUBLISHED[name]) if name else None


def folder_demand(checkpoint: Path) -> Demand:
    """Return the memory that the checkpoint in a folder needs. Raises ModelError if it is not complete."""
    parameters = files.inspect(checkpoint).parameters
    return demand(shapes.read_shape(checkpoint / "config.json"), parameters)


def fetched_demand(config: Path, weight_bytes: int) -> Demand:
    """Return the memory that a checkpoint needs, from its configuration and the bytes of its weights."""
    parameters = weight_bytes // shapes.stored_value_bytes(config)
    return demand(shapes.read_shape(config), parameters)


def why_not_voxtral(device: str, around: Surroundings = HERE) -> str:
    """Return the reason why there is no GPU for Voxtral; empty if there is one.

    torch takes a second or two to import, so this is done only where something looks like a GPU.
    """
    if device == "cpu":
        return "--device cpu"
    if not around.looks_like_gpu():
        return "no GPU was found"
    try:
        found = around.look(device)
    except ModelError as error:
        return f"{error}: {error.hint}"
    return "" if found.best != "cpu" else found.likely_gpu.problem
