"""Opens the parts that chats, single turns and batch runs share, as the settings say."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voxcli.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from voxcli.config.loading import Settings
    from voxcli.core.memory import Memory
    from voxcli.core.protocols import Engine, Speaker, SpeechOutput, Synthesizer
    from voxcli.core.storage.store import Store
    from voxcli.engines.factory import EngineOptions, Progress
    from voxcli.tts.languages.multilingual import MultilingualSynthesizer

log = logging.getLogger(__name__)

Notice = Callable[[str], None]  # shows the user a line next to the output

SECTION_FLAGS = {"url": "remote.url", "temperature": "reply.temperature"}  # other flags have the name of their setting
ENGINES = {  # engines that a flag is for, where others ignore it
    "url": ("remote",),
    "model": ("auto", "voxtral", "remote"),
    "device": ("auto", "voxtral"),
    "quantize": ("auto", "voxtral"),
}


def load_settings(config: Path | None, flags: Mapping[str, Any], persona: str | None = None) -> "Settings":
    """Return the settings in force. For the remote engine, the flags `url` and `model` name the server and its model.

    Args:
        persona: that of a session that goes on, in place of the setting.

    Raises:
        ConfigError: a setting is wrong, or the engine ignores a flag. What it ignores in the settings file or the
            environment is accepted: it may be meant for other runs.
    """
    from voxcli.config.loading import load

    settings = load(config, {SECTION_FLAGS.get(name, name): value for name, value in flags.items()}, persona=persona)
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


@dataclass(frozen=True)
class SessionChoice:
    """Which session a conversation belongs to."""

    name: str | None = None
    continues: bool = False  # the last session that was used
    kept: bool = False  # a session that is not named is stored too, under an automatic name
    new_instructions: bool = False  # a stored session takes its instructions from the settings
    new_persona: bool = False  # a stored session takes its persona from the settings


NOT_KEPT = SessionChoice()  # a new session that is kept in memory only


def session_settings(
    config: Path | None, flags: Mapping[str, Any], choice: SessionChoice, notice: Notice
) -> "tuple[Settings, SessionChoice]":
    """Return the settings in force for a session, and the choice with its name. A stored one brings its persona.

    Raises:
        ConfigError: as `load_settings` and `open_memory` do.
        StoreError: the store can't be read or written.
    """
    from voxcli.config.personas import known_personas

    settings = load_settings(config, flags)
    if choice.name is None and not choice.continues:
        return settings, choice
    name = _checked_name(choice)
    with _open_store(log.info) as store:  # Whoever opens the session tells of turns that can't be read.
        name = name or _last_name(store)
        persona = store.persona(name)
    choice = replace(choice, name=name, continues=False)
    if choice.new_persona or persona in (None, settings.persona):
        return settings, choice
    if persona and persona.partition(":")[0] not in known_personas(settings.personas):
        notice(f"there is no persona {persona!r} any more; session {name} keeps its instructions alone")
        persona = ""
    return load_settings(config, flags, persona), choice


def _checked_name(choice: SessionChoice) -> str | None:
    """Return the name of the session that was chosen, as it is stored; None if it has none. Raises ConfigError."""
    from voxcli.core.session import session_name

    if choice.name is not None and choice.continues:
        raise ConfigError("--continue and --session both choose a session", hint="leave out one of them")
    return None if choice.name is None else session_name(choice.name)


def _last_name(store: "Store") -> str:
    """Return the name of the session that was used last. Raises ConfigError."""
    if not (summaries := store.summaries()):
        raise ConfigError("there is no session to continue", hint="leave out --continue: `voxcli chat` begins one")
    return summaries[0].name


def open_memory(choice: SessionChoice, settings: "Settings", stack: ExitStack, notice: Notice) -> "Memory":
    """Open the session that was chosen. `notice` is told of turns that can't be read.

    Raises:
        ConfigError: there is no session to continue, or the name is none.
        StoreError: the store can't be read or written. If nobody named a session, `notice` is told instead, and the
            session is kept in memory only.
    """
    from voxcli.core.memory import Memory
    from voxcli.core.session import Session

    persona, understood = settings.persona or None, settings.understood
    if choice.name is None and not choice.continues:
        store = _store_if_possible(stack, notice) if choice.kept else None
        return Memory(
            Session(instructions=settings.instructions),
            store,
            names_itself=choice.kept,
            persona=persona,
            understood=understood,
        )
    name, override = _checked_name(choice), choice.new_instructions
    store = stack.enter_context(_open_store(notice))
    name = name or _last_name(store)
    memory = Memory.resumed(
        store, name, settings.instructions, override=override, persona=persona, understood=understood
    )
    if choice.new_persona:
        memory.take_persona(persona, settings.instructions)
    elif memory.persona == persona and _are_of_persona(settings, memory.instructions):
        memory.instruct(settings.instructions)  # They may hold today's date.
    return memory


def _are_of_persona(settings: "Settings", instructions: str) -> bool:
    """Return whether instructions, and those of the settings, are the persona's, whatever was filled in."""
    from voxcli.config.personas import persona_template
    from voxcli.config.templates import is_filled_from

    template = persona_template(settings.persona, settings.personas)
    return template is not None and all(
        is_filled_from(text, template) for text in (instructions, settings.instructions)
    )


def lasting_instructions(settings: "Settings") -> str:
    """Return the instructions as they are on every day: `{date}` and `{time}` are not filled in."""
    from voxcli.config.personas import chosen_persona, filled_instructions
    from voxcli.config.templates import Moment

    if not _are_of_persona(settings, settings.instructions):
        return settings.instructions
    moment = replace(Moment.now(), date="{date}", time="{time}")
    return filled_instructions(*chosen_persona(settings.persona, settings.personas), settings.language, moment)


def _open_store(notice: Notice) -> "Store":
    from voxcli.config.paths import data_folder
    from voxcli.core.storage.store import Store

    return Store.open(data_folder(), notice=notice)


def _store_if_possible(stack: ExitStack, notice: Notice) -> "Store | None":
    try:
        return stack.enter_context(_open_store(notice))
    except StoreError as error:
        notice(f"this conversation is not kept: {error.message}")
        return None


def open_voice(settings: "Settings", notice: Notice = log.warning) -> AbstractContextManager["Synthesizer"]:
    """Return the voice of the settings, which gets ready in the background.

    Args:
        notice: told what to know about a voice's server.
    """
    from voxcli.tts.voices import open_synthesizer

    return open_synthesizer(
        settings.voice,
        words_per_minute=settings.speech.words_per_minute,
        timeout_seconds=settings.speech.timeout_seconds,
        notice=notice,
    )


def open_reply_voices(settings: "Settings", notice: Notice) -> "MultilingualSynthesizer":
    """Return the voices of replies: each sentence gets one of its language. The default voice gets ready at once.

    Args:
        notice: told, on any thread, of each language that the default voice has to speak, and what to know about the
            server of a voice.
    """
    from voxcli.tts.languages import detection as language
    from voxcli.tts.languages.multilingual import MultilingualSynthesizer, VoiceChoice
    from voxcli.tts.voices import list_voices, open_synthesizer, resolved

    open_one = partial(
        open_synthesizer,
        words_per_minute=settings.speech.words_per_minute,
        timeout_seconds=settings.speech.timeout_seconds,
        notice=notice,
    )
    if settings.voices and not language.is_installed():
        error = language.not_installed()
        notice(f"{error.message}: {error.hint}")
    start = language.ENGLISH if settings.language == "auto" else language.primary(settings.language)
    chosen = {language.primary(code): voice for code, voice in settings.voices.items()}
    default_setting = resolved(settings.voice)  # The list of voices has no "auto".
    choice = VoiceChoice(default_setting, chosen, list_voices)
    default, follower = open_one(settings.voice), language.LanguageFollower(start)
    return MultilingualSynthesizer(default, default_setting, follower, choice, open_one, notice)


def speech_output(synthesizer: "Synthesizer", speaker: "Speaker") -> "SpeechOutput":
    """Return a voice with its speaker; voices of several languages also tell the language of each piece."""
    from voxcli.core.protocols import SpeechOutput
    from voxcli.tts.languages.multilingual import MultilingualSynthesizer

    if isinstance(synthesizer, MultilingualSynthesizer):
        return SpeechOutput(synthesizer, speaker, synthesizer.language_of)
    return SpeechOutput(synthesizer, speaker)


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
    _note_cost(settings, engine, notice)
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

    engine = stack.enter_context(closing(factory.open_pool(engine_options(settings), urls, concurrency, notice)))
    _note_cost(settings, engine, notice)
    return engine


def _note_cost(settings: "Settings", engine: "Engine", notice: Notice) -> None:
    """Tell that a server is asked more than once a turn, where it is."""
    if engine.name == "remote" and settings.understood != "off":
        notice(f'understood = "{settings.understood}" costs one more request for each spoken turn')


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
        language=settings.language,
        answer_model=settings.embedded.answer_model,
        whisper=settings.embedded.whisper,
        remote=RemoteOptions(**settings.remote.model_dump()),
        understood=settings.understood != "off",
    )


def _unless_auto(value: float | Literal["auto"]) -> float | None:
    return None if value == "auto" else value
