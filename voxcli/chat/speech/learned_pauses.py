"""Keeps the silence that ends a turn from one conversation to the next, for each microphone, in the data folder.

The file has a length in milliseconds by the name of the microphone, and says nothing else about the user. Its owner
alone can read it. What can't be read in it counts as nothing, so a damaged file means that learning begins anew.
"""

import json
import logging
import math
import os
from pathlib import Path

from voxcli.chat.speech.silence import LOWEST_MS, START_MS, TurnSilence
from voxcli.config.paths import owner_only

log = logging.getLogger(__name__)

FILE_NAME = "pauses.json"
MOST_MICROPHONES = 50  # The ones used last are kept.
LARGEST_BYTES = 100_000  # A larger file is not voxcli's.


def load_silence(folder: Path, microphone: str, lowest_ms: float = LOWEST_MS) -> TurnSilence:
    """Return the silence that was learned with a microphone, or a new one; it never goes below `lowest_ms`."""
    return TurnSilence(_read(folder).get(microphone, START_MS), lowest_ms)


def save_silence(folder: Path, microphone: str, silence: TurnSilence) -> None:
    """Store what was learned with a microphone; log it if that can't be done.

    A silence at its lowest says nothing new: where no turn can be taken back, the stored one may be lower than that.
    """
    if silence.ms <= silence.lowest_ms:
        return
    learned = _read(folder)
    learned.pop(microphone, None)
    learned[microphone] = round(silence.ms, 1)
    try:
        _write(folder, dict(list(learned.items())[-MOST_MICROPHONES:]))
    except OSError as error:
        log.warning("the pauses can't be stored: %s", error.strerror)


def forget_pauses(folder: Path) -> int:
    """Remove what was learned with all microphones; return their number.

    Raises:
        OSError: the file can't be removed.
    """
    number = len(_read(folder))
    (folder / FILE_NAME).unlink(missing_ok=True)
    return number


def _read(folder: Path) -> dict[str, float]:
    """Return the length by microphone; entries that make no sense are left out."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            found = json.loads(file.read(LARGEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: float(ms) for name, ms in found.items() if type(ms) in (int, float) and math.isfinite(ms)}


def _write(folder: Path, learned: dict[str, float]) -> None:
    """Replace the file in one step, so that a crash leaves the old or the new one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f"{FILE_NAME}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="ascii", opener=owner_only) as file:
            json.dump(learned, file)
        temporary.replace(folder / FILE_NAME)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
