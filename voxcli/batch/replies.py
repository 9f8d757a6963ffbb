"""Saves the spoken replies of a batch below a folder, each under the id of its item."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from voxcli.audio.clip import AudioClip
from voxcli.batch.plan import Planned, digest
from voxcli.batch.scheduler import Finished
from voxcli.core.protocols import SpeechOutput, Synthesizer
from voxcli.errors import ConfigError, VoxError
from voxcli.tts.wav_speaker import WavSpeaker

NAME_BYTES = 200  # longest part of a path; file systems take 255
PLAIN = frozenset(" ._-+,=@()'")  # allowed in file names, like letters and digits


@dataclass(frozen=True)
class ReplyPaths:
    """The paths to which a run writes spoken replies."""

    folder: Path
    plan: Iterable[Planned]
    finished: Finished | None = None  # items that are not answered again

    def __iter__(self) -> Iterator[Path]:
        for item, _ in self.plan:
            if self.finished is None or item.id not in self.finished:
                yield self.folder / reply_path(item.id)


class SavedReplies:
    """Finds out whether the records of an earlier run have replies below a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder and folder.expanduser().resolve()
        self.found = False

    def add(self, record: dict[str, Any]) -> None:
        """Look at a record."""
        path = record.get("saved_reply")
        if self._folder and not self.found and isinstance(path, str):
            self.found = Path(path).resolve().is_relative_to(self._folder)


class SpokenReplies:
    """Saves spoken replies below a folder."""

    def __init__(
        self, folder: Path, synthesizer: Synthesizer, language_of: Callable[[str], str | None] = lambda _piece: None
    ) -> None:
        """Create `folder` for its owner only. Raises ConfigError if it can't be created.

        Args:
            language_of: returns the code of the language of a piece of a reply; None if it is not known.
        """
        self._folder = folder
        self._language_of = language_of
        self._synthesizer = _SharedSynthesizer(synthesizer)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't make the folder {folder}: {error.strerror}", hint="choose another one") from error

    def speaker(self, item_id: str) -> WavSpeaker:
        """Open the file for an item's reply. Raises VoxError if it can't be written."""
        path = self._folder / reply_path(item_id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise VoxError(f"can't make {path.parent}: {error.strerror}", hint="choose another folder") from error
        return WavSpeaker(path)

    def output(self, speaker: WavSpeaker) -> SpeechOutput:
        return SpeechOutput(self._synthesizer, speaker, self._language_of)


def reply_path(item_id: str) -> Path:
    """Return the path of an item's spoken reply within the folder: the id as a path, with `.wav`.

    No two ids share a file, and no id leads out of the folder.
    """
    *folders, name = (_file_name(part) for part in item_id.split("/"))
    # A folder must not have the name of another id's file.
    return Path(*(f"{folder[:-4]}%2Ewav" if folder.endswith(".wav") else folder for folder in folders), f"{name}.wav")


def _file_name(part: str) -> str:
    if not part:
        return "%"  # quote() never returns it, because it always adds two digits
    written = "".join(char if char.isalnum() or char in PLAIN else _quoted(char) for char in part)
    if written.startswith("."):  # "..", and hidden files
        written = f"%2E{written[1:]}"
    if len(written.encode()) <= NAME_BYTES:
        return written
    return f"{written.encode()[: NAME_BYTES // 2].decode(errors='ignore')}%-{digest(part):016x}"


def _quoted(char: str) -> str:
    return quote(char, safe="", errors="surrogatepass")


class _SharedSynthesizer:
    """Lets several workers share a voice, one sentence at a time."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer
        self._lock = threading.Lock()

    def wait_until_ready(self) -> None:
        self._synthesizer.wait_until_ready()

    def synthesize(self, sentence: str) -> Iterator[AudioClip]:
        with self._lock:
            yield from self._synthesizer.synthesize(sentence)

    def close(self) -> None:
        self._synthesizer.close()
