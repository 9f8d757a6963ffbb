"""Reads recordings of turns whose pauses are labelled, in the layouts of livekit/eot-bench-data and of AudioFolder.

A row has `id`, `language`, `audio` and `silence_spans`, a list of `start` and `end` in seconds. The last span is the
end of the turn; all others are pauses inside it. The hub's data set has Parquet files in `data/LANGUAGE/`, with the
bytes of a sound file in each row. Other folders have `metadata.jsonl`, one row per line with `file_name` instead of
`audio`, which Hugging Face's `datasets` reads as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

from voxcli.audio.clip import AudioClip, read_audio, read_stream
from voxcli.errors import AudioInputError, ConfigError

METADATA = "metadata.jsonl"
COLUMNS = ["id", "language", "audio", "silence_spans"]
ROWS_AT_ONCE = 16  # Of a Parquet file: its recordings lie in memory.


@dataclass(frozen=True)
class Span:
    """A silence, in seconds from the start of the recording."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class LabelledTurn:
    """A recording of one turn of a user."""

    id: str
    clip: AudioClip
    pauses: tuple[Span, ...]  # Inside the turn.
    end: Span


def read_turns(folder: Path, language: str | None, limit: int | None) -> list[LabelledTurn]:
    """Read the turns of a folder.

    Args:
        language: leave out turns of any other language; None for all.
        limit: the most turns to read; None for all.

    Raises:
        AudioInputError: there are no turns, or a row or its recording can't be read.
        ConfigError: there are Parquet files, and pyarrow is not installed.
    """
    rows = chain(_metadata_rows(folder), _parquet_rows(folder))
    wanted = (row for row in rows if language in (None, row.get("language")))
    turns = [_turn(row) for row in islice(wanted, limit)]
    if not turns:
        hint = f"put {METADATA} and recordings there, or the Parquet files of livekit/eot-bench-data"
        raise AudioInputError(f"there are no labelled turns in {folder}", hint=hint)
    return turns


def _metadata_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob(METADATA)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                yield row | {"audio": {"path": path.parent / row["file_name"]}}
            except (ValueError, TypeError, KeyError) as error:
                raise AudioInputError(f"{path}, line {number}: no object with a file_name") from error


def _parquet_rows(folder: Path) -> Iterator[dict[str, Any]]:
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        return
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow", hint="pip install pyarrow") from error
    for path in paths:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=COLUMNS):
                yield from batch.to_pylist()


def _turn(row: dict[str, Any]) -> LabelledTurn:
    name = str(row.get("id"))
    try:
        spans = [Span(float(span["start"]), float(span["end"])) for span in row["silence_spans"]]
        audio = row["audio"]
        *pauses, end = spans
    except (KeyError, TypeError, ValueError) as error:
        raise AudioInputError(f"the turn {name} has no list silence_spans of start and end") from error
    clip = read_stream(BytesIO(audio["bytes"]), name) if audio.get("bytes") else read_audio(audio["path"])
    return LabelledTurn(name, clip, tuple(pauses), end)
