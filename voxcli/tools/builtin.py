"""The tool that tells the time, and what tools of voxcli's own share."""

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from voxcli.core.tools import ToolSpec
from voxcli.errors import VoxError
from voxcli.tools.arguments import ArgumentSchema
from voxcli.tools.tool import Approval


class BuiltinTool:
    """Implements `Tool` by a function. Nothing that such a tool does needs approval, unless the settings say so."""

    approval: Approval = "always"

    def __init__(
        self, name: str, description: str, parameters: Mapping[str, Any], work: Callable[[dict[str, Any]], str]
    ) -> None:
        """Create a tool; `work` gets the arguments, and returns the result or raises VoxError."""
        self._schema = ArgumentSchema(parameters, trusted=True)
        self._spec = ToolSpec(name, description, self._schema.json)
        self._work = work

    @property
    def spec(self) -> ToolSpec:
        return self._spec

    def problem(self, arguments: dict[str, Any]) -> str:
        return self._schema.problem(arguments)

    def call(self, arguments: dict[str, Any], interrupt: threading.Event) -> str:
        del interrupt  # it takes no time
        return self._work(arguments)


def time_tool(now: Callable[[ZoneInfo | None], datetime] = datetime.now) -> BuiltinTool:
    """Return the tool that tells date and time, here or in another time zone."""

    def tell(arguments: dict[str, Any]) -> str:
        wanted = arguments.get("time_zone", "").strip()
        moment = now(ZoneInfo(_time_zone(wanted))) if wanted else now(None).astimezone()
        offset = f"{moment:%z}"
        zone = getattr(moment.tzinfo, "key", None) or moment.tzname() or "local time"
        # Names of days and months are those of the process's locale, which voxcli leaves at C: English.
        return f"{moment:%A}, {moment.day} {moment:%B %Y}, {moment:%H:%M:%S} ({zone}, UTC{offset[:3]}:{offset[3:5]})"

    zone = {"type": "string", "description": "IANA name, such as Asia/Tokyo; leave out for the user's own."}
    parameters = {"type": "object", "properties": {"time_zone": zone}, "additionalProperties": False}
    return BuiltinTool("time", "Tells the date and the time now, here or elsewhere.", parameters, tell)


@cache
def _time_zones() -> dict[str, str]:
    """Return the names of all time zones, by themselves and by their last part, in lower case."""
    names = sorted(available_timezones() - {"localtime"})  # A file beside the others on some systems.
    return {name.rpartition("/")[2].lower(): name for name in names} | {name.lower(): name for name in names}


def _time_zone(text: str) -> str:
    """Return the name of a time zone that a model gave, if need be by its city alone."""
    wanted, known = text.lower().replace(" ", "_"), _time_zones()
    if not known:
        raise VoxError("there are no time zones on this machine", hint="pip install tzdata")
    if wanted in known:
        return known[wanted]
    if (city := wanted.rpartition("/")[2]) in known:
        return known[city]
    nearest = [known[name] for name in get_close_matches(wanted[:64], known, 3, cutoff=0.6)]
    there_is = (
        f"; there is {', '.join(dict.fromkeys(nearest))}" if nearest else "; give an IANA name such as Asia/Tokyo"
    )
    raise VoxError(f"there is no time zone {text[:64]!r}{there_is}")
