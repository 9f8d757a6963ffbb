"""Tools by which a model remembers facts about the user, and forgets them."""

from typing import Any

from voxcli.core.facts import model_fact
from voxcli.core.storage.facts import FACT_CHARACTERS, FactFile
from voxcli.printable import printable
from voxcli.tools.builtin import BuiltinTool
from voxcli.tools.tool import Approval


class FactTool(BuiltinTool):
    """A tool that changes the facts about the user."""

    def __init__(self, *arguments: Any, approval: Approval) -> None:
        """Create a tool from the arguments of `BuiltinTool`."""
        super().__init__(*arguments)
        self.approval = approval


def remember_tool(file: FactFile) -> FactTool:
    """Return the tool that adds a fact. It needs no approval: the user sees the call, and owns the list."""

    def remember(arguments: dict[str, Any]) -> str:
        fact = model_fact(arguments["fact"])
        return f"Remembered: {fact}" if file.add([fact]) else "That is remembered already."

    description = "Remembers something about the user for later conversations. Call it when the user asks for that."
    return FactTool("remember", description, _fact("In a few words, such as: name: Anna"), remember, approval="always")


def forget_tool(file: FactFile) -> FactTool:
    """Return the tool that deletes a fact. It needs approval: what is forgotten is gone."""

    def forget(arguments: dict[str, Any]) -> str:
        return f"Forgotten: {printable(file.delete_words(arguments['fact']))}"

    description = "Forgets one thing that was remembered about the user. Call it when the user asks for that."
    return FactTool("forget", description, _fact("Words of what to forget."), forget, approval="ask")


def _fact(description: str) -> dict[str, Any]:
    fact = {"type": "string", "description": description, "minLength": 1, "maxLength": FACT_CHARACTERS}
    return {"type": "object", "properties": {"fact": fact}, "required": ["fact"], "additionalProperties": False}
