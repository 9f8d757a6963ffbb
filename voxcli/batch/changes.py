"""Finds the records of a results file that answer something else than the run would ask now."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from voxcli.batch.fingerprint import NO_HISTORY, history_hash, is_same_recording, text_hash
from voxcli.batch.item import Item
from voxcli.batch.plan import Planned, digest
from voxcli.batch.results import Record, Results, turn_of
from voxcli.batch.stats import Stats
from voxcli.core.session import Turn
from voxcli.errors import ConfigError

Policy = Literal["stop", "keep", "redo"]


@dataclass(frozen=True)
class Asked:
    """What a run asks of every item."""

    instructions: str  # Used by items and sessions without their own.
    engine: str | None = None  # None: not known before it is opened
    model: str | None = None


@dataclass
class Changes:
    """Records whose items ask something else now."""

    finished: int = 0  # items of this run that have a record
    ids: set[int] = field(default_factory=set)  # digests of their ids
    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)  # number, and the first id
    without_fingerprint: int = 0  # records of an older version

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count} (first {first})" for reason, (count, first) in self.reasons.items())
        return f"{len(self.ids)} of {self.finished} finished items were asked something else: {reasons}"

    def add(self, item_id: str, reasons: Iterable[str]) -> None:
        for reason in reasons:
            count, first = self.reasons.get(reason, (0, item_id))
            self.reasons[reason] = (count + 1, first)
        self.ids.add(digest(item_id))


@dataclass
class _SessionSoFar:
    """A session as far as the plan has been read."""

    instructions: str
    history: str = NO_HISTORY  # hash
    turns: int = 0
    is_broken: bool = False  # the memory of the next turn will be another one
    has_open_items: bool = False  # items that are answered only now, or again
    seen: set[str] = field(default_factory=set)  # ids


def settle(
    plan: Iterable[Planned],
    results: Results,
    asked: Asked,
    policy: Policy,
    stats: Stats,
    notice: Callable[[str], None],
) -> Stats:
    """Stop, keep or discard records whose items ask something else now. Returns the stats of the records that stay.

    Raises:
        ConfigError: there are such records, and the policy is "stop"; nothing was changed.
    """
    if not len(results):
        return stats
    changes = compare(plan, results, asked)
    if changes.without_fingerprint:
        notice(
            f"{changes.without_fingerprint} records are of an older version: whether their recordings and instructions "
            "have changed is not known"
        )
    if not changes.ids:
        return stats
    if policy == "stop":
        raise ConfigError(str(changes), hint="--keep keeps their answers, --redo-changed answers them again")
    if policy == "keep":
        notice(f"{changes}; their answers are kept")
        return stats
    notice(f"{changes}; they are answered again")
    kept = Stats()
    results.discard(lambda record: digest(record["id"]) in changes.ids, kept.add)
    return kept


def compare(plan: Iterable[Planned], results: Results, asked: Asked) -> Changes:
    """Compare what the items of a plan ask with the records that answer them.

    A finished turn also counts as changed if the turns before it did, and a record of a session if its item is gone
    but others of the session are still to be answered: the memory of the session was another one.
    """
    changes, sessions = Changes(), dict[str, _SessionSoFar]()
    for item, ends_session in plan:
        instructions = asked.instructions if item.instructions is None else item.instructions
        session = None if item.session is None else sessions.setdefault(item.session, _SessionSoFar(instructions))
        record = results.record(item.id)
        if record is None:
            if session:
                session.is_broken = session.has_open_items = True
                session.seen.add(item.id)
        else:
            changes.finished += 1
            changes.without_fingerprint += "fingerprint" not in record
            if session and item.instructions is None:
                instructions = session.instructions
            reasons = [
                *_reasons(item, record, instructions, asked),
                *(_memory_reasons(session, record) if session else ()),
            ]
            if reasons:
                changes.add(item.id, reasons)
            if session:
                session.has_open_items = session.has_open_items or bool(reasons)
                session.seen.add(item.id)
                _advance(session, turn_of(record, remembers=results.remembers), has_changed=bool(reasons))
        if session and item.session is not None and ends_session:
            del sessions[item.session]
            if session.has_open_items:
                gone = {each["id"] for each in results.records_of(item.session)} - session.seen
                for item_id in sorted(gone):
                    changes.add(item_id, ["item is gone"])
    return changes


def _reasons(item: Item, record: Record, instructions: str, asked: Asked) -> Iterator[str]:
    if "fingerprint" in record:
        if is_same_recording(item.path, record) is False:
            yield "recording"
        if record["fingerprint"].get("instructions") != text_hash(instructions):
            yield "instructions"
    if "prompt" in record and (record["prompt"] or "") != item.prompt:
        yield "prompt"
    if asked.engine and record.get("engine", asked.engine) != asked.engine:
        yield "engine"
    elif asked.model and record.get("model", asked.model) != asked.model:
        yield "model"
    if record.get("session") != item.session:
        yield "session"


def _memory_reasons(session: _SessionSoFar, record: Record) -> Iterator[str]:
    """Yield a reason if an answer was given after other turns."""
    if "error" in record:
        return
    earlier: dict[str, Any] = record.get("fingerprint", {})
    is_same = record.get("turn", session.turns + 1) == session.turns + 1
    if session.is_broken or not is_same or earlier.get("history", session.history) != session.history:
        yield "earlier turns"


def _advance(session: _SessionSoFar, turn: Turn | None, *, has_changed: bool) -> None:
    """Add a turn to a session; None for one that failed."""
    if turn is None:
        return
    session.is_broken = session.is_broken or has_changed
    session.turns += 1
    session.history = history_hash([turn], session.history)
