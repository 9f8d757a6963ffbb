"""Tools of voxcli's own: the time, and timers that speak up."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from voxcli.core.tools import ToolCall
from voxcli.errors import VoxError
from voxcli.tools.builtin import BuiltinTool, time_tool
from voxcli.tools.timers import MOST_TIMERS, Timers, spoken_seconds, timer_tool
from voxcli.tools.toolbox import Toolbox

NOON = datetime(2026, 12, 1, 12, 0, 5, tzinfo=UTC)


def now(zone: ZoneInfo | None) -> datetime:
    return NOON.astimezone(zone)


def ask(tool: BuiltinTool, **arguments: Any) -> tuple[str, str]:
    """Call a tool as a model does."""

    class Source:
        tools = (tool,)

    call = ToolCall("1", tool.spec.name, json.dumps(arguments))
    result = Toolbox([Source()], lambda _call, _interrupt: False).run(call, threading.Event())
    return result.status, result.text


# --- The time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("Asia/Tokyo", "Tuesday, 1 December 2026, 21:00:05 (Asia/Tokyo, UTC+09:00)"),
        ("asia/tokyo", "Tuesday, 1 December 2026, 21:00:05 (Asia/Tokyo, UTC+09:00)"),
        ("Tokyo", "Tuesday, 1 December 2026, 21:00:05 (Asia/Tokyo, UTC+09:00)"),
        ("New York", "Tuesday, 1 December 2026, 07:00:05 (America/New_York, UTC-05:00)"),
        ("Europe/Tokyo", "Tuesday, 1 December 2026, 21:00:05 (Asia/Tokyo, UTC+09:00)"),
        ("Asia/Kathmandu", "Tuesday, 1 December 2026, 17:45:05 (Asia/Kathmandu, UTC+05:45)"),
    ],
)
def test_the_time_of_a_zone_is_told(zone: str, told: str) -> None:
    assert ask(time_tool(now), time_zone=zone) == ("done", told)


def test_without_a_zone_it_is_the_users_own() -> None:
    status, told = ask(time_tool(now))
    local = NOON.astimezone()
    assert status == "done"
    assert told.startswith(f"{local:%A}, {local.day} {local:%B %Y}, {local:%H:%M:%S} (")


@pytest.mark.parametrize("zone", ["Tokio", "../../etc/passwd", "/etc/localtime", "x" * 10_000, "\x00"])
def test_an_unknown_zone_is_a_failure_that_says_what_there_is(zone: str) -> None:
    status, told = ask(time_tool(now), time_zone=zone)
    assert status == "failed"
    assert "there is no time zone" in told
    assert len(told) < 300
    assert ("Asia/Tokyo" in told) or zone != "Tokio"


def test_arguments_are_checked() -> None:
    assert ask(time_tool(now), time_zone=3)[0] == "malformed"
    assert ask(time_tool(now), place="Rome")[0] == "malformed"


# --- Timers --------------------------------------------------------------------------------------


@dataclass
class FakeAlarm:
    seconds: float
    work: Callable[[], None]
    is_started: bool = False
    is_cancelled: bool = False

    def start(self) -> None:
        self.is_started = True

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Kitchen:
    """Timers on a clock that stands still until it is moved."""

    now: float = 100.0
    announced: list[str] = field(default_factory=list)
    alarms: list[FakeAlarm] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timers = Timers(self.announced.append, self.alarm, lambda: self.now)
        self.tool = timer_tool(self.timers)

    def alarm(self, seconds: float, work: Callable[[], None], /) -> FakeAlarm:
        self.alarms.append(FakeAlarm(seconds, work))
        return self.alarms[-1]


def test_a_timer_speaks_up_when_its_time_is_over() -> None:
    kitchen = Kitchen()
    status, told = ask(kitchen.tool, action="set", minutes=3, seconds=30, label="tea")
    assert (status, told) == (
        "done",
        "The timer for tea is set: 3 minutes and 30 seconds. The user is told when it is over.",
    )
    assert [(alarm.seconds, alarm.is_started) for alarm in kitchen.alarms] == [(210, True)]
    assert kitchen.announced == []
    kitchen.alarms[0].work()
    assert kitchen.announced == ["The timer for tea is over."]
    assert ask(kitchen.tool, action="list") == ("done", "No timer is running.")


def test_timers_are_listed_soonest_first() -> None:
    kitchen = Kitchen()
    ask(kitchen.tool, action="set", hours=1)
    kitchen.now += 60
    ask(kitchen.tool, action="set", minutes=10, label="eggs")
    kitchen.now += 5
    assert ask(kitchen.tool, action="list")[1].splitlines() == [
        "2: The timer for eggs, 9 minutes and 55 seconds left",
        "1: The timer of 1 hour, 58 minutes and 55 seconds left",
    ]


def test_a_timer_is_cancelled_by_label_by_number_or_with_all() -> None:
    kitchen = Kitchen()
    for label in ("tea", "eggs", "rice", "bread"):
        ask(kitchen.tool, action="set", minutes=10, label=label)
    assert ask(kitchen.tool, action="cancel", label="TEA") == ("done", "The timer for tea is cancelled.")
    assert ask(kitchen.tool, action="cancel", number=2) == ("done", "The timer for eggs is cancelled.")
    assert ask(kitchen.tool, action="cancel", number=2)[0] == "failed"
    assert [alarm.is_cancelled for alarm in kitchen.alarms] == [True, True, False, False]
    assert ask(kitchen.tool, action="cancel")[1].count("cancelled") == 2
    assert all(alarm.is_cancelled for alarm in kitchen.alarms)
    for alarm in kitchen.alarms:
        alarm.work()  # One that was under way when it was cancelled.
    assert kitchen.announced == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"action": "set"}, "failed"),
        ({"action": "set", "seconds": 0.5}, "failed"),
        ({"action": "set", "hours": 1000}, "failed"),
        ({"action": "set", "seconds": -5}, "malformed"),
        ({"action": "set", "seconds": 1e300}, "malformed"),
        ({"action": "set", "seconds": "ten"}, "malformed"),
        ({"action": "wait"}, "malformed"),
        ({}, "malformed"),
        ({"action": "cancel", "label": "tea"}, "failed"),
    ],
)
def test_what_is_no_timer_is_told(arguments: dict[str, Any], status: str) -> None:
    kitchen = Kitchen()
    assert ask(kitchen.tool, **arguments)[0] == status
    assert kitchen.alarms == []


def test_there_is_an_end_to_the_number_of_timers() -> None:
    kitchen = Kitchen()
    statuses = [ask(kitchen.tool, action="set", minutes=5)[0] for _ in range(MOST_TIMERS + 1)]
    assert statuses == ["done"] * MOST_TIMERS + ["failed"]


def test_a_label_is_one_short_line() -> None:
    kitchen = Kitchen()
    ask(kitchen.tool, action="set", minutes=5, label="a\x1b[2J\n" + "b" * 1000)
    kitchen.alarms[0].work()
    assert kitchen.announced[0].isprintable()
    assert len(kitchen.announced[0]) < 120


def test_closed_timers_say_nothing() -> None:
    kitchen = Kitchen()
    ask(kitchen.tool, action="set", minutes=5)
    kitchen.timers.close()
    kitchen.alarms[0].work()
    assert (kitchen.alarms[0].is_cancelled, kitchen.announced) == (True, [])
    with pytest.raises(VoxError):
        kitchen.timers.set(60)


def test_a_real_timer_rings() -> None:
    rung = threading.Event()
    timers = Timers(lambda _text: rung.set())
    timers.set(1)
    assert rung.wait(60)
    timers.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (59.6, "1 minute"),
        (90_061, "1 day, 1 hour, 1 minute and 1 second"),
        (7200, "2 hours"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert spoken_seconds(seconds) == words
