"""What a run has come to, counted record by record."""

from array import array
from dataclasses import dataclass
from typing import Any

from voxcli.core.percentiles import percentile


@dataclass
class Failures:
    """Items that failed in one way."""

    count: int
    first: str  # the first of them, as a message


class Stats:
    """Counts records; of each it keeps eight bytes at most."""

    def __init__(self) -> None:
        self.answered = 0
        self.audio_seconds = 0.0
        self.reply_tokens = 0
        self.failures: dict[str, Failures] = {}  # by code
        self._first_token_seconds = array("d")

    @property
    def failed(self) -> int:
        return sum(failures.count for failures in self.failures.values())

    @property
    def done(self) -> int:
        return self.answered + self.failed

    def add(self, record: dict[str, Any]) -> None:
        """Count a record that `results.check` has accepted."""
        if error := record.get("error"):
            failures = self.failures.setdefault(error["code"], Failures(0, f"{record['id']}: {error['message']}"))
            failures.count += 1
            return
        self.answered += 1
        self.audio_seconds += _number(record, "audio", "seconds")
        self.reply_tokens += int(_number(record, "tokens", "reply"))
        if seconds := _number(record, "timings", "first_token_seconds"):
            self._first_token_seconds.append(seconds)

    def status(self, items: int, seconds: float) -> "Status":
        """Return how far a run is that counts here, `seconds` after it began, with `items` to do."""
        return Status(items, self.done, self.failed, self.audio_seconds, self.reply_tokens, seconds)

    def first_token_seconds(self, share: float) -> float | None:
        """Return the time in which this share of the replies began, by nearest rank; None if none did."""
        return percentile(self._first_token_seconds, share)


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    items: int  # that this run has to do
    done: int  # of these
    failed: int
    audio_seconds: float
    reply_tokens: int
    seconds: float  # since it began

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the pace so far; None before the first item is done."""
        return self.seconds / self.done * (self.items - self.done) if self.done else None

    @property
    def pace(self) -> str:
        """What is done in which time, in words."""
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.audio_seconds / seconds:.1f} audio hours an hour · {self.reply_tokens / seconds:.1f} tokens/s"
            f" · {self.failed} failed"
        )


def _number(record: dict[str, Any], part: str, key: str) -> float:
    """Return a number in a record, 0 where there is none: a person may have edited the file."""
    inner = record.get(part)
    value = inner.get(key) if isinstance(inner, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0
