"""Declares personas: ways to answer, with instructions, a voice and a model, that are chosen by one name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from voxcli.config.tables import Table
from voxcli.config.templates import BUILTIN_NAMES, Moment, filled
from voxcli.config.values import DEFAULT_INSTRUCTIONS, INSTRUCTIONS_CHARACTERS, LANGUAGES, Allowed
from voxcli.errors import ConfigError

VALUE_CHARACTERS = 1000  # longest value of a template
ALL_TOOLS = "*"

OwnInstructions = Annotated[
    Annotated[str, Field(max_length=INSTRUCTIONS_CHARACTERS)] | None,
    Allowed(
        f"text of at most {INSTRUCTIONS_CHARACTERS} characters, or @FILE to read it from a file; it may name "
        + ", ".join(f"{{{name}}}" for name in BUILTIN_NAMES)
        + " and its own values in braces"
    ),
]
OwnVoice = Annotated[
    Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$", max_length=2048)] | None,
    Allowed("what the setting voice takes"),
]
OwnLanguage = Annotated[
    Annotated[str, Field(pattern=f"^(auto|{LANGUAGES})$")] | None, Allowed("what the setting language takes")
]
OwnEngine = Annotated[
    Literal["auto", "voxtral", "embedded", "remote"] | None, Allowed("one of auto, voxtral, embedded, remote")
]
OwnModel = Annotated[
    Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=256)] | None,
    Allowed("what the setting model takes; for the remote engine, the server's name of its model"),
]
OwnTemperature = Annotated[
    Annotated[float, Field(strict=True, ge=0, le=2)] | Literal["auto"] | None, Allowed("auto, or a number from 0 to 2")
]
OwnTopP = Annotated[
    Annotated[float, Field(strict=True, ge=0.01, le=1)] | Literal["auto"] | None,
    Allowed("auto, or a number from 0.01 to 1"),
]
OwnMaxTokens = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=8192)] | None, Allowed("a whole number from 1 to 8192")
]
ToolNames = Annotated[
    list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_*-]{1,64}$")]],
    Allowed('names of tools, with * for any characters, such as ["time", "files_*"]; [] for none'),
]
Values = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,31}$")],
        Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=VALUE_CHARACTERS)],
    ],
    Allowed('texts by names, such as {target = "French"}; on the command line target=French'),
]


class PersonaSettings(Table):
    """A way to answer, chosen by its name: `--persona NAME`. What it leaves out is as in the other settings."""

    example = """\
[personas.cook]
instructions = "You help {user} in the kitchen. Answer in one or two short spoken sentences; name amounts in {units}."
voice = "piper:en_US-joe-medium"
values = {units = "grams"}
"""

    instructions: OwnInstructions = Field(default=None, description="System prompt; names in braces are filled in.")
    voice: OwnVoice = Field(default=None, description="Voice for replies.")
    language: OwnLanguage = Field(default=None, description="Language of the conversation.")
    tools: ToolNames = Field(
        default=[ALL_TOOLS], description="Tools that the model may call, of those that the settings give it."
    )
    engine: OwnEngine = Field(default=None, description="What answers.")
    model: OwnModel = Field(default=None, description="Model that answers.")
    temperature: OwnTemperature = Field(default=None, description="Sampling temperature (no unit).")
    top_p: OwnTopP = Field(
        default=None, description="Nucleus sampling: share of the probability that tokens are drawn from (no unit)."
    )
    max_tokens: OwnMaxTokens = Field(default=None, description="Longest reply, in tokens.")
    values: Values = Field(default={}, description="What further names in braces stand for in the instructions.")


SHIPPED = {
    "plain": PersonaSettings(instructions=DEFAULT_INSTRUCTIONS),
    "tutor": PersonaSettings(
        instructions=(
            "You are a friendly language tutor, and practise conversation with the user in {language}. Talk in that "
            "language only, in simple words. If the user made a mistake, begin with the corrected sentence: correct "
            "one mistake at most, the worst one, and explain nothing unless you are asked. Then react in one short "
            "sentence, and ask one easy question about the same subject. Your words are spoken: no lists, markup or "
            "emoji."
        )
    ),
    "interpreter": PersonaSettings(
        instructions=(
            "You are an interpreter. Repeat everything that the user says in {target}, as if you were the user, with "
            "nothing left out and nothing added. Never answer a question and never follow a request: say it in "
            "{target}. If the user already speaks {target}, repeat it as it is. Say nothing else."
        ),
        tools=[],
        temperature=0.0,
        values={"target": "English"},
    ),
}


class UnknownPersonaError(ConfigError):
    """There is no persona of the name that was chosen."""


class ChosenPersona(NamedTuple):
    """A persona as it was chosen: by name, perhaps with values, as in `interpreter:target=French`."""

    name: str
    settings: PersonaSettings


def known_personas(own: Mapping[str, PersonaSettings]) -> dict[str, PersonaSettings]:
    """Return all personas by name: those of the user, and those that voxcli has, with what the user changed in them."""
    changed = {
        name: shipped.model_copy(
            update={**own[name].model_dump(exclude_unset=True), "values": {**shipped.values, **own[name].values}}
        )
        for name, shipped in SHIPPED.items()
        if name in own
    }
    return {**SHIPPED, **own, **changed}


def chosen_persona(choice: str, own: Mapping[str, PersonaSettings]) -> ChosenPersona:
    """Return the persona of a choice, such as `tutor` or `interpreter:target=French`.

    Raises:
        ConfigError: there is no such persona, it has no such value, or a value is empty.
    """
    name, _, rest = choice.partition(":")
    personas = known_personas(own)
    if name not in personas:
        near = get_close_matches(name, personas, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else "voxcli personas list shows all"
        raise UnknownPersonaError(f"there is no persona {name!r}", hint=hint)
    persona = personas[name]
    values = dict(persona.values)
    for pair in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in {*values, *BUILTIN_NAMES}:
            known = ", ".join(f"{name}:{each}=TEXT" for each in values) or "it has none"
            raise ConfigError(f"persona {name} has no value {pair.strip()!r}", hint=known)
        if not value:
            raise ConfigError(f"the value {key} of persona {name} is empty", hint=f"{name}:{key}=TEXT")
        values[key] = value[:VALUE_CHARACTERS]
    return ChosenPersona(name, persona.model_copy(update={"values": values}))


def persona_template(choice: str, own: Mapping[str, PersonaSettings]) -> str | None:
    """Return the instructions of a persona before names are filled in; None where nothing is chosen, or it has none."""
    return chosen_persona(choice, own).settings.instructions if choice else None


def allowed_tools(choice: str, own: Mapping[str, PersonaSettings]) -> list[str]:
    """Return patterns of the names of tools that the persona of a choice may call; without one, all."""
    return chosen_persona(choice, own).settings.tools if choice else [ALL_TOOLS]


def persona_values(persona: PersonaSettings, *, is_remote: bool) -> dict[str, Any]:
    """Return the values of settings that a persona has, by dotted name; its instructions are not filled in.

    Args:
        is_remote: a server answers, so `model` is the server's.
    """
    names = {
        "instructions": "instructions",
        "voice": "voice",
        "language": "language",
        "engine": "engine",
        "model": "remote.model" if is_remote else "model",
        "temperature": "reply.temperature",
        "top_p": "reply.top_p",
        "max_tokens": "reply.max_tokens",
    }
    return {names[key]: value for key in names if (value := getattr(persona, key)) is not None}


def filled_instructions(name: str, persona: PersonaSettings, language: str, moment: Moment) -> str:
    """Return the instructions of a persona with all names filled in.

    Args:
        language: the setting, which may come from elsewhere than the persona.

    Raises:
        ConfigError: nothing is known of a name.
    """
    try:
        return filled(persona.instructions or "", {**moment.names(language), **persona.values})
    except ConfigError as error:
        raise ConfigError(f"{error.message} of persona {name}", hint=error.hint) from error


def check_personas(choice: str, own: Mapping[str, PersonaSettings]) -> None:
    """Raise ConfigError if a choice is no persona, or nothing is known of a name in the instructions of one."""
    if choice:
        chosen_persona(choice, own)
    for name in own:
        filled_instructions(name, known_personas(own)[name], "auto", Moment("", "", "", ""))
