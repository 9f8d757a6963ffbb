"""Holds the session in use and, if it has a name, stores its turns on disk.

`once`, `batch` and `chat` all remember turns here: a turn is on disk before its `TurnEnded` is passed on.
"""

import logging
import math
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from voxcli.core.facts import with_facts
from voxcli.core.protocols import Engine, SpeechOutput, Utterance
from voxcli.core.session import Session, Turn, automatic_name
from voxcli.core.storage.store import Store
from voxcli.core.storage.stored import StageTimes, TurnDetails
from voxcli.core.tools import ToolRunner
from voxcli.core.turn import Event, TurnEnded, run_turn, with_understood
from voxcli.core.understanding import Understanding, Understood, UnderstoodMode
from voxcli.errors import ConfigError

log = logging.getLogger(__name__)


class Memory:
    """Holds the session of one conversation and adds finished turns to it."""

    def __init__(
        self,
        session: Session,
        store: Store | None = None,
        numbers: Sequence[int] = (),
        *,
        names_itself: bool = False,
        persona: str | None = None,
        understood: UnderstoodMode = "off",
    ) -> None:
        """Begin with `session`. A named session is kept in `store`, which the caller closes.

        Args:
            numbers: the numbers that the turns of the session have in the store, if they are not 1, 2, 3...
            names_itself: a session without a name is given one, and so kept, once it has a turn.
            persona: what the instructions come from; stored with a new session.
            understood: whether engines are asked what they understood, and whether later prompts show it.
        """
        self.session = session
        self.understood: UnderstoodMode = understood
        self.persona = persona
        self._has_new_persona = False  # The store does not know it yet.
        self._instructions = session.instructions
        self._facts: tuple[str, ...] = ()
        self._store = store
        self._numbers = list(numbers) or list(range(1, 1 + len(session.turns)))
        self._names_itself = names_itself

    @property
    def turn_number(self) -> int:
        """The number of the last turn in the session, from 1; 0 if there is none."""
        return self._numbers[-1] if self._numbers else 0

    @property
    def instructions(self) -> str:
        """The instructions as they are stored: without facts about the user."""
        return self._instructions

    def instruct(self, instructions: str) -> None:
        """Give later prompts other instructions."""
        self._instructions = instructions
        self.session = replace(self.session, instructions=with_facts(instructions, self._facts))

    def take_persona(self, persona: str | None, instructions: str) -> None:
        """Give later prompts the instructions of another persona; a stored session keeps it with its next turn."""
        self.persona, self._has_new_persona = persona, True
        self.instruct(instructions)

    def tell_facts(self, facts: Sequence[str]) -> None:
        """Give later prompts facts about the user, after the instructions. They are not stored with the session."""
        self._facts = tuple(facts)
        self.instruct(self._instructions)

    @property
    def is_kept(self) -> bool:
        """Whether turns are stored on disk."""
        return self._store is not None and (self.session.name is not None or self._names_itself)

    @property
    def place(self) -> str | None:
        """The file that holds the session; None if it is kept in memory only, or has no turn and no name yet."""
        return str(self._store.path) if self._store and self.session.name is not None else None

    @classmethod
    def resumed(
        cls,
        store: Store,
        name: str,
        instructions: str,
        *,
        override: bool = False,
        persona: str | None = None,
        understood: UnderstoodMode = "off",
    ) -> "Memory":
        """Continue a stored session, or begin one of that name.

        Args:
            instructions: those of a new session; a stored one keeps its own unless `override` is set.
            persona: that of a new session; a stored one keeps its own.
            understood: as in `Memory`.

        Raises:
            StoreError: the store can't be read.
        """
        stored = store.stored(name)
        if stored is None:
            return cls(Session(name, instructions), store, persona=persona, understood=understood)
        session = replace(stored.session, instructions=instructions) if override else stored.session
        numbers = [each.number for each in stored.turns]
        return cls(session, store, numbers, persona=stored.persona, understood=understood)

    def take_turn(
        self,
        engine: Engine,
        utterance: Utterance,
        interrupt: threading.Event,
        speech: SpeechOutput | None = None,
        tools: ToolRunner | None = None,
        *,
        silence_seconds: float = math.inf,
    ) -> Generator[Event, None, None]:
        """Run a turn; its last event, `TurnEnded`, comes once the turn is remembered.

        What was understood, if it is not known by then, is waited for after that, unless `interrupt` is set. Close the
        generator to stop early; before the turn is remembered, none took place.

        Args:
            tools: runs the tools that the model calls; None if it has none.
            silence_seconds: how long an engine that is asked what it understood may write nothing.

        Raises:
            VoxError: raised by the engine; no turn took place, unless a tool had run: then it is remembered.
            StoreError: the turn could not be stored; it is remembered in memory only.
        """
        understanding = Understanding(self.understood, silence_seconds=silence_seconds)
        turn = run_turn(engine, self.session, utterance, interrupt, speech, tools=tools, understanding=understanding)
        with closing(understanding), closing(turn) as events:
            for event in events:
                if not isinstance(event, TurnEnded):
                    yield event
                    continue
                self.remember(with_understood(event, understanding), engine)
                if event.error:
                    raise event.error
                while not interrupt.is_set() and understanding.advance():
                    pass
                for news in understanding.news():
                    if isinstance(news, Understood):
                        self.fill_in(self.turn_number, news.text)
                    yield news
                yield with_understood(event, understanding)

    def remember(self, ended: TurnEnded, engine: Engine, latency: StageTimes | None = None) -> None:
        """Add a turn that `engine` answered; it is on disk when this returns. Raises StoreError."""
        self.session = self.session.add(ended.turn)
        self._numbers.append(self.turn_number + 1)
        if self._store and self.is_kept:
            transcript = ended.report.transcript or ended.report.understood or None
            details = TurnDetails(engine.name, engine.model, transcript, latency or StageTimes())
            name = self.session.name or self._name_session(self._store, ended)
            self._numbers[-1] = self._store.append(
                name, ended.turn, details, instructions=self._instructions, persona=self.persona
            )
            if self._has_new_persona:
                self._store.set_persona(name, self.persona, self._instructions)
                self._has_new_persona = False
        log.debug("turn %d remembered", self.turn_number)

    def fill_in(self, number: int, text: str) -> None:
        """Add what was understood in a turn to its stored transcript and, if it is to be remembered, to later prompts.

        Nothing happens if the turn was undone.

        Raises:
            StoreError: it can't be stored; it is remembered in memory only.
        """
        if number not in self._numbers:
            return
        remembered = text if self.understood == "remember" else ""
        if remembered:
            place, turns = self._numbers.index(number), list(self.session.turns)
            turns[place] = replace(turns[place], understood=remembered)
            self.session = replace(self.session, turns=tuple(turns))
        if self._store and self.session.name is not None:
            self._store.fill_in(self.session.name, number, transcript=text, understood=remembered)

    def _name_session(self, store: Store, ended: TurnEnded) -> str:
        """Name the session after the first words of a turn, and return the name."""
        said = ended.report.transcript or ended.report.understood
        texts = said, ended.turn.typed_text, ended.turn.reply
        name = store.create(automatic_name(datetime.now().astimezone().date(), texts), self._instructions, self.persona)
        self.session = replace(self.session, name=name)
        return name

    def undo(self) -> Turn | None:
        """Remove the last turn from the session and from the next prompt; return it, None if there is none.

        `Store.redo` brings it back until another turn is remembered.

        Raises:
            StoreError: it could not be undone on disk; it is removed in memory only.
        """
        if not self.session.turns:
            return None
        turn, number = self.session.turns[-1], self._numbers.pop()
        self.session = self.session.without_last()
        if self._store and self.session.name is not None:
            self._store.undo(self.session.name, number)
        log.debug("turn %d undone", number)
        return turn

    def save_as(self, name: str, store: Store, engine: Engine) -> None:
        """Name the session, or rename it; a session that is kept in memory only is kept in `store` from now on.

        Raises:
            ConfigError: there is a session of that name.
            StoreError: it can't be stored.
        """
        before = self.session.name
        taken = not store.rename(before, name) if before is not None and self._store else bool(store.session(name))
        if taken:
            raise ConfigError(f"there is a session named {name!r} already", hint="choose another name")
        if before is None or not self._store:
            details = TurnDetails(engine.name, engine.model)
            appended = [
                store.append(name, turn, details, instructions=self._instructions, persona=self.persona)
                for turn in self.session.turns
            ]
            self._store, self._numbers = store, appended
        self.session = replace(self.session, name=name)
