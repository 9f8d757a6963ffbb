"""What answers the items of a run: an engine that replies to one utterance at a time, in one thread or in several.

The same path as `once`: `Memory.take_turn`, then `record_of`. Where a spoken reply is wanted, it is synthesised
while it is being written, into a file of its own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from voxcli.audio.clip import AudioClip
from voxcli.batch.plan import digest
from voxcli.batch.prefetch import Prefetcher, Prepared
from voxcli.batch.scheduler import Job, Outcome
from voxcli.core.memory import Memory
from voxcli.core.record import Context, failure_of, record_of
from voxcli.core.turn import Engine, SpeechFailed, SpeechOutput, Synthesizer, TurnEnded, Utterance
from voxcli.errors import ConfigError, VoxError
from voxcli.tts.wav_speaker import WavSpeaker

NAME_BYTES = 200  # of one part of a path: file systems take 255
PLAIN = frozenset(" ._-+,=@()'")  # kept in file names, beside letters and digits


class Worker(Protocol):
    """Answers jobs until there are no more; the runner gives each a thread."""

    def work(self, report: Callable[[Outcome], None]) -> None:
        """Take jobs from a desk or a shelf, and report each that is over, in any order.

        A job that fails is an outcome; an error that is raised ends the run.
        """
        ...


class SpokenReplies:
    """Writes spoken replies below a folder, in one voice."""

    def __init__(self, folder: Path, synthesizer: Synthesizer) -> None:
        """Write to `folder`, which is made for its owner alone; raises ConfigError if that can't be written to."""
        self._folder = folder
        self._synthesizer = _OneAtATime(synthesizer)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't make the folder {folder}: {error.strerror}", hint="choose another one") from error

    def speaker(self, item_id: str) -> WavSpeaker:
        """Begin the file of an item; raises VoxError if it can't be written."""
        path = self._folder / reply_path(item_id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise VoxError(f"can't make {path.parent}: {error.strerror}", hint="choose another folder") from error
        return WavSpeaker(path)

    def output(self, speaker: WavSpeaker) -> SpeechOutput:
        return SpeechOutput(self._synthesizer, speaker)


class EngineWorker:
    """Implements `Worker` with an engine; several may share one that replies to several at once."""

    def __init__(
        self, prefetcher: Prefetcher, engine: Engine, load_seconds: float, replies: SpokenReplies | None = None
    ) -> None:
        """Answer what is on `prefetcher`; `load_seconds` is for the records."""
        self._prefetcher = prefetcher
        self._engine = engine
        self._load_seconds = load_seconds
        self._replies = replies

    def work(self, report: Callable[[Outcome], None]) -> None:
        """See `Worker`."""
        while prepared := self._prefetcher.take():
            report(self._outcome(prepared))

    def _outcome(self, prepared: Prepared) -> Outcome:
        job = prepared.job
        try:
            if isinstance(prepared.clip, Exception):
                raise prepared.clip
            return self._answer(job, prepared.clip)
        except Exception as error:  # noqa: BLE001 - one item's failure, even by a bug, does not end thousands
            item = job.item
            record = failure_of(error, self._engine, path=item.path, prompt=item.prompt, session=item.session)
            return Outcome(job, {"id": item.id, **record}, None)

    def _answer(self, job: Job, clip: AudioClip) -> Outcome:
        item, memory, utterance = job.item, Memory(job.session), Utterance(clip, job.item.prompt)
        extra: dict[str, Any] = {}
        with ExitStack() as stack:
            speaker = stack.enter_context(self._replies.speaker(item.id)) if self._replies else None
            speech = self._replies.output(speaker) if self._replies and speaker else None
            events = stack.enter_context(closing(memory.take_turn(self._engine, utterance, threading.Event(), speech)))
            for event in events:
                if isinstance(event, SpeechFailed):
                    raise event.error
                if isinstance(event, TurnEnded):
                    ended = event
            if speaker:
                extra["saved_reply"] = str(speaker.path) if speaker.path else None
        context = Context(self._engine, utterance, item.path, item.session, memory.turn_number, self._load_seconds)
        return Outcome(job, {"id": item.id, **record_of(ended, context), **extra}, ended.turn)


def replies_at_once(engine: Engine) -> int | None:
    """Return how many replies an engine is best asked for at the same time; None: it takes one at a time."""
    return getattr(engine, "replies_at_once", None)


def workers_wanted(engine: Engine, concurrency: int | None) -> int:
    """Return how many workers ask an engine at once, where `concurrency` are asked for.

    Raises:
        ConfigError: it takes one at a time.
    """
    best = replies_at_once(engine)
    if best is None and concurrency not in (None, 1):
        raise ConfigError(f"the {engine.name} engine answers one item at a time", hint="leave --concurrency out")
    return concurrency or best or 1


def reply_path(item_id: str) -> Path:
    """Return the file of an item's spoken reply, relative to their folder: the id as a path, and `.wav`.

    No two ids have the same file, and none lies outside the folder, whatever an id is made of.
    """
    *folders, name = (_file_name(part) for part in item_id.split("/"))
    # No folder may have the name of another id's file.
    return Path(*(f"{folder[:-4]}%2Ewav" if folder.endswith(".wav") else folder for folder in folders), f"{name}.wav")


def _file_name(part: str) -> str:
    if not part:
        return "%"  # never written by quote(), which always adds two digits
    written = "".join(char if char.isalnum() or char in PLAIN else _quoted(char) for char in part)
    if written.startswith("."):  # "..", and hidden files
        written = f"%2E{written[1:]}"
    if len(written.encode()) <= NAME_BYTES:
        return written
    return f"{written.encode()[: NAME_BYTES // 2].decode(errors='ignore')}%-{digest(part):016x}"


def _quoted(char: str) -> str:
    return quote(char, safe="", errors="surrogatepass")


class _OneAtATime:
    """A voice that several workers share."""

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
