"""Counts the records of a run."""

from array import array
from dataclasses import dataclass
from typing import Any

from voxcli.audio.clip import MENTIONED_CANCELLED_SECONDS, MENTIONED_DAMAGE_SECONDS, MENTIONED_DB
from voxcli.core.percentiles import percentile

# The keys in a record's `audio` that tell of flaws, and from what magnitude on.
FLAWS = {
    "damaged_seconds": MENTIONED_DAMAGE_SECONDS,
    "cancelled_seconds": MENTIONED_CANCELLED_SECONDS,
    "gain_db": MENTIONED_DB,
}


LARGEST_NUMBER = 1e12  # far beyond the seconds and tokens of any recording; NaN is not below it


@dataclass
class Failures:
    """The items that failed with one error code, or whose recordings have one flaw."""

    count: int
    first: str  # id of the first one, and its message if it failed


class Stats:
    """Counts records; keeps at most eight bytes for each."""

    def __init__(self) -> None:
        self.answered = 0
        self.audio_seconds = 0.0
        self.reply_tokens = 0
        self.failures: dict[str, Failures] = {}  # by code
        self.latencies = array("d")  # times to first token, in seconds
        self.flaws: dict[str, Failures] = {}  # Keys: those of a record's `audio`.

    @property
    def failed(self) -> int:
        return sum(failures.count for failures in self.failures.values())

    @property
    def done(self) -> int:
        return self.answered + self.failed

    def add(self, record: dict[str, Any]) -> None:
        """Count a record."""
        if error := record.get("error"):
            failures = self.failures.setdefault(error["code"], Failures(0, f"{record['id']}: {error['message']}"))
            failures.count += 1
            return
        self.answered += 1
        for key, mentioned in FLAWS.items():
            if abs(number(record, "audio", key) or 0) >= mentioned:
                self.flaws.setdefault(key, Failures(0, str(record["id"]))).count += 1
        self.audio_seconds += number(record, "audio", "seconds") or 0
        self.reply_tokens += int(number(record, "tokens", "reply") or 0)
        if seconds := number(record, "timings", "first_token_seconds"):
            self.latencies.append(seconds)

    def status(self, items: int, seconds: float) -> "Status":
        """Return the status of a run of `items` items, `seconds` after it started."""
        return Status(items, self.done, self.failed, self.audio_seconds, self.reply_tokens, seconds)

    def first_token_seconds(self, share: float) -> float | None:
        """Return the time to first token that this share of the replies did not exceed; None without replies."""
        return percentile(self.latencies, share)


@dataclass(frozen=True)
class Status:
    """The progress of a run."""

    items: int  # items to answer
    done: int  # items answered or failed
    failed: int
    audio_seconds: float
    reply_tokens: int
    seconds: float  # since the start

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the end; None before the first item is done."""
        return self.seconds / self.done * (self.items - self.done) if self.done else None

    @property
    def pace(self) -> str:
        """The throughput in words."""
        seconds = max(self.seconds, 1e-9)
        return f"{self.audio_seconds / seconds:.1f} audio hours an hour · {self.reply_tokens / seconds:.1f} tokens/s"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


def number(record: dict[str, Any], part: str, key: str) -> float | None:
    """Return a number from a part of a record; None if it is missing or absurd: a person may have edited the file."""
    inner = record.get(part)
    value = inner.get(key) if isinstance(inner, dict) else None
    return value if isinstance(value, int | float) and abs(value) < LARGEST_NUMBER else None
