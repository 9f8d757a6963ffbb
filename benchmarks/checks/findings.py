"""The findings of a run of checks, saved after each of them as JSON and as a Markdown table."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FILES = ("gpu_check.json", "gpu_check.md")  # all figures, and a table of them
Status = Literal["waiting", "running", "passed", "failed"]


@dataclass(frozen=True)
class Finding:
    """One result. `holds` is None without an expectation. A missed bar does not fail the step."""

    what: str
    measured: str
    expected: str = ""
    holds: bool | None = None
    is_bar: bool = False
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Step:
    """One step of a run."""

    name: str
    title: str
    status: Status = "waiting"
    seconds: float = 0.0
    error: str = ""  # error that ended it early, with its traceback
    findings: list[Finding] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # notices of voxcli to the user

    @property
    def problems(self) -> list[str]:
        """Reasons why the step does not pass."""
        broken = [f"{it.what}: {it.measured}" for it in self.findings if it.holds is False and not it.is_bar]
        return [*broken, *self.error.splitlines()[:1]]


@dataclass
class Record:
    """All steps of a run, kept up to date in two files."""

    about: dict[str, Any]
    steps: list[Step]
    folder: Path
    note: Callable[[str], None]

    @property
    def passed(self) -> bool:
        return all(step.status == "passed" for step in self.steps)

    def save(self) -> None:
        """Rewrite both files; each is complete at any time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = {"about": self.about, "passed": self.passed, "steps": [asdict(step) for step in self.steps]}
        figures, table = (self.folder / name for name in FILES)
        _replace(figures, json.dumps(written, indent=1) + "\n")
        _replace(table, self.markdown() + "\n")

    def markdown(self) -> str:
        """Return a table of the steps and their findings, followed by errors and the versions."""
        lines = ["| step | what | measured | expected | holds |", "|---|---|---|---|---|"]
        for step in self.steps:
            lines.append(_row(step.name, step.title, f"{step.status}, {step.seconds:.1f} s", "", ""))
            lines += [_row("", it.what, it.measured, it.expected, _word(it)) for it in step.findings]
        for step in self.steps:
            lines += [f"\n{step.name} failed: {problem}" for problem in step.problems]
        about = (f"{name}: {value}" for name, value in self.about.items())
        return "\n".join([*lines, "", *about])


class Notebook:
    """Records the findings of one step."""

    def __init__(self, step: Step, record: Record) -> None:
        self._step, self._record = step, record

    def measured(self, what: str, measured: str, **values: Any) -> None:
        """Record a figure without an expectation."""
        self._add(Finding(what, measured, values=values))

    def require(self, what: str, holds: bool, measured: object, expected: object, **values: Any) -> None:
        """Record a result that has to hold, or the step fails."""
        self._add(Finding(what, str(measured), str(expected), bool(holds), values=values))

    def bar(self, what: str, met: bool | None, measured: str, expected: str, **values: Any) -> None:
        """Record a figure beside its bar; `met` is None if the bar is for another device."""
        self._add(Finding(what, measured, expected if met is not None else "", met, is_bar=True, values=values))

    def message(self, text: str) -> None:
        """Record a notice of voxcli to the user."""
        self._step.messages.append(text)

    def failed(self, what: str, error: BaseException) -> None:
        """Record the failure of a part, after which the step continues."""
        self.require(what, False, describe(error), "no exception")

    def _add(self, finding: Finding) -> None:
        self._step.findings.append(finding)
        self._record.note(f"{self._step.name}: {finding.what}: {finding.measured}{_aside(finding)}")
        self._record.save()


def describe(error: BaseException) -> str:
    """Return the name of an error and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _word(finding: Finding) -> str:
    if finding.holds is None:
        return ""
    missed = "missed" if finding.is_bar else "no"
    return "yes" if finding.holds else missed


def _aside(finding: Finding) -> str:
    return f" ({_word(finding)}; {finding.expected})" if finding.holds is False else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically: a reader finds the old text or the new one."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
