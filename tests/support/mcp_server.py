"""An MCP server made with the package: `python -m tests.support.mcp_server stdio`, or `... http PORT`."""

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import AudioContent, ContentBlock, EmbeddedResource, ImageContent, TextContent, TextResourceContents
from pydantic import BaseModel

server = MCPServer("test")


class Weather(BaseModel):
    """What `weather` returns, as structured content."""

    city: str
    degrees: float


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def weather(city: str) -> Weather:
    """Tell the weather."""
    return Weather(city=city, degrees=21.5)


@server.tool()
def mixed() -> list[ContentBlock]:
    """Return blocks of every kind."""
    page = TextResourceContents(uri="file:///page.txt", mime_type="text/plain", text="the page")
    return [
        TextContent(type="text", text="before\x1b[2J"),
        ImageContent(type="image", data="AAAA", mime_type="image/png"),
        AudioContent(type="audio", data="AAAA", mime_type="audio/wav"),
        EmbeddedResource(type="resource", resource=page),
    ]


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("no such\x1b[31m thing")


@server.tool()
def noise() -> str:
    """Write to standard output, where messages belong, and to standard error."""
    os.write(1, b"this is no message\n\xff\xfe\n")
    sys.stderr.write("a word for the log\n")
    return "quiet"


@server.tool()
def crash() -> str:
    """End at once."""
    sys.stderr.write("my last words\n")
    os._exit(3)


@server.tool()
async def wait(began: str, cancelled: str) -> str:
    """Write a file, and wait until it is cancelled; then write another."""
    Path(began).write_text("began")
    try:
        await asyncio.sleep(1000)
    finally:
        Path(cancelled).write_text("cancelled")
    return "never"


def later() -> str:
    """Be there later."""
    return "here"


@server.tool()
async def grow(context: Context) -> str:
    """Add a tool, and tell of it."""
    server.add_tool(later)
    await context.notify_tools_changed()
    return "grown"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run()
    else:
        server.run("streamable-http", port=int(sys.argv[2]))
