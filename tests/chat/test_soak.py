"""Two hundred turns through all of a conversation but its devices: nothing that it uses grows."""

import gc
import threading
import tracemalloc
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from tests.support.listener_harness import FakeMicrophone, PassThroughCanceller, detect, silence, voice
from tests.support.live_doubles import HeldSpeaker, RunningConversation
from tests.support.turns import nothing_hangs
from voxcli.audio.clip import AudioClip
from voxcli.chat.devices.speaker import ReferenceTap
from voxcli.chat.events import Resumed, TurnRetracted, TurnTaken
from voxcli.chat.listener import Listener
from voxcli.chat.messages import Inbound
from voxcli.chat.speech.echo import Timeline
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.core.protocols import Engine, PassReport, Utterance
from voxcli.core.session import Session

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

TURNS = 200
SETTLED = 20  # turns after which nothing grows any more
RETRACT_MS, WINDOW = 300, 11  # WINDOW is in frames: so long after its end no turn can be taken back.
BYTES_A_TURN = 2000  # of text and numbers, which are remembered; half a second of audio is 32,000
GROWTH = 1.05  # of resident memory
OPEN_FILES, MEMORY_PAGES = Path("/proc/self/fd"), Path("/proc/self/statm")


@dataclass
class BriefEngine(Engine):
    """Says the same each time and keeps nothing."""

    name: str = "brief"
    model: str = ""
    passes: int = 0

    def reply(
        self, session: Session, utterance: Utterance, interrupt: threading.Event
    ) -> Generator[str, None, PassReport]:
        self.passes += 1
        yield "Yes. "
        yield "No."
        return PassReport(1, 10, 0, 2)

    def close(self) -> None:
        pass


@dataclass
class Loudspeaker(HeldSpeaker):
    """One that a reply and the listener share."""

    is_playing: bool = False
    is_ducked: bool = False
    reference: ReferenceTap = field(default_factory=ReferenceTap)
    underruns: int = 0

    def play(self, clip: AudioClip, interrupt: threading.Event) -> float:
        self.is_playing = True
        return super().play(clip, interrupt)

    def wait(self, position: float, interrupt: threading.Event) -> None:
        super().wait(position, interrupt)
        self.is_playing = self.position < self.queued and not interrupt.is_set()

    def duck(self) -> None:
        self.is_ducked = True

    def unduck(self) -> None:
        self.is_ducked = False


@dataclass(frozen=True)
class Figures:
    """What a process uses; 0 where the system does not tell."""

    threads: int
    files: int
    pages: int
    traced_bytes: int


def figures() -> Figures:
    gc.collect()
    files = len(list(OPEN_FILES.iterdir())) if OPEN_FILES.is_dir() else 0
    pages = int(MEMORY_PAGES.read_text().split()[1]) if MEMORY_PAGES.exists() else 0
    return Figures(threading.active_count(), files, pages, tracemalloc.get_traced_memory()[0])


class Conversing:
    """A conversation in which one person talks to a scripted engine."""

    def __init__(self) -> None:
        inbox: SimpleQueue[Inbound] = SimpleQueue()
        self.engine, self.speaker, self.microphone = BriefEngine(), Loudspeaker(), FakeMicrophone()
        self.listener = Listener(
            self.microphone,
            self.speaker,
            detect,
            Endpointer(EndpointingSettings(retract_ms=RETRACT_MS)),
            PassThroughCanceller(),
            Timeline(10.0),
            inbox.put,
        )
        self.live = RunningConversation(self.engine, self.speaker, listener=self.listener, inbox=inbox)
        self.turns = self.interrupted = self.retracted = self.dropped_speculative_replies = 0

    def take_turns(self, count: int) -> None:
        while self.turns < count:
            self._take_turn(self.turns + 1)

    def _take_turn(self, number: int) -> None:
        """Some have a pause that is none, some a cough while the reply plays; some are taken back or interrupted."""
        journal = self.live.journal
        self.microphone.capture(voice(20))
        if number % 3 == 0:
            self.microphone.capture(silence(10))
            self.microphone.capture(voice(10))
        self.microphone.capture(silence(20))
        journal.wait(lambda: "speaking" in journal.states())
        if number % 7 == 0:
            self.microphone.capture(voice(20))
            journal.wait_for(TurnRetracted)
            self.microphone.capture(silence(20))
            journal.wait(lambda: journal.states()[-1] == "speaking")
        if number % 4 == 0:
            self.microphone.capture(voice(3))
            self.microphone.capture(silence(10))
            journal.wait_for(Resumed)
        if number % 5 == 0:
            self.microphone.capture(silence(WINDOW))
            self.microphone.capture(voice(20))
            journal.wait_for(TurnTaken)
            self.microphone.capture(silence(20))
            journal.wait(lambda: journal.states()[-1] == "speaking")
        self.speaker.finish.set()
        self.microphone.capture(silence(WINDOW))
        journal.wait(lambda: journal.states()[-1:] == ["listening"])
        self.speaker.finish.clear()
        self._count()

    def _count(self) -> None:
        assert not self.speaker.is_ducked
        taken = self.live.taken
        self.turns += len(taken)
        self.retracted += len(self.live.journal.of(TurnRetracted))
        self.interrupted += sum(each.ended.turn.interrupted for each in taken)
        self.dropped_speculative_replies += sum(each.latency.dropped_speculative_replies for each in taken)
        self.live.journal.events.clear()


@contextmanager
def conversing() -> Iterator[Conversing]:
    tracemalloc.start()
    conversing = Conversing()
    conversing.listener.start()
    try:
        with conversing.live:
            conversing.live.journal.wait(lambda: conversing.live.journal.states() == ["listening"])
            conversing.live.journal.events.clear()
            yield conversing
    finally:
        conversing.microphone.end()
        conversing.listener.close()
        tracemalloc.stop()


def test_nothing_grows_over_two_hundred_turns() -> None:
    threads_before = threading.active_count()
    with conversing() as live:
        live.take_turns(SETTLED)
        settled = figures()
        for turns in range(2 * SETTLED, TURNS + 1, SETTLED):
            live.take_turns(turns)
            now = figures()
            assert (now.threads, now.files) == (settled.threads, settled.files)
            assert now.traced_bytes - settled.traced_bytes <= BYTES_A_TURN * (live.turns - SETTLED)
        assert now.pages <= GROWTH * settled.pages
        assert [turn.reply for turn in live.live.memory.session.turns if not turn.interrupted] == ["Yes. No."] * (
            live.turns - live.interrupted
        )
        assert live.turns == len(live.live.memory.session.turns) >= TURNS
        assert live.interrupted >= TURNS // 10
        assert live.retracted >= TURNS // 15
        assert live.dropped_speculative_replies >= TURNS // 5
        assert (
            live.turns <= live.engine.passes <= live.turns + live.dropped_speculative_replies
        )  # some were dropped unbegun
    assert threading.active_count() == threads_before
