"""Timers that speak up: set, listed and cancelled by a model, announced when their time is over."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from voxcli.errors import VoxError
from voxcli.printable import printable
from voxcli.tools.builtin import BuiltinTool

MOST_TIMERS = 20
LONGEST_SECONDS = 7 * 24 * 3600
LABEL_CHARACTERS = 60
UNITS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}

Announce = Callable[[str], None]  # tells the user a sentence, as soon as that is possible; called on any thread


class Alarm(Protocol):
    """Something that happens later, and can be cancelled until then."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


class MakeAlarm(Protocol):
    """Makes an alarm: `threading.Timer`, or a double of it."""

    def __call__(self, seconds: float, work: Callable[[], None], /) -> Alarm: ...


def _daemon_timer(seconds: float, work: Callable[[], None], /) -> Alarm:
    timer = threading.Timer(seconds, work)
    timer.name, timer.daemon = "timer", True
    return timer


@dataclass(frozen=True)
class RunningTimer:
    """A timer that has not ended."""

    number: int
    label: str  # empty: it has none
    seconds: float  # how long it runs
    end: float  # A time on the clock of its `Timers`.
    alarm: Alarm

    @property
    def name(self) -> str:
        """How it is spoken of."""
        return f"The timer for {self.label}" if self.label else f"The timer of {spoken_seconds(self.seconds)}"


class Timers:
    """The timers of one conversation. They end with it."""

    def __init__(
        self,
        announce: Announce,
        alarm: MakeAlarm = _daemon_timer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._announce = announce
        self._alarm = alarm
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[int, RunningTimer] = {}
        self._last = 0
        self._is_closed = False

    def set(self, seconds: float, label: str = "") -> RunningTimer:
        """Start a timer. Raises VoxError if it is too long, or there are too many."""
        if not 1 <= seconds <= LONGEST_SECONDS:
            raise VoxError("a timer takes from 1 second to 7 days; give hours, minutes or seconds")
        with self._lock:
            if len(self._running) >= MOST_TIMERS or self._is_closed:
                raise VoxError(f"there are {len(self._running)} timers already; cancel one first")
            self._last = number = self._last + 1
            alarm = self._alarm(seconds, lambda: self._ring(number))
            timer = RunningTimer(number, _label(label), seconds, self._clock() + seconds, alarm)
            self._running[number] = timer
        alarm.start()
        return timer

    def cancel(self, label: str = "", number: int | None = None) -> list[RunningTimer]:
        """Cancel the timers of a label, that of a number, or all of them; return them. Raises VoxError for none."""
        wanted = _label(label).lower()
        with self._lock:
            found = [
                timer
                for timer in self._running.values()
                if (number is None or timer.number == number) and (not wanted or timer.label.lower() == wanted)
            ]
            for timer in found:
                del self._running[timer.number]
        for timer in found:
            timer.alarm.cancel()
        if not found:
            raise VoxError(f"there is no such timer. {self.listed()}")
        return found

    def listed(self) -> str:
        """Return the timers that run, soonest first, as text."""
        with self._lock:
            timers = sorted(self._running.values(), key=lambda timer: timer.end)
        now = self._clock()
        lines = [f"{timer.number}: {timer.name}, {spoken_seconds(timer.end - now)} left" for timer in timers]
        return "\n".join(lines) if lines else "No timer is running."

    def close(self) -> None:
        """Cancel all timers without announcing them."""
        with self._lock:
            self._is_closed = True
            timers = list(self._running.values())
            self._running.clear()
        for timer in timers:
            timer.alarm.cancel()

    def _ring(self, number: int) -> None:
        with self._lock:
            timer = self._running.pop(number, None)
        if timer:
            self._announce(f"{timer.name} is over.")


def timer_tool(timers: Timers) -> BuiltinTool:
    """Return the tool that sets, lists and cancels timers."""

    def work(arguments: dict[str, Any]) -> str:
        label, number = arguments.get("label", ""), arguments.get("number")
        if arguments["action"] == "list":
            return timers.listed()
        if arguments["action"] == "cancel":
            return "\n".join(f"{timer.name} is cancelled." for timer in timers.cancel(label, number))
        seconds = sum(arguments.get(unit, 0) * count for unit, count in UNITS.items())
        timer = timers.set(seconds, label)
        return f"{timer.name} is set: {spoken_seconds(seconds)}. The user is told when it is over."

    amount = {"type": "number", "minimum": 0, "maximum": LONGEST_SECONDS}
    parameters = {
        "type": "object",
        "properties": {
            "action": {"enum": ["set", "list", "cancel"]},
            "hours": amount,
            "minutes": amount,
            "seconds": amount,
            "label": {"type": "string", "description": "What it is for, such as tea."},
            "number": {"type": "integer", "description": "Which one to cancel, as listed."},
        },
        "required": ["action"],
        "additionalProperties": False,
    }
    description = "Sets a timer that tells the user when its time is over; lists and cancels timers."
    return BuiltinTool("timer", description, parameters, work)


def spoken_seconds(seconds: float) -> str:
    """Return a duration in words: "1 hour and 5 minutes"."""
    rest = max(1, round(seconds))
    parts = []
    for unit, size in UNITS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit if count > 1 else unit.removesuffix('s')}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _label(text: str) -> str:
    return " ".join(printable(text[:LABEL_CHARACTERS], keep="\n\t").split())
