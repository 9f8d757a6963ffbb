"""`voxcli personas`: lists, shows and adds ways to answer."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxcli.cli.config import file_to_change
from voxcli.cli.interface import completion
from voxcli.cli.interface.common import (
    ConfigFlag,
    EngineFlag,
    ForceFlag,
    JsonFlag,
    LanguageFlag,
    ModelFlag,
    TemperatureFlag,
    VoiceFlag,
    given,
    note,
    note_command,
    print_json,
    print_text,
    text_or_stdin,
)
from voxcli.cli.interface.help import CommandGroup
from voxcli.errors import ConfigError
from voxcli.printable import printable

if TYPE_CHECKING:
    from voxcli.config.loading import Settings
    from voxcli.config.personas import PersonaSettings

app = CommandGroup("List, show and add ways to answer.")

BEGINNING_LENGTH = 60  # most characters of instructions in a list


@app.command("list")
def list_personas(config: ConfigFlag = None, json_: JsonFlag = False) -> None:
    """List the personas; * marks the one that the settings choose."""
    from voxcli.config.personas import SHIPPED, known_personas

    settings = _settings(config)
    chosen = settings.persona.partition(":")[0]
    found = known_personas(settings.personas)
    if json_:
        print_json({"personas": [_as_json(name, persona, settings) for name, persona in found.items()]})
        return
    width = max(len(name) for name in found)
    for name, persona in found.items():
        mark = "*" if name == chosen else " "
        kind = "shipped" if name not in settings.personas else "changed" if name in SHIPPED else "yours"
        about = " ".join((persona.instructions or "").split())
        about = f"{about[: BEGINNING_LENGTH - 1]}…" if len(about) > BEGINNING_LENGTH else about
        print_text(printable(f"{mark} {name:<{width}}  {kind:<7}  {about}".rstrip()))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", autocompletion=completion.personas, help="Such as interpreter:target=French."),
    ],
    config: ConfigFlag = None,
    json_: JsonFlag = False,
) -> None:
    """Show a persona as it may stand in the settings file; --json also has its instructions with names filled in."""
    from voxcli.config.loading import value_of
    from voxcli.config.personas import chosen_persona
    from voxcli.config.toml_text import table_as_toml

    settings = _settings(config)
    chosen = chosen_persona(value_of("persona", name) or "plain", settings.personas)
    if json_:
        print_json(_as_json(*chosen, settings))
    else:
        print_text(printable(table_as_toml(f"personas.{chosen.name}", chosen.settings), keep="\n"), end="")


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, underscores and hyphens.")],
    instructions: Annotated[
        str | None,
        typer.Option(
            "--instructions", metavar="TEXT|@FILE", help="System prompt; {date}, {user} and others are filled in."
        ),
    ] = None,
    voice: VoiceFlag = None,
    language: LanguageFlag = None,
    tools: Annotated[
        str | None, typer.Option("--tools", metavar="NAME,NAME", help="Tools that it may call; an empty text for none.")
    ] = None,
    engine: EngineFlag = None,
    model: ModelFlag = None,
    temperature: TemperatureFlag = None,
    top_p: Annotated[
        str | None, typer.Option("--top-p", metavar="auto|N", help="Share of the probability to draw tokens from.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Longest reply.")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--value", metavar="KEY=TEXT", help="What {KEY} in the instructions stands for; may be repeated."),
    ] = None,
    force: ForceFlag = False,
    config: ConfigFlag = None,
) -> None:
    """Add a persona to the settings file. Comments and order are kept; what is not allowed is refused."""
    from voxcli.config.editing import add_table
    from voxcli.config.loading import value_of
    from voxcli.config.schema import is_table_name
    from voxcli.config.tables import TABLE_NAME_RULE

    target = file_to_change(config)
    if not is_table_name(name):
        raise ConfigError(f"{name!r} can't be the name of a persona", hint=TABLE_NAME_RULE)
    texts = given(instructions=instructions and _instructions(instructions), voice=voice, language=language)
    texts |= given(tools=tools or None, engine=engine, model=model, temperature=temperature, top_p=top_p)
    texts |= given(max_tokens=None if max_tokens is None else str(max_tokens))
    found = {key: value_of(f"personas.{name}.{key}", text) for key, text in texts.items()}
    found |= given(tools=[] if tools == "" else None, values=_pairs(values) if values else None)
    if not found:
        raise ConfigError("there is nothing to add", hint=f'voxcli personas add {name} --instructions "TEXT"')
    add_table(target, f"personas.{name}", found, force=force)
    note_command(f"persona {name} is in {target}", f"voxcli chat --persona {name}")


def _settings(config: Path | None) -> "Settings":
    """Return the settings; where they choose a persona that is not there, say so and return them without one."""
    from voxcli.config.loading import explain
    from voxcli.config.personas import UnknownPersonaError

    try:
        return explain(config, {})[0]
    except UnknownPersonaError as error:
        note(f"{error.message}, which the settings choose")
        return explain(config, {}, persona="")[0]


def _as_json(name: str, persona: "PersonaSettings", settings: "Settings") -> dict[str, Any]:
    from voxcli.config.personas import SHIPPED, filled_instructions
    from voxcli.config.templates import Moment

    language = persona.language or settings.language
    try:
        text: str | None = filled_instructions(name, persona, language, Moment.now()) if persona.instructions else None
    except ConfigError:
        text = None  # a name that nothing is known of
    chosen = settings.persona.partition(":")[0] == name
    return {
        "name": name,
        "shipped": name in SHIPPED,
        "yours": name in settings.personas,
        "chosen": chosen,
        **persona.model_dump(),
        "filled_instructions": text,
    }


def _instructions(text: str) -> str:
    """Return instructions as they are stored: a file by its whole path, as a relative one counts from the settings."""
    if text == "@-":
        return text_or_stdin("-").strip()
    return f"@{Path(text[1:]).expanduser().absolute()}" if text.startswith("@") else text


def _pairs(values: Iterable[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if wrong := next((key for key, equals, _ in pairs if not equals), None):
        raise ConfigError(f"--value {wrong} has no text", hint=f"--value {wrong}=TEXT")
    return {key: text for key, _, text in pairs}
