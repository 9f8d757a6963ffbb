"""What tests of Ray clusters share; the workers import the engines from here."""

import os
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session
from voxcli.errors import ModelError

POLL_SECONDS = 0.02


@dataclass
class Witness(Engine):
    """An engine that says which process answers and which turn came before.

    It begins when so many `processes` have been asked, and waits with prompts from `waits` on for the file `gate`.
    """

    folder: Path
    waits: int
    processes: int
    name: str = "witness"
    model: str = "witness"
    replies_at_once: int = 2

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        number = int(utterance.prompt)
        if number < 0:
            os._exit(1)
        (self.folder / f"{os.getpid()}.pid").touch()
        while len(list(self.folder.glob("*.pid"))) < self.processes:
            interrupt.wait(POLL_SECONDS)
        while number >= self.waits and not (self.folder / "gate").exists():
            interrupt.wait(POLL_SECONDS)
        before = session.turns[-1].prompt if session.turns else "nothing"
        yield f"{os.getpid()} {number} after {before}"
        return PassReport(model_passes=1, prompt_tokens=1, cached_tokens=0, reply_tokens=1)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Open:
    """Opens a `Witness`."""

    folder: str
    waits: int
    processes: int

    def __call__(self, notice: Callable[[str], None]) -> Witness:
        notice("the witness is here")
        return Witness(Path(self.folder), self.waits, self.processes)


@dataclass(frozen=True)
class OpenAndDie:
    """Dies so many times while it opens an engine, as if for lack of memory; leaves a file each time."""

    folder: str
    times: int

    def __call__(self, notice: Callable[[str], None]) -> Witness:
        (Path(self.folder) / f"{os.getpid()}.dead").touch()
        if len(list(Path(self.folder).glob("*.dead"))) <= self.times:
            os._exit(1)
        return Witness(Path(self.folder), waits=10**9, processes=1)


def open_nothing(notice: Callable[[str], None]) -> Witness:
    raise ModelError("the model is not there", hint="fetch it")
