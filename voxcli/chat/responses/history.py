"""The turns of a conversation: remembers and undoes them, and counts them for the summary at the end."""

from collections.abc import Callable
from dataclasses import replace

from voxcli.chat.events import (
    Latency,
    LiveEvent,
    Notice,
    SessionEnded,
    TurnFailed,
    TurnRetracted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.responses.response import Response
from voxcli.core.memory import Memory
from voxcli.core.protocols import Engine
from voxcli.core.session import Session
from voxcli.core.turn import TurnEnded
from voxcli.core.understanding import Understood, UnderstoodMode
from voxcli.errors import VoxError


class History:
    """Keeps the memory of a conversation and its last utterance, which may be asked again."""

    def __init__(self, memory: Memory, engine: Engine, show: Callable[[LiveEvent], None]) -> None:
        """Begin with the turns in `memory`; `engine` answers further ones, `show` renders events."""
        self._memory = memory
        self._engine = engine
        self._show = show
        self.last: Response | None = None  # the last utterance that was asked, whatever became of it
        self._before_last: Response | None = None  # what `last` becomes if its turn is taken back
        self.turns = 0  # taken in this conversation
        self._latencies: list[Latency] = []  # Spoken turns alone.
        self._dropped = 0  # speculative replies
        self._dropped_in_turn = 0  # those dropped since the utterance started
        self._retracted = 0  # turns

    @property
    def session(self) -> Session:
        """The session as the next prompt needs it."""
        return self._memory.session

    @property
    def understood_mode(self) -> UnderstoodMode:
        """Whether the engine is asked what it understood."""
        return self._memory.understood

    def begin_utterance(self) -> None:
        """Count the dropped replies of the next turn from 0."""
        self._dropped_in_turn = 0

    def begin_turn(self, response: Response) -> None:
        """Note that a response becomes a turn."""
        response.dropped_speculative_replies = self._dropped_in_turn
        self.begin_utterance()
        if not response.repeats:
            self._before_last, self.last = self.last, response

    def retract(self, response: Response, spoken_text: str) -> None:
        """Note that a turn is taken back, because its utterance continues; show it.

        Args:
            spoken_text: the part of its reply that was played.
        """
        self._retracted += 1
        if response is self.last:
            self.last = self._before_last
        self._show(TurnRetracted(spoken_text))

    def add_dropped(self, response: Response) -> None:
        """Count a dropped reply, with those that were dropped before it in the same turn."""
        self._dropped += 1
        self._dropped_in_turn += 1 + response.dropped_speculative_replies

    def remember(self, response: Response, ended: TurnEnded) -> None:
        """Remember a turn, and show it."""
        latency = response.latency(ended.timings)
        from_voice = latency if response.utterance.clip and not response.is_asked_again else None
        try:
            self._memory.remember(ended, self._engine, from_voice)
        except VoxError as error:
            self._show(TurnFailed(error))
        response.is_remembered, response.number = True, self._memory.turn_number
        response.understood = ended.report.transcript or ended.report.understood
        if response is self.last:
            self._before_last = None  # The turn can't be taken back any more.
        self.turns += 1
        if from_voice:
            self._latencies.append(from_voice)
        self._show(TurnTaken(ended, self._memory.turn_number, latency, response.utterance.clip))
        if ended.error:
            self._show(TurnFailed(ended.error))
        if note := ended.report.cut_note:
            self._show(Notice(note))

    def fill_in(self, response: Response, understood: Understood) -> None:
        """Add what was understood in a turn that is over, and show it."""
        if not response.is_remembered:
            return
        response.understood = understood.text
        try:
            self._memory.fill_in(response.number, understood.text)
        except VoxError as error:
            self._show(Notice(f"what was understood is not on disk: {error.message}"))
        self._show(replace(understood, turn=response.number))

    def undo(self) -> bool:
        """Remove the last turn from memory and from the next prompt; return False if there is none."""
        if not self.session.turns:
            self._show(Notice("there is no turn to undo"))
            return False
        undone = TurnUndone(self.session.turns[-1], self._memory.turn_number)
        try:
            self._memory.undo()
        except VoxError as error:
            self._show(Notice(f"the turn stays on disk: {error.message}"))
        if self.last:
            self.last.is_remembered = False
        self._show(undone)
        return True

    def copy_reply(self, copy: Callable[[str], str]) -> None:
        """Copy the last reply; `copy` returns a line that says so."""
        reply = self.session.last_reply
        self._show(Notice(copy(reply) if reply else "there is no reply to copy"))

    def summary(self, *, overruns: int, underruns: int, additional_generations: int = 0) -> SessionEnded:
        """Return the last event of the conversation.

        Args:
            overruns: as `ListenerControl` counts them; so are `underruns`.
            additional_generations: as `Responder` counts them.
        """
        return SessionEnded(
            self.turns,
            tuple(self._latencies),
            overruns,
            underruns,
            self._dropped,
            self.session.name,
            self._memory.place,
            can_continue=self._memory.is_kept and bool(self.session.turns),
            retracted_turns=self._retracted,
            additional_generations=additional_generations,
        )
