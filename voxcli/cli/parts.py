"""What `once` and `chat` are built from, opened by the settings; an exit stack closes them."""

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxcli.config import Settings
    from voxcli.engines.choice import EngineOptions, Notice, Progress
    from voxcli.memory import Memory
    from voxcli.turn import Engine, Synthesizer


def open_memory(name: str | None, settings: "Settings", stack: ExitStack, *, new_instructions: bool) -> "Memory":
    """Open the named session, or one that is kept in memory alone."""
    from voxcli.memory import Memory
    from voxcli.paths import data_folder
    from voxcli.session import Session, session_name
    from voxcli.store import Store

    if name is None:
        return Memory(Session(instructions=settings.instructions))
    checked = session_name(name)
    store = stack.enter_context(Store.open(data_folder()))
    return Memory.resumed(store, checked, settings.instructions, override=new_instructions)


def open_voice(settings: "Settings", stack: ExitStack) -> "Synthesizer":
    """Open the voice, which makes itself ready in the background."""
    from voxcli.speech.voices import open_synthesizer

    synthesizer = open_synthesizer(
        settings.voice,
        words_per_minute=settings.speech.words_per_minute,
        timeout_seconds=settings.speech.timeout_seconds,
    )
    stack.callback(synthesizer.close)
    return synthesizer


def open_engine(settings: "Settings", stack: ExitStack, notice: "Notice", progress: "Progress") -> "Engine":
    """Choose and load the engine; `notice` is told which and why, `progress` how far a download is."""
    from voxcli.engines import choice
    from voxcli.paths import cache_folder

    engine = choice.open_engine(engine_options(settings), cache_folder(), notice, progress)
    return stack.enter_context(closing(engine))


def engine_options(settings: "Settings") -> "EngineOptions":
    """Return what the settings say about the engine, as plain values."""
    from voxcli.engines.choice import EngineOptions

    return EngineOptions(
        engine=settings.engine,
        model=settings.model,
        device=settings.device,
        instructions=settings.instructions,
        max_reply_tokens=settings.reply.max_tokens,
        temperature=settings.reply.temperature,
        top_p=settings.reply.top_p,
        context_tokens=settings.session.context_tokens,
        quantize=settings.quantize,
    )
