"""Answers the items of a run with an engine, on one thread or several.

A turn takes the same path as in `once`: `Memory.take_turn`, then `record_of`. A spoken reply is synthesized while it
is generated, and saved in a file.
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

NAME_BYTES = 200  # longest part of a path; file systems take 255
PLAIN = frozenset(" ._-+,=@()'")  # allowed in file names, like letters and digits


class Worker(Protocol):
    """Answers jobs until there are no more. Each worker runs on its own thread."""

    def work(self, report: Callable[[Outcome], None]) -> None:
        """Take jobs from a scheduler or prefetcher, and report each outcome, in any order.

        A job that fails is an outcome, too; an error that is raised ends the run.
        """
        ...


class SpokenReplies:
    """Saves spoken replies below a folder, in one voice."""

    def __init__(self, folder: Path, synthesizer: Synthesizer) -> None:
        """Create `folder` for its owner only. Raises ConfigError if it can't be created."""
        self._folder = folder
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
        return SpeechOutput(self._synthesizer, speaker)


class EngineWorker:
    """Implements `Worker` with an engine. Several workers may share an engine that takes several turns at once."""

    def __init__(
        self, prefetcher: Prefetcher, engine: Engine, load_seconds: float, replies: SpokenReplies | None = None
    ) -> None:
        """Answer the jobs of `prefetcher`; `load_seconds` goes into the records."""
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
        except Exception as error:  # noqa: BLE001 - a failed item, even one that hits a bug, does not end the run
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
    """Return how many replies an engine should be asked for at once; None: it takes one at a time."""
    return getattr(engine, "replies_at_once", None)


def workers_wanted(engine: Engine, concurrency: int | None) -> int:
    """Return how many workers should share an engine.

    Args:
        concurrency: the number that the user asked for; None for the engine's own.

    Raises:
        ConfigError: the engine takes one turn at a time, but `concurrency` is higher.
    """
    best = replies_at_once(engine)
    if best is None and concurrency not in (None, 1):
        raise ConfigError(f"the {engine.name} engine answers one item at a time", hint="leave out --concurrency")
    return concurrency or best or 1


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
