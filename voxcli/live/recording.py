"""Keeps what was said in a conversation as files, for whoever wants to look into it later."""

import json
import os
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path

import soundfile

from voxcli.errors import ConfigError, VoxError
from voxcli.live.events import TurnTaken


class Recording:
    """A folder with a WAV and a JSON file for each turn, readable by their owner alone."""

    def __init__(self, folder: Path) -> None:
        """Make the folder; raises ConfigError where that can't be done."""
        self._folder = folder.expanduser()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't record to {folder}: {error.strerror}", hint="name another folder") from error

    def keep(self, taken: TurnTaken) -> None:
        """Write `turn-0001.wav`, what the user said, and `turn-0001.json`, what came of it.

        Raises:
            VoxError: they can't be written.
        """
        stem = f"turn-{taken.number:04}"
        record = {"turn": taken.number, **asdict(taken.ended.turn), "latency": asdict(taken.latency)}
        record["heard"] = taken.ended.report.heard
        try:
            if taken.clip:
                with self._open(f"{stem}.wav") as file:
                    soundfile.write(file, taken.clip.samples, taken.clip.sample_rate, format="WAV", subtype="PCM_16")
            with self._open(f"{stem}.json") as file:
                file.write(json.dumps(record).encode())
        except OSError as error:
            raise VoxError(f"can't record to {self._folder}: {error.strerror}") from error

    def _open(self, name: str) -> BufferedWriter:
        return os.fdopen(os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
