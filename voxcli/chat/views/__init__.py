"""Views of a live conversation: on a terminal, as plain lines, as JSON.

Replies go to stdout, everything else to stderr. The conversation goes on if a stream is closed.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from voxcli.chat.events import LiveEvent


class LiveView(Protocol):
    """Shows a conversation; methods may be called on any thread.

    hints: keys and what they do, shown to the user; may be set at any time
    """

    hints: Mapping[str, str]

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


def open_live_view(*, as_json: bool = False) -> LiveView:
    """Return the view that suits standard output."""
    from voxcli.chat.views.lines import JsonLiveView, PlainView

    if as_json:
        return JsonLiveView()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from voxcli.chat.views.terminal import TerminalView

        return TerminalView()
    return PlainView()
