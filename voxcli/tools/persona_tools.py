"""Limits the tools of a conversation to those that its persona may call."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from voxcli.tools.tool import Tool, ToolSource


class PersonaTools:
    """Implements `ToolSource`: the tools of another source whose names match a pattern."""

    def __init__(self, source: ToolSource, patterns: Sequence[str]) -> None:
        """Limit a source.

        Args:
            patterns: names, in which * stands for any characters.
        """
        self._source = source
        self._patterns = tuple(patterns)

    @property
    def tools(self) -> Sequence[Tool]:
        return [
            tool
            for tool in self._source.tools
            if any(fnmatchcase(tool.spec.name, pattern) for pattern in self._patterns)
        ]
