"""What the tests of batches share: recordings, engines that need no model, and records read back."""

import json
import threading
import wave
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.batch.inputs import sources
from voxcli.batch.item import Item
from voxcli.batch.plan import Plan, survey
from voxcli.batch.prefetch import Prefetcher
from voxcli.batch.runner import ProgressView, Run
from voxcli.batch.scheduler import Finished, Scheduler
from voxcli.batch.stats import Stats, Status
from voxcli.batch.worker import EngineWorker
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session, Turn
from voxcli.errors import AudioInputError, ModelError
from voxcli.tools.allowed import AllowedTools

INSTRUCTIONS = "Be brief."
CLIP = AudioClip(np.linspace(-0.5, 0.5, SAMPLE_RATE, dtype=np.float32))


def make_recording(path: Path, samples: int = 3200) -> Path:
    """Write a WAV file of noise; its length tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, samples, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, samples, dtype=np.int16).tobytes())
    return path


def make_manifest(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a results file, each of which is a whole line."""
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@dataclass
class Echo(Engine):
    """An engine for any number of threads that replies with its prompt; fails where it says `fail`."""

    name: str = "echo"
    model: str = "echo"
    replies_at_once: int = 3
    asked: list[tuple[Session, Utterance]] = field(default_factory=list)
    before_reply: Callable[[Utterance], object] = lambda _: None

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        self.asked.append((session, utterance))
        self.before_reply(utterance)
        if utterance.prompt.startswith("fail"):
            raise ModelError("no reply to that")
        if utterance.prompt == "bug":
            raise ZeroDivisionError("oh")
        yield f"You said {utterance.prompt or utterance.placeholder}."
        return PassReport(model_passes=1, prompt_tokens=10, cached_tokens=0, reply_tokens=4)

    def close(self) -> None:
        pass


class NothingFinished:
    """Implements `Finished` for a first run."""

    def __contains__(self, item_id: str) -> bool:
        return False

    def turns(self, session: str) -> tuple[Turn, ...]:
        return ()


@dataclass
class Silent:
    """A view that keeps what it was told."""

    shown: list[Status] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def show(self, status: Status) -> None:
        self.shown.append(status)

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass
class Listed:
    """A source of items that were made by hand."""

    items: list[Item]
    has_unique_ids: bool = False

    def __iter__(self) -> Any:
        return iter(self.items)


def plan_of(*inputs: Path | str) -> Plan:
    return survey(sources([str(given) for given in inputs], None, ExitStack()))


def read(path: str) -> AudioClip:
    """Stand in for `read_audio`."""
    if "missing" in path:
        raise AudioInputError(f"{path} does not exist")
    return CLIP


def answer(
    plan: Plan,
    engine: Engine,
    *,
    workers: int = 1,
    finished: Finished | None = None,
    view: ProgressView | None = None,
    write: Callable[[dict[str, Any]], None] | None = None,
    stop: threading.Event | None = None,
    fail_fast: bool = False,
    tools: AllowedTools | None = None,
) -> list[dict[str, Any]]:
    """Run a plan and return the records in the order in which they were written."""
    written: list[dict[str, Any]] = []
    scheduler = Scheduler(iter(plan), finished or NothingFinished(), INSTRUCTIONS)
    stop = stop or threading.Event()
    run = Run(scheduler, plan.items, write or written.append, Stats(), view or Silent(), stop, fail_fast)
    with Prefetcher(scheduler, read) as prefetcher:
        run.answer([EngineWorker(prefetcher, engine, 0.0, tools=tools) for _ in range(workers)])
    return written
