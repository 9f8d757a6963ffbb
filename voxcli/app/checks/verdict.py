"""Makes the checks of `voxcli doctor` and tells which commands would work."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from voxcli.errors import VoxError

Command = Literal["once", "chat", "batch"]
COMMANDS: tuple[Command, ...] = ("once", "chat", "batch")
AT_ONCE = 4  # checks; one each for the imports, the microphone and the voice, and one for the others
CAN = {"once": "ask a recording", "chat": "chat", "batch": "run a batch"}
LIMITS = {  # what a command that works lacks, by the command and the check that is not well
    ("once", "devices"): "replies are printed, not spoken",
    ("once", "voice"): "replies are printed, not spoken",
    ("chat", "echo"): "your voice can't interrupt a reply",
}


@dataclass(frozen=True)
class Finding:
    """The result of a check; `mend` is the command or step that mends a problem."""

    well: bool
    found: str
    mend: str = ""
    blocks: bool = True  # whether the problem keeps the commands that need the part from working


@dataclass(frozen=True)
class Probe:
    """A check that has not been made yet, with the name of its line."""

    name: str
    check: Callable[[], Finding]
    needed_by: tuple[Command, ...] = COMMANDS  # Commands that need it with these settings.


@dataclass(frozen=True)
class Check:
    """A check that has been made."""

    name: str
    state: Literal["ok", "warn", "fail"]  # fail: it blocks the command that was asked about
    found: str
    mend: str
    blocks: tuple[Command, ...] = ()  # the commands that do not work because of it


@dataclass(frozen=True)
class Verdict:
    """Whether a command would work."""

    command: Command
    blockers: tuple[Check, ...]  # the problems that keep it from working
    limit: str  # what it lacks if it works; empty if nothing

    @property
    def ok(self) -> bool:
        """Whether the command has everything it needs."""
        return not self.blockers

    @property
    def sentence(self) -> str:
        """The verdict with the first problem, for people."""
        if self.ok:
            return f"You can {CAN[self.command]}{f'; {self.limit}' if self.limit else ''}"
        first, more = self.blockers[0], len(self.blockers) - 1
        return f"You can't {CAN[self.command]} yet: {first.found}{f' (and {more} more)' if more else ''}"

    @property
    def line(self) -> str:
        """The verdict with the names of the checks to look at."""
        if not self.ok:
            return f"does not work; see {', '.join(check.name for check in self.blockers)}"
        return f"works{f'; {self.limit}' if self.limit else ''}"


def examine(probes: Iterable[Probe], command: Command, progress: Callable[[str], None]) -> list[Check]:
    """Make all checks, several at once, because some wait for a device or a process.

    A VoxError becomes the finding of its check.

    Args:
        command: the command whose blockers are failures; other problems are warnings.
        progress: told the name of each check before its result is awaited.
    """
    pool = ThreadPoolExecutor(AT_ONCE, "doctor")
    try:
        begun = [(probe.name, pool.submit(_examined, probe, command)) for probe in probes]
        checks = []
        for name, check in begun:
            progress(name)
            checks.append(check.result())
        return checks
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def verdict(command: Command, checks: Iterable[Check]) -> Verdict:
    """Return whether a command has everything it needs."""
    problems = [check for check in checks if check.state != "ok"]
    limits = [LIMITS[command, check.name] for check in problems if (command, check.name) in LIMITS]
    blockers = tuple(check for check in problems if command in check.blocks)
    return Verdict(command, blockers, limits[0] if limits else "")


def _examined(probe: Probe, command: Command) -> Check:
    try:
        finding = probe.check()
    except VoxError as error:
        finding = Finding(False, error.message, error.hint)
    except OSError as error:
        finding = Finding(False, f"{error.filename or 'the system'}: {error.strerror}", "check who may read it")
    if finding.well:
        return Check(probe.name, "ok", finding.found, "")
    blocks = probe.needed_by if finding.blocks else ()
    return Check(probe.name, "fail" if command in blocks else "warn", finding.found, finding.mend, blocks)
