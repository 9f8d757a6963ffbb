"""Opens the parts that chats, single turns and batch runs share, as the settings say."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.turn import Engine, Synthesizer
    from voxcli.engines.factory import EngineOptions, Progress

log = logging.getLogger(__name__)

Notice = Callable[[str], None]  # shows the user a line next to the output

SECTION_FLAGS = {"url": "remote.url", "temperature": "reply.temperature"}  # other flags have the name of their setting
ENGINES = {  # engines that a flag is for, where others ignore it
    "url": ("remote",),
    "model": ("auto", "voxtral", "remote"),
    "device": ("auto", "voxtral"),
    "quantize": ("auto", "voxtral"),
}


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> "Settings":
    """Return the settings in force. For the remote engine, the flags `url` and `model` name the server and its model.

    Raises:
        ConfigError: a setting is wrong, or the engine ignores a flag. What it ignores in the settings file or the
            environment is accepted: it may be meant for other runs.
    """
    from voxcli.config.loading import load

    settings = load(config, {SECTION_FLAGS.get(name, name): value for name, value in flags.items()})
    for name, engines in ENGINES.items():
        if name in flags and settings.engine not in engines:
            wanted = engines[-1] if len(engines) == 1 else " or ".join(each for each in engines if each != "auto")
            now = "" if settings.engine == "auto" else f", not for {settings.engine}"
            add = f"add --engine {'remote' if name == 'url' else 'voxtral'}"
            hint = add if settings.engine == "auto" else f"leave it out, or {add}"
            raise ConfigError(f"--{name} is for the {wanted} engine{now}", hint=hint)
    if settings.engine != "remote" or "model" not in flags:
        return settings
    return settings.model_copy(update={"remote": settings.remote.model_copy(update={"model": flags["model"]})})


def open_memory(
    name: str | None, settings: "Settings", stack: ExitStack, notice: Notice, *, new_instructions: bool
) -> "Memory":
    """Open the named session, or one that is kept in memory only.

    Args:
        notice: told of turns that can't be read.
        new_instructions: whether a stored session takes its instructions from the settings.
    """
    from voxcli.config.paths import data_folder
    from voxcli.core.memory import Memory
    from voxcli.core.session import Session, session_name
    from voxcli.core.store import Store

    if name is None:
        return Memory(Session(instructions=settings.instructions))
    checked = session_name(name)
    store = stack.enter_context(Store.open(data_folder(), notice=notice))
    return Memory.resumed(store, checked, settings.instructions, override=new_instructions)


def open_voice(settings: "Settings") -> AbstractContextManager["Synthesizer"]:
    """Return the voice, which gets ready in the background."""
    from voxcli.tts.voices import open_synthesizer

    return open_synthesizer(
        settings.voice,
        words_per_minute=settings.speech.words_per_minute,
        timeout_seconds=settings.speech.timeout_seconds,
    )


def open_engine(
    settings: "Settings",
    stack: ExitStack,
    notice: Notice,
    fetching: "Progress",
    warming: "Progress",
    *,
    slots: int = 1,
    items: int = 0,
) -> "Engine":
    """Choose and load the engine. `notice` is told which one, and why.

    Args:
        fetching: told the progress of a download, if there is one.
        warming: told the progress of a long warm-up.
        slots: replies that the voxtral engine generates at once; 0: as many as suit the device.
        items: replies that it will be asked for, if `slots` is not 1; 0: unknown.
    """
    from voxcli.config.paths import cache_folder
    from voxcli.engines import factory

    options = replace(engine_options(settings), slots=slots, items=items)
    started = time.perf_counter()
    engine = factory.open_engine(options, cache_folder(), notice, fetching, warming)
    log.info("%s engine with %s, ready after %.2f s", engine.name, engine.model, time.perf_counter() - started)
    if engine.name == "embedded" and (ignored := _for_voxtral(settings)):
        notice(f"not used by the embedded engine: {', '.join(ignored)}")
    return stack.enter_context(closing(engine))


def _for_voxtral(settings: "Settings") -> list[str]:
    """Return the settings that ask something of the voxtral engine where any engine may answer."""
    defaults = type(settings)()
    wanted = [name for name in ("model", "quantize") if getattr(settings, name) != getattr(defaults, name)]
    return wanted if settings.engine == "auto" else []


def open_servers(
    settings: "Settings", urls: Sequence[str], concurrency: int, stack: ExitStack, notice: Notice
) -> "Engine":
    """Open one engine for several servers.

    Args:
        urls: the servers; if empty, the one in the settings.
        concurrency: requests to each server at once.
    """
    from voxcli.engines import factory

    return stack.enter_context(closing(factory.open_pool(engine_options(settings), urls, concurrency, notice)))


def engine_options(settings: "Settings") -> "EngineOptions":
    """Return the settings that concern the engine, as plain values."""
    from voxcli.engines.factory import EngineOptions, RemoteOptions

    return EngineOptions(
        engine=settings.engine,
        model=settings.model,
        device=settings.device,
        instructions=settings.instructions,
        max_reply_tokens=settings.reply.max_tokens,
        temperature=_unless_auto(settings.reply.temperature),
        top_p=_unless_auto(settings.reply.top_p),
        context_tokens=settings.session.context_tokens,
        quantize=settings.quantize,
        acceleration=settings.voxtral.acceleration,
        remote=RemoteOptions(**settings.remote.model_dump()),
    )


def _unless_auto(value: float | Literal["auto"]) -> float | None:
    return None if value == "auto" else value
