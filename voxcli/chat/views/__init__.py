"""Views of a live conversation: on a terminal, as plain lines, as JSON.

Replies go to stdout, everything else to stderr. The conversation goes on if a stream is closed.
"""

import os
import sys
from contextlib import AbstractContextManager
from typing import Protocol

from voxcli.chat.events import LiveEvent


class LiveView(Protocol):
    """Shows a conversation; methods may be called on any thread."""

    def starting(self, what: str, share: float | None = None) -> None:
        """Show what is being prepared and, if known, how much of it is done, from 0 to 1."""
        ...

    def show(self, event: LiveEvent) -> None:
        """Show an event."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Leave the terminal alone for the time of the context; show events of that time afterwards."""
        ...

    def close(self) -> None:
        """Restore the terminal.

        Raises:
            VoxError: some output could not be written.
        """
        ...


def open_live_view(*, as_json: bool = False, plain: bool = False, stages: bool = False) -> LiveView:
    """Return the view that suits standard output.

    Args:
        plain: write lines, also to a terminal that can redraw.
        stages: show people the latency of each stage.
    """
    from voxcli.chat.views.lines import JsonLiveView, PlainView

    if as_json:
        return JsonLiveView()
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView(stages=stages)
    from voxcli.chat.views.terminal import TerminalView, can_redraw

    return TerminalView(stages=stages) if can_redraw() else PlainView(stages=stages)
