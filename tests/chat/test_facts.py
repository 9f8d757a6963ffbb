"""Facts at the end of a conversation: found in what was understood, shown, kept, and never in the way."""

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support.live_doubles import Journal
from voxcli.chat.events import FactsLearned, Latency, Notice, Ready, SessionEnded, TurnTaken, TurnUndone
from voxcli.chat.facts import LOOKING, NOTHING_UNDERSTOOD, FactFinder
from voxcli.chat.messages import Inbound
from voxcli.chat.responses.response import Responder
from voxcli.chat.typed import TypedConversation
from voxcli.chat.views.lines import JsonLiveView
from voxcli.chat.views.words import note_lines
from voxcli.core.memory import Memory
from voxcli.core.protocols import PassReport
from voxcli.core.session import Session, Turn
from voxcli.core.speaking import Timings
from voxcli.core.storage.facts import MOST_FACTS, FactFile
from voxcli.core.testing import FakeEngine
from voxcli.core.turn import TurnEnded
from voxcli.core.understanding import Understood
from voxcli.errors import ModelError
from voxcli.output import Output

PLACEHOLDER = "[User audio input - 16000 samples, 1.00s]"
ENDED = SessionEnded(1, (), 0, 0, 0, None, None)


class Chat:
    """A finder with doubles around it."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.journal = Journal()
        self.file = FactFile(folder)
        self.engine = engine
        self.finished = 0
        self.finder = FactFinder(self.file, engine, self.journal.show, self._finish)

    def take(self, number: int, turn: Turn, transcript: str | None = None) -> None:
        report = PassReport(1, 1, 0, 1, transcript)
        self.finder.show(TurnTaken(TurnEnded(turn, report, Timings(None, None, 0.0)), number, Latency()))

    def end(self) -> list[str]:
        """End the conversation; return the names of its last events."""
        before = len(self.journal.events)
        self.finder.show(ENDED)
        return [type(event).__name__ for event in self.journal.events[before:]]

    def _finish(self) -> None:
        assert self.engine.asked == [], "the engine was asked while it may still have been in use"
        self.finished += 1


def test_facts_are_found_in_all_that_was_understood_and_shown_before_the_end(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([["name: Anna\nlikes: tea\nplans: a boat\nlives in: Rome"]]))
    chat.take(1, Turn(PLACEHOLDER, "Hello.", understood="Her name is Anna."))
    chat.take(2, Turn(PLACEHOLDER, "Fine."), "I like tea.")
    chat.take(3, Turn("I'm building a boat.", "Good."))
    chat.take(4, Turn("I live in Rome.", "Good."))
    chat.finder.show(TurnUndone(Turn("I live in Rome.", "Good."), 4))
    assert chat.end() == ["Notice", "FactsLearned", "SessionEnded"]
    assert chat.file.read() == ("name: Anna", "likes: tea", "plans: a boat")
    assert chat.journal.of(FactsLearned) == [FactsLearned(chat.file.read())]
    assert chat.finished == 1
    assert "Rome" not in chat.engine.asked[0][1].prompt


def test_what_is_understood_only_after_a_turn_counts(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([["name: Anna\nlikes: tea"]]))
    chat.finder.show(Understood("My name is Anna."))  # Its turn is not over.
    for number in (1, 2):
        chat.take(number, Turn(PLACEHOLDER, "Hello."))
    chat.finder.show(Understood("My name is Anna.", 1))
    chat.finder.show(Understood("I like tea.", 2))
    chat.finder.show(TurnUndone(Turn(PLACEHOLDER, "Hello."), 2))
    chat.finder.show(Understood("I like tea.", 2))
    chat.end()
    assert chat.file.read() == ("name: Anna",)


def test_where_nothing_was_understood_nobody_is_asked(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([]))
    assert chat.end() == ["SessionEnded"]
    chat.take(1, Turn(PLACEHOLDER, "Hello."))
    assert chat.end() == ["Notice", "SessionEnded"]
    assert chat.journal.of(Notice)[-1].text == NOTHING_UNDERSTOOD
    assert (chat.finished, list(tmp_path.iterdir())) == (0, [])


def test_known_facts_are_not_found_again(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([["Name: Anna."]]))
    chat.file.add(["name: Anna"])
    chat.take(1, Turn("I'm Anna", "Hello."))
    chat.end()
    assert chat.journal.of(FactsLearned) == [FactsLearned(())]
    assert chat.file.read() == ("name: Anna",)


def test_a_failing_engine_loses_nothing(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([ModelError("out of memory")]))
    chat.file.add(["name: Anna"])
    chat.take(1, Turn("I like tea.", "Good."))
    assert chat.end() == ["Notice", "Notice", "SessionEnded"]
    assert chat.journal.of(Notice)[-1].text == "no facts are kept of this conversation: out of memory"
    assert chat.file.read() == ("name: Anna",)


def test_a_damaged_file_is_said_and_not_changed(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([["likes: tea"]]))
    chat.file.path.write_bytes(b"\xff")
    chat.take(1, Turn("I like tea.", "Good."))
    assert chat.end() == ["Notice", "Notice", "SessionEnded"]
    assert "not UTF-8" in chat.journal.of(Notice)[-1].text
    assert chat.file.path.read_bytes() == b"\xff"


def test_a_full_file_takes_what_it_has_room_for(tmp_path: Path) -> None:
    chat = Chat(tmp_path, FakeEngine([["likes: tea\nname: Anna"]]))
    chat.file.add([f"number: {number}" for number in range(MOST_FACTS - 1)])
    chat.take(1, Turn("I like tea. I'm Anna.", "Good."))
    chat.end()
    assert chat.journal.of(FactsLearned) == [FactsLearned(("likes: tea",))]
    assert any("no more" in notice.text for notice in chat.journal.of(Notice))


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, also where the tests were started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_ctrl_c_skips_the_search_and_is_itself_again_afterwards(tmp_path: Path) -> None:
    engine = FakeEngine(
        [["likes: tea\n", "name: Anna\n"]],
        before_delta=lambda count: signal.raise_signal(signal.SIGINT) if count else None,
    )
    chat = Chat(tmp_path, engine)
    chat.take(1, Turn("I like tea. I'm Anna.", "Good."))
    assert chat.end() == ["Notice", "Notice", "SessionEnded"]
    assert chat.file.read() == ()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_facts_are_shown_without_escapes() -> None:
    event = FactsLearned(("name: \x1b[31mAnna", "likes: tea"))
    assert note_lines(event) == [
        "remembered: name: \\x1b[31mAnna",
        "remembered: likes: tea",
        "voxcli facts edit changes what is remembered",
    ]
    assert note_lines(FactsLearned(())) == ["nothing new to remember"]
    stream = io.StringIO()
    JsonLiveView(Output(stream)).show(event)
    shown = json.loads(stream.getvalue())
    assert (shown["event"], shown["facts"]) == ("facts_learned", list(event.facts))


def test_the_header_names_the_persona() -> None:
    ready = Ready("remote", "m", None, None, None, None, "off", persona="interpreter:target=French")
    assert any(line.split() == ["persona", "interpreter:target=French"] for line in note_lines(ready))
    assert not any("persona" in line for line in note_lines(Ready("remote", "m", None, None, None, None, "off")))


def test_a_typed_conversation_ends_with_its_facts(tmp_path: Path) -> None:
    engine = FakeEngine([["Hello Anna."], ["name: Anna"]])
    inbox: SimpleQueue[Inbound] = SimpleQueue()
    journal = Journal()
    responder = Responder(engine, None, inbox.put)
    lines = iter(["I'm Anna"])
    finder = FactFinder(FactFile(tmp_path), engine, journal.show, responder.finish)
    conversation = TypedConversation(Memory(Session()), responder, inbox, finder.show, lambda: next(lines, None), {})
    responder.start()
    conversation.run()
    responder.finish()
    assert [type(event) for event in journal.events[-3:]] == [Notice, FactsLearned, SessionEnded]
    assert journal.of(Notice)[-1].text == LOOKING
    assert FactFile(tmp_path).read() == ("name: Anna",)
