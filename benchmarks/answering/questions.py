"""Reads spoken questions with accepted answers, in the layouts in which public sets of them are downloaded.

    questions.json    our own: an object by file name, of `text`, `answers`, perhaps `category` and `kind`; a question
                      whose file is not there is spoken by a voice
    metadata.jsonl    Big Bench Audio: `file_name`, `official_answer`, `category`, `id`
    *.parquet         the same with `audio` in place of a file; or VoiceBench: SUBSET/SPLIT-*.parquet with `audio`,
                      `prompt` and `reference`

The open-ended subsets of VoiceBench have no accepted answers: they need a judge, and are left out.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from benchmarks.answering.matching import Kind, kind_of
from voxcli.audio.clip import AudioClip, read_audio, read_stream
from voxcli.errors import AudioInputError, ConfigError
from voxcli.printable import first_line, printable

QUESTIONS, METADATA = "questions.json", "metadata.jsonl"
TEXT_NAMES = ("transcript", "original_question", "question", "prompt")  # Columns of the question as text
ROWS_AT_ONCE = 16  # Rows of a Parquet file whose recordings are held in memory.
OPEN_ENDED = "has no accepted answers: its replies need a judge, and it is left out"

Notice = Callable[[str], None]
Speak = Callable[[str], AudioClip]


@dataclass(frozen=True)
class SpokenQuestion:
    """A question with the answers that count as right."""

    id: str
    category: str
    text: str  # empty where the set has only the recording
    answers: tuple[str, ...]
    kind: Kind
    clip: Callable[[], AudioClip]  # raises AudioInputError


def read_questions(folder: Path, speak: Speak, notice: Notice) -> Iterator[SpokenQuestion]:
    """Yield the questions of a folder and of those in it.

    Args:
        speak: says a question that has no recording.
        notice: told what is left out.

    Raises:
        AudioInputError: there are no questions, or a row is none.
        ConfigError: there are Parquet files, and pyarrow is not installed.
    """
    if not folder.is_dir():
        raise AudioInputError(f"{printable(str(folder))} is no folder", hint="name a folder with questions")
    is_empty = True
    for read in (_own(folder, speak), _big_bench_audio(folder), _parquet(folder, notice)):
        for question in read:
            is_empty = False
            yield question
    if is_empty:
        hint = f"it should hold {QUESTIONS}, Big Bench Audio ({METADATA}) or VoiceBench (SUBSET/*.parquet)"
        raise AudioInputError(f"there are no questions with accepted answers in {printable(str(folder))}", hint=hint)


def _own(folder: Path, speak: Speak) -> Iterator[SpokenQuestion]:
    for path in sorted(folder.rglob(QUESTIONS)):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            items = [_own_question(path.parent, name, entry, speak) for name, entry in entries.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            hint = '{"file.wav": {"text": "...", "answers": ["rome"]}, ...}'
            raise AudioInputError(f"{printable(str(path))} can't be used: {first_line(error)}", hint=hint) from error
        yield from items


def _own_question(folder: Path, name: str, entry: dict[str, Any], speak: Speak) -> SpokenQuestion:
    text, answers = str(entry["text"]), tuple(str(answer) for answer in entry["answers"])
    kind = entry.get("kind", "words" if len(answers) > 1 else kind_of(answers))
    if kind not in get_args(Kind) or not answers:
        raise ValueError(f"{name}: kind is one of {', '.join(get_args(Kind))}, and answers is not empty")
    recording = _within(folder, name)
    clip = (lambda: read_audio(recording)) if recording.is_file() else (lambda: speak(text))
    return SpokenQuestion(Path(name).stem, str(entry.get("category", folder.name)), text, answers, kind, clip)


def _big_bench_audio(folder: Path) -> Iterator[SpokenQuestion]:
    for path in sorted(folder.rglob(METADATA)):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _metadata_question(path, number, line)


def _metadata_question(path: Path, number: int, line: str) -> SpokenQuestion:
    try:
        row = json.loads(line)
        recording = _within(path.parent, row["file_name"])
        return _question(str(row.get("id", number)), row, lambda: read_audio(recording))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{printable(str(path))}, line {number}: no object with file_name and official_answer"
        raise AudioInputError(message, hint="download the set again") from error


def _parquet(folder: Path, notice: Notice) -> Iterator[SpokenQuestion]:
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        return
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow", hint="pip install pyarrow") from error
    for path in paths:
        try:
            with ParquetFile(path) as file:
                yield from _rows(file, path.parent.name, path.stem.partition("-")[0], notice)
        except (ArrowException, OSError) as error:
            message = f"{printable(str(path))} can't be read: {first_line(error)}"
            raise AudioInputError(message, hint="download the set again") from error


def _rows(file: Any, subset: str, split: str, notice: Notice) -> Iterator[SpokenQuestion]:
    columns = set(file.schema_arrow.names)
    if "audio" not in columns or not columns & {"official_answer", "reference"}:
        notice(f"{printable(subset)}, {printable(split)}: {OPEN_ENDED}")
        return
    number = 0
    for batch in file.iter_batches(ROWS_AT_ONCE):
        for row in batch.to_pylist():
            number += 1
            name = f"{split}/{row.get('id', number)}" if "official_answer" in columns else f"{subset}/{split}/{number}"
            yield _parquet_question(name, subset, row)


def _parquet_question(name: str, subset: str, row: dict[str, Any]) -> SpokenQuestion:
    try:
        sound = row["audio"]["bytes"]
        row = {"category": row.get("category") or subset} | {key: row[key] for key in row if key != "audio"}
        return _question(name, row, lambda: read_stream(BytesIO(sound), name))
    except (KeyError, TypeError, AttributeError) as error:
        raise AudioInputError(f"the question {printable(name)} has no sound or no answer") from error


def _question(name: str, row: dict[str, Any], clip: Callable[[], AudioClip]) -> SpokenQuestion:
    given = row["official_answer"] if "official_answer" in row else row["reference"]
    answer = str(given).strip()
    if given is None or not answer:
        raise KeyError("answer")
    text = next((str(row[key]) for key in TEXT_NAMES if row.get(key)), "")
    return SpokenQuestion(name, str(row.get("category", "")), text, (answer,), kind_of([answer]), clip)


def _within(folder: Path, name: str) -> Path:
    """Return the path of a file that a set names. Raises ValueError if it is not in the set's folder."""
    parts = PurePosixPath(str(name).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or Path(name).drive:
        raise ValueError(f"{name!r} is not in the folder")
    return folder / parts
