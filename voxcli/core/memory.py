"""Holds the session in use and, if it has a name, stores its turns on disk.

`once`, `batch` and `chat` all remember turns here: a turn is on disk before its `TurnEnded` is passed on.
"""

import logging
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from voxcli.core.session import Session
from voxcli.core.store import Store, TurnDetails
from voxcli.core.turn import Engine, Event, SpeechOutput, TurnEnded, Utterance, run_turn

log = logging.getLogger(__name__)


class Memory:
    """Holds the session of one conversation and adds finished turns to it."""

    def __init__(self, session: Session, store: Store | None = None) -> None:
        """Begin with `session`. A named session is kept in `store`, which the caller closes."""
        self.session = session
        self._store = store
        self.turn_number = len(session.turns)  # the last turn in the session, counted from 1

    @property
    def place(self) -> str | None:
        """The file that holds the session; None if it is kept in memory only."""
        return str(self._store.path) if self._store else None

    @classmethod
    def resumed(cls, store: Store, name: str, instructions: str, *, override: bool = False) -> "Memory":
        """Continue a stored session, or begin one of that name.

        Args:
            instructions: those of a new session; a stored one keeps its own unless `override` is set.

        Raises:
            StoreError: the store can't be read.
        """
        session = store.session(name) or Session(name, instructions)
        return cls(replace(session, instructions=instructions) if override else session, store)

    def take_turn(
        self,
        engine: Engine,
        utterance: Utterance,
        interrupt: threading.Event,
        speech: SpeechOutput | None = None,
    ) -> Generator[Event, None, None]:
        """Run a turn; its last event, `TurnEnded`, comes once the turn is remembered.

        Close the generator to stop early; then no turn took place.

        Raises:
            VoxError: raised by the engine; no turn took place.
            StoreError: the turn could not be stored; it is remembered in memory only.
        """
        with closing(run_turn(engine, self.session, utterance, interrupt, speech)) as events:
            for event in events:
                if isinstance(event, TurnEnded):
                    self.remember(event, engine)
                yield event

    def remember(self, ended: TurnEnded, engine: Engine) -> None:
        """Add a turn that `engine` answered; it is on disk when this returns. Raises StoreError."""
        self.session = self.session.add(ended.turn)
        self.turn_number += 1
        if self._store and self.session.name:
            details = TurnDetails(engine.name, engine.model, ended.report.transcript)
            self.turn_number = self._store.append(
                self.session.name, ended.turn, details, instructions=self.session.instructions
            )
        log.debug("turn %d remembered", self.turn_number)
