"""Writes each turn of a conversation to files: the utterance as WAV, the turn as JSON."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxcli.audio.wav import encode_wav
from voxcli.chat.events import TurnTaken
from voxcli.config.paths import owner_only
from voxcli.core.storage.stored import StoredSession
from voxcli.errors import ConfigError, VoxError
from voxcli.printable import printable

NAME = re.compile(r"turn-(\d{1,9})\.")
OTHER_FOLDER = "name another folder"


class Recording:
    """A folder with a WAV and a JSON file for each turn, readable by their owner alone.

    A folder may hold several conversations: numbering continues after the files that are there, and none is
    overwritten. The JSON has the number of the turn in its session.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Raises:
            ConfigError: it can't be created, read or written to, or is "-".
        """
        if str(folder) == "-":
            raise ConfigError("--record needs a folder; - is standard output", hint=OTHER_FOLDER)
        self._folder = folder.expanduser()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = [path.name for path in self._folder.iterdir()]
        except (OSError, ValueError) as error:  # ValueError: the name contains a null byte
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"can't record to {printable(str(folder))}: {reason}", hint=OTHER_FOLDER) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise ConfigError(f"may not write to {printable(str(folder))}", hint=OTHER_FOLDER)
        self._last = max((int(found[1]) for name in names if (found := NAME.match(name))), default=0)

    def keep(self, taken: TurnTaken) -> None:
        """Write a turn: `turn-0001.wav` unless it was typed, and `turn-0001.json`.

        Raises:
            VoxError: the files can't be written.
        """
        self._last += 1
        stem = f"turn-{self._last:04}"
        record = {"turn": taken.number, **asdict(taken.ended.turn), "latency": asdict(taken.latency)}
        record["tools"] = [result.as_record() for result in taken.ended.turn.tools]
        record["transcript"] = taken.ended.report.transcript
        record["understood"] = taken.ended.report.understood
        record["finish_reason"] = taken.ended.report.finish_reason
        try:
            if taken.clip:
                self._write(f"{stem}.wav", encode_wav(taken.clip))
            self._write(f"{stem}.json", json.dumps(record, indent=1).encode())
        except OSError as error:
            reason = f"can't record to {printable(str(self._folder))}: {error.strerror}"
            raise VoxError(reason, hint="the conversation goes on without that turn's files") from error

    def _write(self, name: str, content: bytes) -> None:
        with open(self._folder / name, "xb", opener=owner_only) as file:
            file.write(content)


def recorded_utterances(folder: Path, stored: StoredSession) -> dict[int, bytes]:
    """Return the WAV files in a folder that were recorded with turns of a session, by the number of the turn.

    Raises:
        ConfigError: the folder can't be read.
    """
    wanted = {(each.number, each.turn.user, each.turn.reply) for each in stored.turns}
    found = {}
    try:
        records = sorted(path for path in folder.expanduser().iterdir() if NAME.match(path.name))
        for path in records:
            record = _record(path) if path.suffix == ".json" else {}
            turn = record.get("turn"), record.get("user"), record.get("reply")
            if turn in wanted and (audio := path.with_suffix(".wav")).is_file():
                found[record["turn"]] = audio.read_bytes()
    except OSError as error:
        reason = f"can't read the recordings in {printable(str(folder))}: {error.strerror}"
        raise ConfigError(reason, hint="name the folder that `voxcli chat --record` wrote") from error
    return found


def _record(path: Path) -> dict[str, Any]:
    """Return the record of a turn; nothing if the file holds none."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("turn"), int) else {}
