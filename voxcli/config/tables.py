"""Declares the tables whose names users choose: `[tools.NAME]` and `[mcp.NAME]`; and what holds for all tools."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from voxcli.config.values import Allowed, Number, ServerUrl, WholeNumber

TABLE_NAME = r"[A-Za-z0-9_-]{1,32}"  # Tools of a server are named after it, in at most 64 characters.
TABLE_NAME_RULE = "1 to 32 letters, digits, underscores and hyphens"


class Table(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    named: ClassVar[type["Table"] | None] = None  # the tables that users name in it
    example: ClassVar[str] = ""  # The example file shows this TOML for a table that users name.


def _as_json(value: dict[str, Any] | str) -> dict[str, Any] | str:
    """Refuse what JSON can't express, such as a date, and text that is no JSON object."""
    try:
        schema = json.loads(value if isinstance(value, str) else json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if isinstance(schema, dict):
        return value
    raise ValueError("it is no object")


ApprovalName = Literal["ask", "always", "never"]
ToolDescription = Annotated[
    str, Field(max_length=4096), Allowed("text of at most 4096 characters that tells the model what the tool does")
]


def _with_program(command: list[str]) -> list[str]:
    if command and not command[0].strip():
        raise ValueError("the program has no name")
    return command


Schema = Annotated[
    dict[str, Any] | str,
    AfterValidator(_as_json),
    Allowed("a JSON schema of the arguments: a table, or its JSON as text"),
]
CommandLine = Annotated[
    list[Annotated[str, Field(pattern=r"^[^\x00]*$")]],
    Field(min_length=1, max_length=256),
    AfterValidator(_with_program),
    Allowed('a program and its arguments, such as ["weather", "--short"]; no shell reads them'),
]
NoCommandLine = Annotated[
    list[Annotated[str, Field(pattern=r"^[^\x00]*$")]],
    Field(max_length=256),
    AfterValidator(_with_program),
    Allowed('a program and its arguments, such as ["uvx", "mcp-server-time"], or nothing'),
]
Variables = Annotated[
    list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(=[^\x00]*)?$")]],
    Allowed('variables that it gets beside PATH, HOME and LANG: ["TOKEN", "UNITS=metric"], as they are or as given'),
]
ToolNames = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Allowed('names as the server gives them, such as ["read_file"], or nothing for all'),
]
OwnSeconds = Annotated[
    Annotated[float, Field(strict=True, ge=0.1, le=3600)] | None,
    Allowed("a number from 0.1 to 3600; without it, tools.timeout_seconds"),
]
BuiltinTools = Annotated[
    list[Literal["time", "timer", "remember", "forget"]],
    Allowed('some of time, timer, remember and forget: ["time", "timer"]; a variable says time,timer'),
]
Approvals = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], ApprovalName],
    Allowed('ask, always or never by names of tools, such as {timer = "ask"}; a variable says timer=ask'),
]


class CommandToolSettings(Table):
    """A command that a model may call as a tool."""

    example = """\
[tools.weather]
description = "Tells the weather of a city."
command = ["/home/anna/bin/weather", "--short"]
approval = "always"
parameters.type = "object"
parameters.properties.city = {type = "string"}
parameters.required = ["city"]
"""

    description: ToolDescription = Field(default="", description="What it does and when to call it, for the model.")
    command: CommandLine = Field(
        description="Program that is run; it reads the arguments as JSON, and prints the result."
    )
    parameters: Schema = Field(
        default={"type": "object", "properties": {}}, description="Arguments that it takes, as a JSON schema."
    )
    approval: ApprovalName = Field(
        default="ask", description="Whether it is run only when you allow it, always, or never."
    )
    environment: Variables = Field(default=[], description="Further environment variables that it gets.")
    timeout_seconds: OwnSeconds = Field(
        default=None, description="Longest time that it may run, in seconds; then it is stopped."
    )


class McpServerSettings(Table):
    """A server of tools that speaks the Model Context Protocol."""

    example = """\
[mcp.files]
command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/home/anna/notes"]
tools = ["read_file", "list_directory"]

[mcp.house]
url = "http://localhost:8123/api/mcp"
"""

    command: NoCommandLine = Field(default=[], description="Program that is the server, over its standard streams.")
    url: ServerUrl = Field(
        default="", description="Address of the server, over streamable HTTP; its key is no setting."
    )
    tools: ToolNames = Field(default=[], description="Its tools to offer; each takes room in every prompt.")
    approval: ApprovalName = Field(
        default="ask", description="Whether its tools are run only when you allow it, always, or never."
    )
    environment: Variables = Field(default=[], description="Further environment variables that the program gets.")
    timeout_seconds: OwnSeconds = Field(
        default=None, description="Longest time that a call may take, in seconds; then it is cancelled."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "McpServerSettings":
        if bool(self.command) == bool(self.url):
            raise ValueError("needs either a command or a url")
        return self


class ToolsSettings(Table):
    """What a model may call; each command has a table `[tools.NAME]`."""

    model_config = ConfigDict(extra="allow")
    named = CommandToolSettings
    __pydantic_extra__: dict[str, CommandToolSettings] = Field(init=False)

    builtin: BuiltinTools = Field(default=[], description="Tools of voxcli's own that a model may call.")
    approvals: Approvals = Field(
        default={}, description="Approval of single tools, in place of that of their kind, table or server."
    )
    max_calls: WholeNumber = Field(default=8, ge=1, le=64, description="Most calls in one turn (no unit).")
    timeout_seconds: Number = Field(
        default=20.0, ge=0.1, le=3600, description="Longest time that a call may take, in seconds; then it is stopped."
    )
    output_characters: WholeNumber = Field(
        default=4000, ge=100, le=100_000, description="Longest result that the model is given, in characters."
    )

    @property
    def commands(self) -> dict[str, CommandToolSettings]:
        """The tables `[tools.NAME]` by name."""
        return self.__pydantic_extra__
