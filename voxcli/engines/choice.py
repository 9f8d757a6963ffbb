"""Which engine answers, and opening it. It knows each engine by name and what it needs to be opened."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from voxcli.engines import checkpoints, weights
from voxcli.errors import ConfigError, ModelError, RemoteError
from voxcli.turn import Engine

if TYPE_CHECKING:
    from voxcli.engines.remote import RemoteEngine
    from voxcli.engines.remote_access import Server
    from voxcli.engines.remote_pool import RemotePool

Notice = Callable[[str], None]
Progress = Callable[[int, int], None]  # done, in all: bytes of a download, parts of a warm-up


@dataclass(frozen=True)
class RemoteOptions:
    """What a user may say about a server; `voxcli.config_fields` explains the numbers."""

    url: str = ""
    model: str = ""  # empty: the only one that it has
    audio_style: Literal["object", "string"] = "object"
    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    token_seconds: float = 20.0
    retries: int = 3


@dataclass(frozen=True)
class EngineOptions:
    """What a user may say about the engine."""

    engine: Literal["auto", "voxtral", "embedded", "remote"]
    model: str  # short name, hub id or folder
    device: Literal["auto", "cuda", "mps", "cpu"]
    instructions: str  # of the session to come
    max_reply_tokens: int
    temperature: float  # 0 is greedy
    top_p: float
    context_tokens: int  # of the prompt, the reply not included
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    quantize: Literal["none", "int8", "fp8"] = "none"  # the voxtral engine's matrices
    acceleration: Literal["auto", "compiled", "graphs", "none"] = "auto"  # the voxtral engine's, on a CUDA device
    rows: int = 1  # replies that the voxtral engine gives at once; 0: as many as suit the device


def _untold(_done: int, _total: int) -> None:
    """Be told how far something is, and do nothing."""


def open_engine(
    options: EngineOptions, cache: Path, notice: Notice, fetching: Progress = _untold, warming: Progress = _untold
) -> Engine:
    """Choose, fetch where needed, and load the engine; `notice` is told what was chosen and why.

    Args:
        cache: where the embedded engine's weights are made ready, and the voxtral engine's kernels kept.
        fetching: called while a checkpoint is downloaded.
        warming: called while the voxtral engine compiles and captures what a turn computes.

    Raises:
        ModelError: the engine asked for can't be had.
        RemoteError: the server does not answer.
        ConfigError: the server's address or its key can't be one.
    """
    if options.engine == "remote":
        return open_server(options, options.remote.url, notice)
    if options.engine == "embedded":
        return _open_embedded(options, cache, notice, why="")
    if options.engine == "voxtral":
        return _open_voxtral(options, _checkpoint(options, notice, fetching), cache, notice, warming)
    if why := why_not_voxtral(options.device):
        return _open_embedded(options, cache, notice, why)
    try:
        checkpoint = _checkpoint(options, notice, fetching)
    except ModelError as error:
        return _open_embedded(options, cache, notice, why=str(error))
    return _open_voxtral(options, checkpoint, cache, notice, warming)


def open_server(options: EngineOptions, url: str, notice: Notice) -> "RemoteEngine":
    """Return the engine for the server at `url`. Raises ConfigError and RemoteError."""
    from voxcli.engines.remote import RemoteEngine
    from voxcli.engines.remote_access import warning
    from voxcli.engines.remote_request import RequestOptions

    server, remote = find_server(options.remote, url), options.remote
    if said := warning(server):
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
    )
    notice(f"remote engine: {engine.model} at {server.url}")
    return engine


def find_server(remote: RemoteOptions, url: str) -> "Server":
    """Return the server at `url`, with the key for it. Raises ConfigError; nothing is sent."""
    from voxcli.engines.remote_access import Server, checked_url, find_key

    if not url:
        raise ConfigError("the remote engine needs a server", hint="give it with --url http://HOST:8000/v1")
    url = checked_url(url)
    limits = (remote.connect_seconds, remote.first_token_seconds, remote.token_seconds)
    return Server(url, find_key(url), *limits, remote.retries)


def open_pool(options: EngineOptions, urls: Sequence[str], concurrency: int, notice: Notice) -> "RemotePool":
    """Return one engine for several servers, each of which is asked for `concurrency` replies at once.

    A server that does not answer now is left out, and `notice` is told.

    Raises:
        RemoteError: none of them answers.
        ConfigError: an address or the key can't be one.
    """
    from voxcli.engines.remote_pool import RemotePool

    engines: list[Engine] = []
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


def _open_embedded(options: EngineOptions, cache: Path, notice: Notice, why: str) -> Engine:
    from voxcli.engines.embedded import EmbeddedEngine

    reason = f" ({why})" if why else ""
    notice(f"embedded engine{reason}: {EmbeddedEngine.model}, small models that know little")
    return EmbeddedEngine.load(
        weights.prepare(cache, notice=notice),
        instructions=options.instructions,
        max_reply_tokens=options.max_reply_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
    )


def _open_voxtral(options: EngineOptions, checkpoint: Path, cache: Path, notice: Notice, warming: Progress) -> Engine:
    from voxcli.engines.voxtral import VoxtralEngine

    engine = VoxtralEngine.load(
        checkpoint,
        name=str(checkpoints.resolve(options.model)),
        device=options.device,
        max_reply_tokens=options.max_reply_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        context_tokens=options.context_tokens,
        notice=notice,
        progress=warming,
        quantize=options.quantize,
        acceleration=options.acceleration,
        folder=cache,
        many=options.rows != 1,
    )
    notice(f"voxtral engine: {engine.model}")
    return engine if options.rows == 1 else engine.for_many(options.rows)


def _checkpoint(options: EngineOptions, notice: Notice, fetching: Progress) -> Path:
    """Return the folder of the checkpoint, fetched first where it is not there."""
    if folder := checkpoints.locate(options.model):
        return folder
    notice(f"fetching {checkpoints.resolve(options.model)} (once)")
    return checkpoints.fetch(options.model, fetching)


def why_not_voxtral(device: str) -> str:
    """Return why there is no GPU for Voxtral; empty where there is one.

    torch takes a second or two to import, so it is asked only where something looks like a GPU.
    """
    if device == "cpu":
        return "--device cpu"
    if not looks_like_gpu():
        return "no GPU was found"
    try:
        import torch
    except ImportError:
        return "torch is not installed: pip install 'voxcli[voxtral]'"
    except OSError:  # a library that it needs is missing or damaged
        return "torch can't be imported; voxcli doctor says more"
    usable = torch.cuda.is_available() or torch.backends.mps.is_available()
    return "" if usable else "torch can't use the GPU; voxcli doctor says more"


def looks_like_gpu() -> bool:
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.name == "nt":
        return find_library("nvcuda") is not None
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
