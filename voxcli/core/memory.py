"""A session in use: what prompts see of it and, where it has a name, what lies on disk.

`once`, `batch` and `chat` take their turns here, so that each remembers in the same way: a turn is
on disk before anybody is told that it ended. How a turn runs is not known here but in `voxcli.core.turn`.
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
        """Begin with `session`; `store` is where a named one is kept, and stays its owner's to close."""
        self.session = session
        self._store = store
        self.turn_number = len(session.turns)  # of the last turn in the session, from 1

    @property
    def place(self) -> str | None:
        """The file that the session is in; None if it is kept in memory alone."""
        return str(self._store.path) if self._store else None

    @classmethod
    def resumed(cls, store: Store, name: str, instructions: str, *, override: bool = False) -> "Memory":
        """Go on with a stored session, or begin one of that name.

        Args:
            instructions: for a new session; an old one keeps its own, unless `override`.

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
        """Run a turn; `TurnEnded` comes when the turn is remembered. Close it to stop early: no turn took place.

        Raises:
            VoxError: the engine's, then there was no turn; or a StoreError, then it is remembered here alone.
        """
        with closing(run_turn(engine, self.session, utterance, interrupt, speech)) as events:
            for event in events:
                if isinstance(event, TurnEnded):
                    self.remember(event, engine)
                yield event

    def remember(self, ended: TurnEnded, engine: Engine) -> None:
        """Add a turn that `engine` answered; it is on disk on return. Raises StoreError."""
        self.session = self.session.add(ended.turn)
        self.turn_number += 1
        if self._store and self.session.name:
            details = TurnDetails(engine.name, engine.model, ended.report.transcript)
            self.turn_number = self._store.append(
                self.session.name, ended.turn, details, instructions=self.session.instructions
            )
        log.debug("turn %d remembered", self.turn_number)
