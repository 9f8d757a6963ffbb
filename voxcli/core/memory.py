"""Holds the session in use and, if it has a name, stores its turns on disk.

`once`, `batch` and `chat` all remember turns here: a turn is on disk before its `TurnEnded` is passed on.
"""

import logging
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from voxcli.core.session import Session, Turn
from voxcli.core.store import Store, TurnDetails
from voxcli.core.turn import Engine, Event, SpeechOutput, TurnEnded, Utterance, run_turn
from voxcli.errors import ConfigError

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

    def undo(self) -> Turn | None:
        """Remove the last turn from the session and from the next prompt; return it, None if there is none."""
        if not self.session.turns:
            return None
        turn = self.session.turns[-1]
        self.session = replace(self.session, turns=self.session.turns[:-1])
        self.turn_number -= 1
        return turn

    def save_as(self, name: str, store: Store, engine: Engine) -> None:
        """Keep the session, with its turns so far, in `store` under a new name; the caller closes the store.

        Raises:
            ConfigError: there is a session of that name.
            StoreError: it can't be stored.
        """
        if store.session(name):
            raise ConfigError(f"there is a session named {name!r} already", hint="choose another name")
        details = TurnDetails(engine.name, engine.model)
        for turn in self.session.turns:
            store.append(name, turn, details, instructions=self.session.instructions)
        self.session, self._store = replace(self.session, name=name), store
