"""Declares every setting once: its meaning, its allowed values and its default.

Error messages, the example file and the table in the documentation are generated from these declarations.
"""

import re
from typing import Any, Literal, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from voxcli.config.personas import PersonaSettings
from voxcli.config.tables import TABLE_NAME, McpServerSettings, Table, ToolsSettings
from voxcli.config.values import (
    DEFAULT_INSTRUCTIONS,
    Allowed,
    ComputeDevice,
    ControlAddress,
    DeviceName,
    Instructions,
    LanguageCode,
    ModelFile,
    ModelName,
    Number,
    PersonaChoice,
    ServerModel,
    ServerUrl,
    Temperature,
    TopP,
    Truth,
    TurnSilenceMs,
    VoiceName,
    Voices,
    WakeWord,
    WhisperName,
    WholeNumber,
)

PREFIX = "VOXCLI_"


class AudioSettings(Table):
    """Audio input."""

    max_seconds: Number = Field(
        default=1800.0, ge=0.1, le=86_400, description="Longest accepted recording, in seconds."
    )


class SessionSettings(Table):
    """Memory of a conversation."""

    context_tokens: WholeNumber = Field(
        default=8192,
        ge=512,
        le=131_072,
        description="Longest prompt, in tokens; the oldest turns are dropped when it would be longer.",
    )


class ReplySettings(Table):
    """Generation of replies."""

    max_tokens: WholeNumber = Field(default=256, ge=1, le=8192, description="Longest reply, in tokens.")
    temperature: Temperature = Field(
        default="auto",
        description="Sampling temperature (no unit); 0 always takes the most likely token. "
        "auto depends on the model: 0.2 for Voxtral, else 0.",
    )
    top_p: TopP = Field(
        default="auto",
        description="Nucleus sampling: share of the probability that tokens are drawn from (no unit, 1 is all). "
        "auto depends on the model: 0.95 for Voxtral, else 1.",
    )


class SpeechSettings(Table):
    """Speech output."""

    words_per_minute: WholeNumber = Field(
        default=180, ge=80, le=500, description="Speed of the voice, in words per minute."
    )
    timeout_seconds: Number = Field(
        default=5.0,
        ge=0.5,
        le=300,
        description="Longest time to synthesize a sentence, in seconds; then the voice restarts.",
    )


class LiveSettings(Table):
    """Listening in a live conversation; `voxcli.chat.speech.endpointing` explains the numbers."""

    input_device: DeviceName = Field(default="", description="Microphone; `voxcli devices` lists them.")
    output_device: DeviceName = Field(default="", description="Loudspeaker; `voxcli devices` lists them.")
    wake_word: WakeWord = Field(
        default="off", description="Wake word that opens the microphone; off: it is always open. Needs the extra wake."
    )
    sleep_seconds: Number = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Time without speech after which a chat with a wake word sleeps again, in seconds.",
    )
    control: ControlAddress = Field(
        default="off", description="Where the chat takes commands from `voxcli control`; auto: in the runtime folder."
    )
    push_to_talk: Literal["off", "toggle", "hold"] = Field(
        default="off",
        description="Whether to listen only between two presses of the space key (toggle) or while it is held (hold).",
    )
    barge_in: Truth = Field(default=True, description="Whether speech interrupts a reply.")
    barge_in_ms: WholeNumber = Field(
        default=300, ge=32, le=5000, description="How long speech must last to interrupt a reply, in milliseconds."
    )
    speculative_replies: Truth = Field(
        default=True, description="Whether a reply is started during a pause, before end of turn."
    )
    echo: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether echo is cancelled; auto: if the extra echo is installed. "
        "Without it the microphone is ignored during a reply.",
    )
    noise_suppression: Truth = Field(
        default=False, description="Whether the echo canceller's library also suppresses noise."
    )
    gain_control: Truth = Field(
        default=False, description="Whether the echo canceller's library also adjusts the microphone's level."
    )
    cues: Truth = Field(
        default=True, description="Whether short, quiet sounds tell that voxcli is ready, has heard you, or failed."
    )
    end_of_turn: Literal["auto", "silence", "smart-turn"] = Field(
        default="auto",
        description="What ends a turn: silence alone, or smart-turn, a model that judges each pause; "
        "auto: the model if `models pull` fetched it.",
    )
    threshold: Number = Field(
        default=0.5, ge=0.01, le=1, description="Probability of speech at which voice starts (no unit)."
    )
    off_threshold: Number = Field(
        default=0.35, ge=0.01, le=1, description="Probability of speech below which voice ends (no unit)."
    )
    min_speech_ms: WholeNumber = Field(
        default=200, ge=32, le=5000, description="Voice that starts an utterance, in milliseconds."
    )
    speculate_after_ms: WholeNumber = Field(
        default=96, ge=32, le=10_000, description="Silence that counts as a pause, in milliseconds."
    )
    min_silence_ms: TurnSilenceMs = Field(
        default="auto",
        description="Silence that ends an utterance, in milliseconds; auto starts at 350 and follows your own pauses, "
        "from 250 to 1000; from 600 where no turn can be taken back.",
    )
    retract_ms: WholeNumber = Field(
        default=1000,
        ge=0,
        le=5000,
        description="How soon after its end speech still continues an utterance whose reply has begun, in "
        "milliseconds; 0: never.",
    )
    max_silence_ms: WholeNumber = Field(
        default=1000,
        ge=32,
        le=30_000,
        description="Silence that ends an utterance that the end-of-turn model considers incomplete, in milliseconds.",
    )
    pre_roll_ms: WholeNumber = Field(
        default=500, ge=0, le=5000, description="Audio kept from before the start of speech, in milliseconds."
    )
    max_utterance_seconds: Number = Field(
        default=120.0, ge=3, le=1800, description="Longest utterance, in seconds; then it is ended."
    )


class VoxtralSettings(Table):
    """Computation of the voxtral engine."""

    acceleration: Literal["auto", "compiled", "graphs", "none"] = Field(
        default="auto",
        description="Highest level of acceleration on a CUDA GPU: compiled kernels in CUDA graphs, CUDA graphs alone, "
        "or none; auto takes the highest that works.",
    )


class EmbeddedSettings(Table):
    """Models of the embedded engine, in place of those that come with it."""

    answer_model: ModelFile = Field(
        default="",
        description="GGUF file of the chat model that answers; empty: SmolLM2-135M, which comes with the engine.",
    )
    whisper: WhisperName = Field(default="base", description="Whisper model that transcribes.")


class RemoteSettings(Table):
    """Server of the remote engine; its key is not a setting."""

    url: ServerUrl = Field(default="", description="Address of the server.")
    model: ServerModel = Field(
        default="", description="Model to request; empty: the only one that the server has. --model sets it too."
    )
    audio_style: Literal["object", "string"] = Field(
        default="object", description="How a clip is sent: vLLM takes an object, Mistral's API a string."
    )
    connect_seconds: Number = Field(
        default=5.0, ge=0.1, le=300, description="Longest wait for a connection, in seconds."
    )
    first_token_seconds: Number = Field(
        default=60.0, ge=0.1, le=3600, description="Longest wait for the first token, in seconds."
    )
    token_seconds: Number = Field(
        default=20.0, ge=0.1, le=3600, description="Longest wait for each further token, in seconds."
    )
    retries: WholeNumber = Field(
        default=3,
        ge=0,
        le=20,
        description="How often a request is repeated that was refused temporarily or dropped (no unit).",
    )


class Settings(Table):
    """All settings, checked. `instructions` of the form `@FILE` hold the text of the file."""

    engine: Literal["auto", "voxtral", "embedded", "remote"] = Field(
        default="auto",
        description="What answers; auto takes voxtral if there is a GPU for it, otherwise embedded, and never remote.",
    )
    model: ModelName = Field(default="mini", description="Checkpoint of the voxtral engine.")
    device: ComputeDevice = Field(
        default="auto",
        description="Device of the voxtral engine; auto takes the best one, cuda the GPU with the most memory.",
    )
    quantize: Literal["auto", "none", "int8", "int4", "fp8"] = Field(
        default="auto",
        description="Number format of the voxtral engine's large matrices; auto takes the best one that fits.",
    )
    instructions: Instructions = Field(
        default=DEFAULT_INSTRUCTIONS, description="System prompt: how the model should answer."
    )
    persona: PersonaChoice = Field(
        default="", description="Way to answer; `voxcli personas list` shows all. Empty: as the other settings say."
    )
    language: LanguageCode = Field(
        default="auto", description="Language of the conversation; auto: told from each utterance and each sentence."
    )
    understood: Literal["off", "show", "remember"] = Field(
        default="off",
        description="Whether the engine is asked after its reply what it understood of your speech: show it, or "
        "remember it in later prompts, too.",
    )
    voice: VoiceName = Field(
        default="auto",
        description="Voice for replies; `voxcli voices` lists them. auto takes the neural voice where it is installed, "
        "and the system's for what that can't say.",
    )
    voices: Voices = Field(
        default={}, description="Voices for sentences in other languages; otherwise the first that is installed."
    )
    facts: Truth = Field(
        default=False,
        description="Whether chats keep a list of facts about you, and tell it to the model; "
        "`voxcli facts` shows and changes it.",
    )
    audio: AudioSettings = AudioSettings()
    session: SessionSettings = SessionSettings()
    reply: ReplySettings = ReplySettings()
    speech: SpeechSettings = SpeechSettings()
    live: LiveSettings = LiveSettings()
    voxtral: VoxtralSettings = VoxtralSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    remote: RemoteSettings = RemoteSettings()
    tools: ToolsSettings = ToolsSettings()
    mcp: dict[str, McpServerSettings] = Field(
        default={}, description="Servers of tools that speak the Model Context Protocol."
    )
    personas: dict[str, PersonaSettings] = Field(default={}, description="Ways to answer.")


def fields() -> dict[str, FieldInfo]:
    """Return the declaration of each setting by dotted name, in the order of the settings file.

    Those of tables that users name are in `named_tables`.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        if section := _section(field):
            found |= {f"{name}.{key}": inner for key, inner in section.model_fields.items()}
        elif not _named_in(field):
            found[name] = field
    return found


def named_tables() -> dict[str, type[Table]]:
    """Return what declares the tables that users name, by the section that they stand in: `tools`, `mcp`."""
    return {name: kind for name, field in Settings.model_fields.items() if (kind := _named_in(field))}


def declaration(name: str) -> FieldInfo | None:
    """Return the declaration of a setting by dotted name, such as `model` or `tools.weather.command`; None without."""
    table, _, key = name.rpartition(".")
    if is_named_table(table):
        return named_tables()[table.partition(".")[0]].model_fields.get(key)
    return fields().get(name)


def is_named_table(name: str) -> bool:
    """Return whether a dotted name can be that of a table that users name, such as `tools.weather`."""
    section, _, table = name.partition(".")
    return section in named_tables() and is_table_name(table) and name not in fields()


def is_table_name(text: str) -> bool:
    """Return whether a table that users name may have this name."""
    return re.fullmatch(TABLE_NAME, text) is not None


def variable(name: str) -> str:
    """Return the environment variable of a setting: `VOXCLI_AUDIO__MAX_SECONDS` for `audio.max_seconds`."""
    return PREFIX + name.upper().replace(".", "__").replace("-", "_")


def allowed(field: FieldInfo) -> str:
    """Describe the allowed values of a setting."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    words = next((entry.text for entry in field.metadata if isinstance(entry, Allowed)), "")
    if words:
        return words
    least = next(entry.ge for entry in field.metadata if hasattr(entry, "ge"))
    most = next(entry.le for entry in field.metadata if hasattr(entry, "le"))
    return f"a {'whole ' if field.annotation is int else ''}number from {least} to {most}"


def number_type(field: FieldInfo) -> type[int] | type[float] | None:
    """Return the type of number that a setting takes; None if it takes none."""
    kinds = [field.annotation, *(getattr(kind, "__origin__", kind) for kind in get_args(field.annotation))]
    return next((kind for kind in (int, float) if kind in kinds), None)


def is_table(field: FieldInfo) -> bool:
    """Return whether the values of a setting are tables."""
    return get_origin(field.annotation) is dict


def is_list(field: FieldInfo) -> bool:
    """Return whether the values of a setting are lists."""
    return get_origin(field.annotation) is list


def values(settings: Settings) -> dict[str, Any]:
    """Return the value of every setting by dotted name, those of tables that users named among them."""
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if _section(field):
            found |= {f"{name}.{key}": getattr(value, key) for key in type(value).model_fields}
        elif not _named_in(field):
            found[name] = value
        for table, inner in tables_in(settings, name).items():
            found |= {f"{name}.{table}.{key}": getattr(inner, key) for key in type(inner).model_fields}
    return found


def tables_in(settings: Settings, section: str) -> dict[str, Table]:
    """Return the tables that users named in a section; none where there can't be any."""
    value = getattr(settings, section)
    if isinstance(value, Table):
        return dict(value.model_extra or {})
    return dict(value) if section in named_tables() else {}


def _section(field: FieldInfo) -> type[Table] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Table) else None


def _named_in(field: FieldInfo) -> type[Table] | None:
    """Return what declares the tables that users name in a section; None if it has none."""
    if section := _section(field):
        return section.named
    kind = get_args(field.annotation)[-1] if is_table(field) else None
    return kind if isinstance(kind, type) and issubclass(kind, Table) else None
