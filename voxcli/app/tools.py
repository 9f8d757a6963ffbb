"""Opens the tools that the settings name: commands, MCP servers and those built in."""

import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from voxcli.app.facts import fact_file
from voxcli.errors import ConfigError, VoxError, missing_extra

if TYPE_CHECKING:
    from voxcli.app.parts import Notice
    from voxcli.config.loading import Settings
    from voxcli.config.tables import CommandToolSettings, McpServerSettings
    from voxcli.core.tools import ToolCall
    from voxcli.servers.server import Server
    from voxcli.tools.mcp.loop import AsyncLoop
    from voxcli.tools.mcp.server import McpServer
    from voxcli.tools.mcp.transport import OpenTransport
    from voxcli.tools.tool import Approve, Tool, ToolSource
    from voxcli.tools.toolbox import Toolbox

log = logging.getLogger(__name__)

Announce = Callable[[str], None]  # says a sentence to the user, on any thread


def open_toolbox(
    settings: "Settings",
    approve: "Approve",
    stack: ExitStack,
    notice: "Notice",
    *,
    announce: Announce | None = None,
    further: "Sequence[ToolSource]" = (),
    wait: bool = False,
) -> "Toolbox | None":
    """Open the tools of the settings that the persona may call; None if there are none. `stack` closes them.

    Args:
        approve: asked before each call of a tool whose approval is "ask".
        notice: told, on any thread, which tools can't be used, and why.
        announce: told when the time of a timer is over; without it there are no timers.
        further: sources of other tools, which come first.
        wait: whether to wait until MCP servers have connected or failed. Otherwise their tools come when they have.

    Raises:
        ConfigError: a tool in the settings can't be one, or packages that it needs are missing.
    """
    from voxcli.config.personas import allowed_tools
    from voxcli.tools.toolbox import FixedTools, Toolbox

    allowed = allowed_tools(settings.persona, settings.personas)
    if not allowed:
        return None
    fixed = (*_builtin_tools(settings, stack, announce), *_commands(settings, notice))
    servers = _open_servers(settings, stack, notice)
    if wait:
        for server in servers:
            server.wait_until_ready()
    if not (fixed or servers or further):
        return None
    sources = (*further, FixedTools(fixed), *servers)
    _check_approvals(settings, {tool.spec.name for source in sources for tool in source.tools}, notice)
    toolbox = Toolbox(
        sources,
        approve,
        max_calls=settings.tools.max_calls,
        output_characters=settings.tools.output_characters,
        approvals=settings.tools.approvals,
    )
    return toolbox.limited_to(allowed)


@dataclass(frozen=True)
class ListedTool:
    """A tool as `voxcli tools list` shows it."""

    name: str
    source: str  # "built-in", "command", or the server's table such as "mcp.files"
    approval: str
    description: str
    parameters: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the object of `--json`."""
        return asdict(self)


def listed_tools(settings: "Settings", stack: ExitStack, notice: "Notice") -> list[ListedTool]:
    """Return the tools of the settings, when all servers have connected or failed."""
    toolbox = open_toolbox(settings, _nobody, stack, notice, announce=lambda _text: None, wait=True)
    if toolbox is None:
        return []
    return [
        ListedTool(
            name,
            _source(settings, name, tool),
            toolbox.approval(tool),
            tool.spec.description,
            dict(tool.spec.parameters),
        )
        for name, tool in toolbox.tools.items()
    ]


def toolbox_with(settings: "Settings", name: str, approve: "Approve", stack: ExitStack, notice: "Notice") -> "Toolbox":
    """Return a toolbox that has one tool of the settings at least. Only the server that may have it is started.

    Raises:
        ConfigError: there is no such tool, or it is never to be run. Then `notice` was told which can't be used.
    """
    needed, problems = with_servers_of([name], settings), list[str]()
    toolbox = open_toolbox(needed, approve, stack, problems.append, announce=notice, wait=True)
    tools = toolbox.tools if toolbox else {}
    if toolbox is None or name not in tools:
        for problem in problems:
            notice(problem)
        nearest = get_close_matches(name, tools, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else "voxcli tools list shows all"
        raise ConfigError(f"there is no tool {name}", hint=hint)
    if toolbox.approval(tools[name]) == "never":
        raise ConfigError(f"{name} is never to be run: its approval is never", hint="change it in the settings")
    return toolbox


def with_servers_of(names: Collection[str], settings: "Settings") -> "Settings":
    """Return the settings with the MCP servers alone that tools of these names belong to."""
    from voxcli.tools.mcp.content import server_of

    owners = {server_of(name, settings.mcp) for name in names}
    servers = {server: table for server, table in settings.mcp.items() if server in owners}
    return settings.model_copy(update={"mcp": servers})


def _nobody(_call: "ToolCall", _interrupt: threading.Event) -> bool:
    return False


def _source(settings: "Settings", name: str, tool: "Tool") -> str:
    server = getattr(tool, "server_name", "")
    return f"mcp.{server}" if server else "command" if name in settings.tools.commands else "built-in"


def has_tools(settings: "Settings") -> bool:
    """Return whether the settings name any tools."""
    return bool(settings.tools.builtin or settings.tools.commands or settings.mcp)


def _builtin_tools(settings: "Settings", stack: ExitStack, announce: Announce | None) -> "list[Tool]":
    from voxcli.tools.builtin import time_tool
    from voxcli.tools.facts import forget_tool, remember_tool
    from voxcli.tools.timers import Timers, timer_tool

    tools: list[Tool] = []
    if "time" in settings.tools.builtin:
        tools.append(time_tool())
    if "timer" in settings.tools.builtin and announce:
        timers = Timers(announce)
        stack.callback(timers.close)
        tools.append(timer_tool(timers))
    if "remember" in settings.tools.builtin:
        tools.append(remember_tool(fact_file()))
    if "forget" in settings.tools.builtin:
        tools.append(forget_tool(fact_file()))
    return tools


def _commands(settings: "Settings", notice: "Notice") -> "list[Tool]":
    tools: list[Tool] = []
    for name, table in settings.tools.commands.items():
        if name in settings.tools.builtin:
            hint = "give it another name, or take that one out of tools.builtin"
            raise ConfigError(f"tools.{name} has the name of a built-in tool", hint=hint)
        tools.append(command_tool(name, table, settings.tools.timeout_seconds))
        if missing := missing_program(table.command, table.environment):
            notice(f"tools.{name} can't be run: {missing}")
    return tools


def command_tool(name: str, table: "CommandToolSettings", timeout_seconds: float) -> "Tool":
    """Return a command of the settings as a tool.

    Args:
        timeout_seconds: its limit, if it has none of its own.

    Raises:
        ConfigError: its parameters are no JSON schema of an object.
    """
    from voxcli.tools.arguments import ArgumentSchema, WrongSchema
    from voxcli.tools.command import CommandTool
    from voxcli.tools.process import clean_environment

    given = table.parameters
    try:
        schema = ArgumentSchema(json.loads(given) if isinstance(given, str) else given, trusted=True)
    except WrongSchema as error:
        example = 'such as {type = "object", properties = {city = {type = "string"}}}'
        raise ConfigError(
            f"tools.{name}.parameters can't be used: {error}", hint=f"a JSON schema, {example}"
        ) from error
    return CommandTool(
        name,
        table.description,
        schema,
        table.command,
        clean_environment(table.environment),
        approval=table.approval,
        timeout_seconds=table.timeout_seconds or timeout_seconds,
    )


def missing_program(command: Sequence[str], environment: Sequence[str]) -> str:
    """Return why the program of a command can't be run; empty if it can."""
    from voxcli.tools.process import clean_environment, found_program

    try:
        found_program(command, clean_environment(environment))
    except VoxError as error:
        return error.message
    return ""


def _open_servers(settings: "Settings", stack: ExitStack, notice: "Notice") -> "list[McpServer]":
    """Open the MCP servers of the settings; they connect in the background, all at the same time."""
    if not settings.mcp:
        return []
    try:
        from voxcli.tools.mcp.loop import AsyncLoop
        from voxcli.tools.mcp.server import close_servers
    except ImportError as error:
        raise _without_package() from error
    check_package()
    _check_names(settings.mcp)
    loop = stack.enter_context(closing(AsyncLoop()))
    servers = [
        open_server(name, table, settings.tools.timeout_seconds, loop, notice, tuple(settings.mcp))
        for name, table in settings.mcp.items()
    ]
    stack.callback(close_servers, servers)
    for server in servers:
        server.start()
    return servers


def check_package() -> None:
    """Raise ConfigError if the package of MCP servers is not installed. It is not imported: that takes a second."""
    from importlib.util import find_spec

    if find_spec("mcp") is None:
        raise _without_package()


def _without_package() -> VoxError:
    return missing_extra(ConfigError, "an MCP server", "tools")


def open_server(
    name: str,
    table: "McpServerSettings",
    timeout_seconds: float,
    loop: "AsyncLoop",
    notice: "Notice",
    servers: Sequence[str],
) -> "McpServer":
    """Return an MCP server of the settings, not started yet.

    Args:
        servers: the names of all servers of the settings.

    Raises:
        ConfigError: its address or its key can't be used.
    """
    from voxcli.tools.mcp.server import McpServer

    return McpServer(
        name,
        _transport(name, table, notice),
        loop,
        approval=table.approval,
        only=table.tools,
        servers=servers,
        timeout_seconds=table.timeout_seconds or timeout_seconds,
        notice=notice,
    )


def _transport(name: str, table: "McpServerSettings", notice: "Notice") -> "OpenTransport":
    from voxcli.servers.server import proxy_notice, warning
    from voxcli.tools.mcp import transport
    from voxcli.tools.process import clean_environment

    if table.command:
        return transport.stdio(name, table.command, clean_environment(table.environment))
    from voxcli.servers.tls import tls_context

    server = _server(name, table.url)
    for said in filter(None, (warning(server), proxy_notice(server))):
        notice(f"mcp.{name}: {said}")
    return transport.http(server, tls_context(server))


def _key_variable(name: str) -> str:
    return f"VOXCLI_MCP_{name.upper().replace('-', '_')}_API_KEY"


def _check_names(servers: Mapping[str, "McpServerSettings"]) -> None:
    """Raise ConfigError if one variable would hold the keys of two servers, and each be sent the other's."""
    owners: dict[str, str] = {}
    for name, table in servers.items():
        if table.url and (other := owners.setdefault(_key_variable(name), name)) != name:
            raise ConfigError(
                f"mcp.{other} and mcp.{name} would share the key in {_key_variable(name)}", hint="rename one of them"
            )


def _server(name: str, url: str) -> "Server":
    """Return how a server over HTTP is reached: its address, key and proxy."""
    from voxcli.config.proxies import find_proxy
    from voxcli.servers.server import Server, ServerUse, checked_url, find_key

    variable = _key_variable(name)
    use = ServerUse(variable, f"mcp.{name}.url", "voxcli tools list", "what tools are called with")
    checked = checked_url(url, use)
    return Server(checked, find_key(checked, variable=variable), proxy=find_proxy(checked), use=use)


def _check_approvals(settings: "Settings", tools: Collection[str], notice: "Notice") -> None:
    """Tell of approvals for tools that nobody has: a mistyped "never" must not go unnoticed."""
    later = tuple(f"{name}_" for name in settings.mcp)  # Their tools may not be known yet.
    for name in settings.tools.approvals:
        if name not in tools and name not in settings.tools.builtin and not name.startswith(later):
            notice(f"tools.approvals names {name}, which is no tool here")


def broken_tools(settings: "Settings") -> list[str]:
    """Return what keeps tools of the settings from working, each in one line; starts the MCP servers to see.

    Raises:
        ConfigError: as `open_toolbox`.
    """
    problems: list[str] = []
    with ExitStack() as stack:
        listed_tools(settings, stack, problems.append)
    return problems
