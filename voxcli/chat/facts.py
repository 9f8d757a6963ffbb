"""Finds facts about the user at the end of a conversation, in what the user said, and keeps them for later ones."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from voxcli.chat.events import FactsLearned, LiveEvent, Notice, SessionEnded, TurnTaken, TurnUndone
from voxcli.core.facts import SAID_CHARACTERS, learned_facts
from voxcli.core.protocols import Engine
from voxcli.core.storage.facts import MOST_FACTS, FactFile
from voxcli.core.turn import TurnEnded
from voxcli.core.understanding import Understood
from voxcli.errors import VoxError

log = logging.getLogger(__name__)

LOOKING = "looking for facts to remember; Ctrl-C skips this"
NOTHING_UNDERSTOOD = "no facts were looked for, because nothing is known of what you said; see --understood"


class FactFinder:
    """Passes events on, collects what the user says, and finds facts in it before the last event is shown."""

    def __init__(
        self,
        file: FactFile,
        engine: Engine,
        show: Callable[[LiveEvent], None],
        finish_replies: Callable[[], None],
        characters: int = SAID_CHARACTERS,
    ) -> None:
        """Keep facts in `file`; ask `engine` for them.

        Args:
            show: renders an event.
            finish_replies: returns once nothing uses the engine any more.
            characters: most characters of what the user said that the engine is shown.
        """
        self._file = file
        self._engine = engine
        self._view = show
        self._finish_replies = finish_replies
        self._characters = characters
        self._said: dict[int, str] = {}  # What was said, by the number of its turn.

    def show(self, event: LiveEvent) -> None:
        """Show an event; before the last one, find facts. Ctrl-C ends the search."""
        match event:
            case TurnTaken(ended, number):
                self._said[number] = _said(ended)
            case Understood(text, number) if number in self._said:  # known after the end of its turn
                self._said[number] = self._said[number] or text
            case TurnUndone(_, number):
                self._said.pop(number, None)
            case SessionEnded() if any(self._said.values()):
                self._find()
            case SessionEnded() if self._said:
                self._view(Notice(NOTHING_UNDERSTOOD))
        self._view(event)

    def _find(self) -> None:
        """Find facts, keep and show them. A failure is shown, and loses nothing."""
        self._view(Notice(LOOKING))
        interrupt = threading.Event()
        try:
            with _set_by_ctrl_c(interrupt):
                self._finish_replies()
                known = self._file.read()
                said = list(self._said.values())
                found = learned_facts(self._engine, said, known, interrupt, self._characters)
            if interrupt.is_set():
                self._view(Notice("no facts were looked for"))
                return
            room = MOST_FACTS - len(known)
            if len(found) > room:
                self._view(Notice(f"{MOST_FACTS} facts are kept, and no more; voxcli facts delete makes room"))
            self._view(FactsLearned(self._file.add(found[:room])))
        except VoxError as error:
            self._view(Notice(f"no facts are kept of this conversation: {error.message}"))


def _said(ended: TurnEnded) -> str:
    """Return the words of the user in a turn, as far as they are known."""
    turn = ended.turn
    return " ".join(
        filter(None, (turn.understood or ended.report.understood or ended.report.transcript, turn.typed_text))
    )


@contextmanager
def _set_by_ctrl_c(interrupt: threading.Event) -> Iterator[None]:
    """Let Ctrl-C set an event, where signals can be received: on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda _number, _frame: interrupt.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
