"""Turns what an MCP server returns into text and tools. This and the modules beside it know the package's types."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from voxcli.core.tools import ToolSpec
from voxcli.tools.arguments import ArgumentSchema
from voxcli.tools.results import cleaned

if TYPE_CHECKING:
    from mcp.types import CallToolResult, ContentBlock, Tool

NAME_CHARACTERS = 64
DESCRIPTION_CHARACTERS = 1024  # longest description that a model is given; about 250 tokens


def tool_name(server: str, tool: str) -> str:
    """Return the name that a server's tool has for a model: letters, digits, `_` and `-`, at most 64 of them."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}_{tool}")
    if len(name) <= NAME_CHARACTERS:
        return name
    return f"{name[: NAME_CHARACTERS - 9]}_{hashlib.sha256(tool.encode(errors='replace')).hexdigest()[:8]}"


def server_of(tool: str, servers: Iterable[str]) -> str | None:
    """Return the server that a tool's name belongs to: of `a` and `a_b`, the latter has `a_b_c`; None if none has."""
    return max((server for server in servers if tool.startswith(f"{server}_")), key=len, default=None)


def spec_of(server: str, tool: "Tool", schema: ArgumentSchema) -> ToolSpec:
    """Return what the model is told of a server's tool."""
    description = cleaned(tool.description or tool.title or "", DESCRIPTION_CHARACTERS)
    return ToolSpec(tool_name(server, tool.name), description, schema.json)


def text_of(result: "CallToolResult") -> str:
    """Return a result as text. What is no text is named and left out."""
    text = "\n".join(filter(None, map(_block, result.content)))
    if result.structured_content is not None and not any(block.type == "text" for block in result.content):
        text = "\n".join(filter(None, [text, json.dumps(result.structured_content, ensure_ascii=False)]))
    return text


def _block(block: "ContentBlock") -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[link to {block.name}: {block.uri}]"
    if block.type == "resource":
        resource = block.resource
        text = getattr(resource, "text", None)
        return text if isinstance(text, str) else f"[file {resource.uri} ({resource.mime_type}), left out]"
    return f"[{block.type} ({block.mime_type}), left out]"


def wanted(tools: Iterable["Tool"], names: Iterable[str]) -> list["Tool"]:
    """Return the tools of some names; all of them if there are no names."""
    chosen = set(names)
    return [tool for tool in tools if not chosen or tool.name in chosen]
