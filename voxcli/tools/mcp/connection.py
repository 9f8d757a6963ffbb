"""One connection to an MCP server: opens it, keeps the list of its tools fresh, sends calls, and notices its end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import ValidationError

from voxcli import __version__
from voxcli.errors import VoxError
from voxcli.printable import first_line
from voxcli.tools.mcp.content import text_of
from voxcli.tools.mcp.transport import OpenTransport

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client._transport import TransportStreams
    from mcp.client.session import IncomingMessage
    from mcp.types import CallToolResult, Tool

log = logging.getLogger(__name__)
# The package logs whole messages with tracebacks, also where nobody turned logging on. This module logs what counts.
logging.getLogger("mcp").addHandler(logging.NullHandler())
logging.getLogger("mcp").propagate = False

MOST_PAGES = 50
MOST_NOISE = 1000  # lines that are no messages; after them a server is given up
LISTEN_AGAIN_SECONDS = 5.0
SESSION_UNKNOWN = "Session terminated"  # what the package says for HTTP 404 to a call


class ConnectionLost(Exception):  # noqa: N818 - an end rather than an error
    """The connection has ended; the message says why, where that is known."""

    def __init__(self, reason: str, *, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.was_sent = was_sent  # whether the server may have begun to work on the call


class Connection:
    """Lives on the loop. `run` is its life; the other methods are for other tasks."""

    def __init__(self, name: str, open_transport: OpenTransport, on_tools: "Callable[[Sequence[Tool]], None]") -> None:
        """Create a connection that is not open yet.

        Args:
            on_tools: told the server's tools at the beginning, and whenever they change.
        """
        self._name = name
        self._open_transport = open_transport
        self._on_tools = on_tools
        self._client: Client | None = None
        self._is_stale = asyncio.Event()  # the list of tools has changed
        self._is_over = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._noise = 0
        self.reason = ""  # the last words of the server, or what ended the connection

    @property
    def is_open(self) -> bool:
        """Whether calls can be sent."""
        return self._client is not None and not self._is_over.is_set()

    async def run(self, ready: asyncio.Event) -> None:
        """Open the connection, set `ready`, and keep it until it ends; `reason` then says why. Raises nothing."""
        try:
            with self._scope:
                await self._run(ready)
        except VoxError as error:
            self.reason = error.message
        except Exception as error:  # noqa: BLE001 - whatever the package raises; it has no common base
            self.reason = self.reason or _words(error)
            log.info("mcp %s: the connection ended: %s", self._name, _words(error))
        finally:
            self._client = None
            self._is_over.set()

    async def _run(self, ready: asyncio.Event) -> None:
        from mcp import Client
        from mcp.types import Implementation

        transport: Any = self._watched()
        client = Client(
            transport,
            message_handler=self._on_message,
            client_info=Implementation(name="voxcli", version=__version__),
            cache=None,
        )
        async with client:
            await self._list(client)
            self._client = client
            ready.set()
            await self._keep(client)

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """Call a tool and return its result as text.

        Raises:
            ConnectionLost: the connection ended before there was a result.
            VoxError: the tool failed.
        """
        client = self._client
        if client is None:
            raise ConnectionLost(self.reason, was_sent=False)
        call = asyncio.ensure_future(self._called(client, tool, arguments))
        over = asyncio.ensure_future(self._is_over.wait())
        try:
            await asyncio.wait({call, over}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise ConnectionLost(self.reason)
            result = call.result()
        finally:
            over.cancel()
            call.cancel()
            with suppress(asyncio.CancelledError, ConnectionLost, VoxError):
                await call  # It tells the server that the call is cancelled.
        if result.is_error:
            raise VoxError(text_of(result) or "the server reports an error without saying which")
        return text_of(result)

    def end(self) -> None:
        """End the connection as soon as it is open."""
        self._is_over.set()

    def stop(self) -> None:
        """Stop whatever `run` is doing. A task must not be cancelled instead: that leaves programs behind."""
        self._is_over.set()
        self._scope.cancel()

    async def _called(self, client: "Client", tool: str, arguments: dict[str, Any]) -> "CallToolResult":
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        try:
            return await client.call_tool(tool, arguments)
        except MCPError as error:
            forgotten = SESSION_UNKNOWN in str(error)  # The server has been restarted.
            if forgotten or error.code == CONNECTION_CLOSED:
                self.end()
                raise ConnectionLost(self.reason, was_sent=not forgotten) from error
            raise VoxError(f"the server refuses the call: {first_line(error)}") from error
        except Exception as error:  # The reason is that of the clause above.
            raise VoxError(f"the server's answer can't be used: {_words(error)}") from error

    async def _keep(self, client: "Client") -> None:
        """List the tools again whenever they change, until the connection is over."""
        listening = asyncio.ensure_future(self._listen(client))
        over = asyncio.ensure_future(self._is_over.wait())
        try:
            while not self._is_over.is_set():
                stale = asyncio.ensure_future(self._is_stale.wait())
                await asyncio.wait({stale, over}, return_when=asyncio.FIRST_COMPLETED)
                stale.cancel()
                if self._is_stale.is_set() and not self._is_over.is_set():
                    self._is_stale.clear()
                    log.info("mcp %s: its tools have changed", self._name)
                    await self._list(client)
        finally:
            over.cancel()
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _listen(self, client: "Client") -> None:
        """Wait for changes where the protocol's version wants to be asked for them; others notify by themselves."""
        from mcp import MCPError
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._is_stale.set()
            except (ListenNotSupportedError, MCPError):
                return
            except SubscriptionLost:
                log.info("mcp %s: it no longer tells when its tools change", self._name)
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)
            self._is_stale.set()

    async def _list(self, client: "Client") -> None:
        tools: list[Tool] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            if not (cursor := page.next_cursor):
                break
        self._on_tools(tools)

    async def _on_message(self, message: "IncomingMessage") -> None:
        from mcp.types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self._is_stale.set()
        elif isinstance(message, Exception):
            self._noise += 1
            log.debug("mcp %s: what came is no message: %s", self._name, type(message).__name__)
            if self._noise > MOST_NOISE:
                self.reason = "it writes what are no messages"
                self.end()

    @asynccontextmanager
    async def _watched(self) -> "AsyncIterator[TransportStreams]":
        """Open the transport, and notice when the server closes it."""
        async with self._open_transport(self._note) as (reading, writing):
            yield _WatchedStream(reading, self.end), writing

    def _note(self, words: str) -> None:
        self.reason = words


class _WatchedStream:
    """Reads messages from another stream, and tells when it has ended."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        """The context of the last message, which the package looks for."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> "_WatchedStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:
            self._on_end()
            raise

    async def __aenter__(self) -> "_WatchedStream":
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        left: bool | None = await self._stream.__aexit__(*error)
        return left


def _words(error: BaseException) -> str:
    """Return the message of an error, or of the first within a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        return first_line(f"its answer is not as the protocol says: {place}: {problem['msg']}")
    return first_line(error)
