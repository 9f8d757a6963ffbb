"""Views of a live conversation: on a terminal, in lines, as JSON; they know events, not how these came about.

Replies go to stdout, everything else to stderr. A stream that closes takes nothing with it: the
conversation goes on.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from voxcli.chat.events import LiveEvent


class LiveView(Protocol):
    """Shows a conversation; its methods may be called on any thread.

    hints: keys and what they do, for the user to read; may be set at any time
    """

    hints: Mapping[str, str]

    def starting(self, what: str, share: float | None = None) -> None:
        """Show what is being made ready and, where it is known, how much of it is done, in [0, 1]."""
        ...

    def show(self, event: LiveEvent) -> None:
        """Show an event. `TurnTaken` shows a finished turn; the `TurnEnded` in it needs no showing."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Leave the terminal to somebody else for a while; what happens meanwhile is shown afterwards."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; raises VoxError if not all could be written."""
        ...


def open_live_view(*, as_json: bool = False) -> LiveView:
    """Return the view that fits standard output."""
    from voxcli.chat.views.lines import JsonLiveView, PlainView

    if as_json:
        return JsonLiveView()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from voxcli.chat.views.terminal import TerminalView

        return TerminalView()
    return PlainView()
