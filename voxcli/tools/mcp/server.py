"""An MCP server as a source of tools: connects in the background, and again when a call finds it gone."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from voxcli.core.tools import ToolSpec
from voxcli.errors import VoxError
from voxcli.printable import printable
from voxcli.tools.arguments import ArgumentSchema, WrongSchema
from voxcli.tools.mcp.connection import Connection, ConnectionLost
from voxcli.tools.mcp.content import server_of, spec_of, wanted
from voxcli.tools.mcp.loop import AsyncLoop
from voxcli.tools.mcp.transport import OpenTransport
from voxcli.tools.tool import Approval

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mcp.types import Tool

log = logging.getLogger(__name__)

MOST_TOOLS = 128  # Most tools of one server.
CONNECT_SECONDS = 30.0  # Time to start and list its tools; npx and uvx may fetch a package first.
END_SECONDS = 8.0  # The package takes up to 6 seconds to stop a program that ignores signals.
LONGEST_PAUSE_SECONDS = 60.0  # between two attempts to connect


class McpTool:
    """Implements `Tool`: one tool of a server."""

    def __init__(self, server: "McpServer", spec: ToolSpec, schema: ArgumentSchema, their_name: str) -> None:
        self.spec = spec
        self.approval: Approval = server.approval
        self.server_name = server.name
        self._server = server
        self._schema = schema
        self._their_name = their_name

    def problem(self, arguments: dict[str, Any]) -> str:
        return self._schema.problem(arguments)

    def call(self, arguments: dict[str, Any], interrupt: threading.Event) -> str:
        return self._server.call(self._their_name, arguments, interrupt)


class McpServer:
    """Implements `ToolSource` over one server. It must be closed before its loop."""

    def __init__(
        self,
        name: str,
        open_transport: OpenTransport,
        loop: AsyncLoop,
        *,
        approval: Approval = "ask",
        only: Sequence[str] = (),
        servers: Sequence[str] = (),
        timeout_seconds: float = 20.0,
        notice: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a server that is not connected yet.

        Args:
            only: the names that the server has for the tools to offer; empty: all.
            servers: names of all servers; a tool whose name belongs to another one is not offered.
            timeout_seconds: longest call.
            notice: told, on any thread, when the server can't be reached, and which tools can't be used.
        """
        self.name = name
        self.approval: Approval = approval
        self.ready = threading.Event()  # connected, or failed to
        self._open_transport = open_transport
        self._loop = loop
        self._only = tuple(only)
        self._servers = (name, *servers)
        self._timeout_seconds = timeout_seconds
        self._notice = notice
        self._clock = clock
        self._tools: tuple[McpTool, ...] = ()
        self._connection: Connection | None = None
        self._life: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[Connection] | None = None
        self._failures = 0  # Failures since a call succeeded.
        self._next_attempt = 0.0
        self._revival: Future[None] | None = None
        self._told: set[str] = set()
        self._is_closed = False
        self.problem = ""  # why there is no connection

    @property
    def tools(self) -> tuple[McpTool, ...]:
        """The tools that the server had when they were last listed. A server that never answered is tried again."""
        if not self._tools and self.ready.is_set() and self._clock() >= self._next_attempt:
            self.start()
        return self._tools

    def start(self) -> None:
        """Connect in the background, unless that is under way."""
        if self._revival is None or self._revival.done():
            self._revival = self._loop.start(self._begin())

    def wait_until_ready(self, seconds: float = CONNECT_SECONDS) -> bool:
        """Wait until the server is connected or failed; return whether it is connected."""
        return self.ready.wait(seconds) and not self.problem

    def call(self, tool: str, arguments: dict[str, Any], interrupt: threading.Event) -> str:
        """Call a tool by the name that the server has for it; return its result as text.

        Raises:
            VoxError: there is no connection, it ended during the call, the tool failed, or `interrupt` was set.
            TimeoutError: it took too long; the server was told to cancel it.
        """
        try:
            return self._loop.run(self._call(tool, arguments), self._timeout_seconds, interrupt)
        except TimeoutError as error:
            raise TimeoutError(f"Its limit is {self._timeout_seconds:g} s.") from error

    def close(self) -> None:
        """End the connection, and with it the program, if the server is one."""
        close_servers([self])

    def begin_to_close(self) -> "Future[None]":
        """Begin to end the connection."""
        return self._loop.start(self._close())

    @property
    def _gone(self) -> str:
        return f"the tools of mcp.{self.name} are missing: {printable(self.problem)}"

    # --- On the loop ---

    async def _begin(self) -> None:
        try:
            await self._connected()
        except VoxError as error:
            self._tell(error.message)
        finally:
            self.ready.set()

    async def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        lost = ConnectionLost("")
        for _ in range(2):  # A call that was certainly not sent is sent over a new connection.
            connection = await self._connected()
            try:
                text = await connection.call(tool, arguments)
            except ConnectionLost as end:
                lost = end
                if lost.was_sent:
                    break
            else:
                self._failures = 0
                return text
        raise self._lost(lost) from lost

    def _lost(self, lost: ConnectionLost) -> VoxError:
        self._failed(str(lost))
        said = f": {printable(str(lost))}" if str(lost) else ""
        return VoxError(f"the server mcp.{self.name} ended during the call, which may or may not have been done{said}")

    async def _connected(self) -> Connection:
        """Return an open connection, a new one if need be and the server is not closed. Raises VoxError.

        An attempt to connect goes on when the call that wanted it is cancelled.
        """
        if self._connection and self._connection.is_open:
            return self._connection
        if self._is_closed:
            raise VoxError(f"the connection to mcp.{self.name} is closed")
        if self._attempt is None or self._attempt.done():
            if (pause := self._next_attempt - self._clock()) > 0:
                raise VoxError(f"{self._gone}; it is tried again in {pause:.0f} s")
            self._attempt = asyncio.ensure_future(self._connect())
            self._attempt.add_done_callback(lambda attempt: attempt.cancelled() or attempt.exception())
        return await asyncio.shield(self._attempt)

    async def _connect(self) -> Connection:
        await self._end()
        ready = asyncio.Event()
        self._connection = connection = Connection(self.name, self._open_transport, self._on_tools)
        self._life = life = asyncio.ensure_future(connection.run(ready))
        opened = asyncio.ensure_future(ready.wait())
        try:
            await asyncio.wait({life, opened}, timeout=CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if not ready.is_set():
            late = f"it did not answer within {CONNECT_SECONDS:g} s"
            self._failed(connection.reason or ("the server ended at once" if life.done() else late))
            await self._end()
            raise VoxError(self._gone)
        self.problem = ""
        self.ready.set()
        log.info("mcp %s: connected, %d tools", self.name, len(self._tools))
        return connection

    def _failed(self, reason: str) -> None:
        """Count a failure. The first one is followed by another attempt at once, each further one later."""
        self._failures += 1
        pause = 0.0 if self._failures == 1 else min(LONGEST_PAUSE_SECONDS, 2.0 ** (self._failures - 2))
        self._next_attempt = self._clock() + pause
        self.problem = reason or "the server ended"
        log.info("mcp %s: %s; failure %d, pause %g s", self.name, self.problem, self._failures, pause)

    async def _close(self) -> None:
        self._is_closed = True  # A call on another thread would start the program again.
        if self._attempt:
            self._attempt.cancel()
            await asyncio.wait({self._attempt})
        await self._end()

    async def _end(self) -> None:
        """Stop the connection, if there is one, and wait until it has ended."""
        connection, life, self._connection, self._life = self._connection, self._life, None, None
        if connection and life:
            connection.stop()
            _, hanging = await asyncio.wait({life}, timeout=END_SECONDS)
            if hanging:
                log.warning("mcp %s: it does not end", self.name)

    def _on_tools(self, tools: "Sequence[Tool]") -> None:
        """Keep the tools that can be used; tell of the others once."""
        kept: dict[str, McpTool] = {}
        for tool in wanted(tools, self._only):
            try:
                schema = ArgumentSchema(tool.input_schema, trusted=False)
            except WrongSchema as error:
                self._tell(f"{self.name}: its tool {printable(tool.name[:64])} can't be used: {error}")
                continue
            spec = spec_of(self.name, tool, schema)
            owner = server_of(spec.name, self._servers)
            if owner != self.name:
                self._tell(f"{self.name}: its tool {spec.name} can't be used: tools of mcp.{owner} have such names")
            elif spec.name in kept:
                self._tell(f"{self.name}: it has two tools {spec.name}; the first is used")
            elif len(kept) >= MOST_TOOLS:
                self._tell(f"{self.name}: it has more than {MOST_TOOLS} tools; choose some with mcp.{self.name}.tools")
            else:
                kept[spec.name] = McpTool(self, spec, schema, tool.name)
        self._tools = tuple(kept.values())
        for name in set(self._only) - {tool.name for tool in tools}:
            self._tell(f"{self.name}: it has no tool {printable(name)}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notice(text)


def close_servers(servers: Sequence[McpServer]) -> None:
    """Close servers, all at the same time."""
    for server, end in [(server, server.begin_to_close()) for server in servers]:
        try:
            end.result(2 * END_SECONDS)
        except (TimeoutError, CancelledError):
            log.warning("mcp %s: it is left behind", server.name)
