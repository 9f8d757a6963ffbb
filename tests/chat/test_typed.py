"""A typed conversation: lines are turns, slashes are commands, Ctrl-C interrupts."""

import io
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support.canary import Canary, calls, sing
from tests.support.emulator import Emulator
from tests.support.live_doubles import Journal
from voxcli.chat.events import (
    ApprovalAnswered,
    ApprovalAsked,
    BargeIn,
    Notice,
    SentenceSpoken,
    SessionEnded,
    TurnFailed,
    TurnStarted,
    TurnTaken,
    TurnUndone,
)
from voxcli.chat.keyboard.lines import LINE_BYTES, piped_lines
from voxcli.chat.messages import Inbound
from voxcli.chat.responses.approval import Approver, ChatTools
from voxcli.chat.responses.response import Responder
from voxcli.chat.typed import SlashCommand, TypedConversation
from voxcli.chat.views.typed import TypedView
from voxcli.core.memory import Memory
from voxcli.core.protocols import SpeechOutput, Utterance
from voxcli.core.session import Session
from voxcli.core.testing import FakeEngine, FakeSpeaker, FakeSynthesizer
from voxcli.core.turn import ReplyDelta
from voxcli.errors import ConfigError, ModelError

Line = str | BaseException | None


def _at_a_terminal(code: str) -> "tuple[subprocess.Popen[bytes], int]":
    """Start Python on a terminal of 80 columns; return it, and the user's end of the terminal."""
    user, program = pty.openpty()
    termios.tcsetwinsize(program, (24, 80))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path.cwd()), "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, stdin=program, stdout=program, stderr=program, env=environment, start_new_session=True
    )
    os.close(program)
    return process, user


def _read(user: int) -> bytes:
    try:
        return os.read(user, 4096)
    except OSError:  # EIO: the program has ended
        return b""


class Typing:
    """A typed conversation with doubles, which answers the lines that it is given."""

    def __init__(
        self,
        engine: FakeEngine,
        *,
        speaker: FakeSpeaker | None = None,
        max_turns: int | None = None,
        read_answer: Callable[[float], str | None] | None = None,
    ) -> None:
        inbox: SimpleQueue[Inbound] = SimpleQueue()
        self.journal = Journal()
        self.memory = Memory(Session())
        self.arguments: list[str] = []
        self._lines: Iterator[Line] = iter(())
        speech = SpeechOutput(FakeSynthesizer(), speaker) if speaker else None
        approver = Approver(inbox.put)
        self.canary = Canary(approver)
        self._responder = Responder(engine, speech, inbox.put, tools=ChatTools(self.canary, approver))
        note = SlashCommand("/note TEXT", "note TEXT", self._note)
        self.conversation = TypedConversation(
            self.memory,
            self._responder,
            inbox,
            self.journal.show,
            self._next,
            {"note": note},
            read_answer=read_answer,
            max_turns=max_turns,
        )

    def answer(self, *lines: Line) -> Journal:
        self._lines = iter(lines)
        self._responder.start()
        try:
            self.conversation.run()
        finally:
            self._responder.finish()
        return self.journal

    def _next(self) -> str | None:
        line = next(self._lines, None)
        if isinstance(line, BaseException):
            raise line
        return line

    def _note(self, argument: str) -> str:
        self.arguments.append(argument)
        return f"noted: {argument}"


def notices(journal: Journal) -> list[str]:
    return [event.text for event in journal.of(Notice)]


def test_each_line_is_a_turn_with_the_memory_of_those_before() -> None:
    engine = FakeEngine([["Hello", "."], ["Four."]])
    typing = Typing(engine)
    journal = typing.answer("Hi", "", "  ", "Two plus two?")
    assert [event.utterance.prompt for event in journal.of(TurnStarted)] == ["Hi", "Two plus two?"]
    assert [(event.number, event.ended.turn.user, event.ended.turn.reply) for event in journal.of(TurnTaken)] == [
        (1, "Hi", "Hello."),
        (2, "Two plus two?", "Four."),
    ]
    assert [len(session.turns) for session, _ in engine.asked] == [0, 1]
    assert [(ended.turns, ended.latencies) for ended in journal.of(SessionEnded)] == [(2, ())]


def test_the_history_is_prefilled_while_the_user_types() -> None:
    engine = FakeEngine([["Hello."]])

    class Slow(Typing):
        def _next(self) -> str | None:
            while self.memory.session.turns and not engine.prefilled:
                os.sched_yield()
            return super()._next()

    typing = Slow(engine)
    typing.answer("Hi")
    assert engine.prefilled == [replace(typing.memory.session, tools=typing.canary.specs)]


def test_a_reply_is_spoken_to_its_end() -> None:
    journal = Typing(FakeEngine([["One. ", "Two."]]), speaker=FakeSpeaker()).answer("Count.")
    assert [event.text.strip() for event in journal.of(SentenceSpoken)] == ["One.", "Two."]


@pytest.mark.parametrize(("line", "argument"), [("/note", ""), ("/note  a b ", "a b"), ("/NOTE x", "x")])
def test_a_command_gets_its_argument_and_is_no_turn(line: str, argument: str) -> None:
    typing = Typing(FakeEngine([]))
    journal = typing.answer(line)
    assert typing.arguments == [argument]
    assert notices(journal) == [f"noted: {argument}"]
    assert not journal.of(TurnTaken)


@pytest.mark.parametrize("line", ["/etc/hosts", " /note", "a /note", "/ is a slash", "/1"])
def test_what_only_looks_like_a_command_is_text(line: str) -> None:
    engine = FakeEngine([["Yes."]])
    Typing(engine).answer(line)
    assert engine.asked[0][1].prompt == line.strip()


def test_an_unknown_command_names_the_nearest() -> None:
    (failed,) = Typing(FakeEngine([])).answer("/nota").of(TurnFailed)
    assert (failed.error.message, failed.error.hint) == ("there is no command /nota", "did you mean /note?")


def test_help_lists_every_command_and_quit_ends() -> None:
    typing = Typing(FakeEngine([]))
    text = "\n".join(notices(typing.answer("/help", "/quit", "never read")))
    assert all(name in text for name in ("/note TEXT", "/help", "/quit"))
    assert typing.journal.of(SessionEnded)


def test_a_failure_is_told_and_the_conversation_goes_on() -> None:
    typing = Typing(FakeEngine([ModelError("out of memory"), ["Yes."]]))
    journal = typing.answer("One?", ConfigError("a line that is not text was left out"), "Two?")
    assert [event.error.message for event in journal.of(TurnFailed)] == [
        "out of memory",
        "a line that is not text was left out",
    ]
    assert [event.ended.turn.user for event in journal.of(TurnTaken)] == ["Two?"]
    assert typing.conversation.failures == 2


def test_undo_forgets_the_last_turn() -> None:
    engine = FakeEngine([["One."], ["Two."]])
    typing = Typing(engine)
    journal = typing.answer("/undo", "a", "/undo", "b")
    assert notices(journal)[0] == "there is no turn to undo"
    assert [event.turn.user for event in journal.of(TurnUndone)] == ["a"]
    assert [turn.user for turn in typing.memory.session.turns] == ["b"]
    assert engine.asked[-1][0].turns == ()


def test_it_ends_after_the_turns_that_were_asked_for() -> None:
    journal = Typing(FakeEngine([["One."], ["Two."]]), max_turns=1).answer("a", "b")
    assert len(journal.of(TurnTaken)) == 1


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_interrupts_the_reply_which_is_remembered_as_far_as_it_came() -> None:
    engine = FakeEngine([["One. ", "Two."], ["Three."]])
    typing = Typing(engine)

    def interrupt(count: int) -> None:
        if count == 1:
            os.kill(os.getpid(), signal.SIGINT)
            typing.journal.wait(lambda: "Ctrl-C again ends the conversation" in notices(typing.journal))

    engine.before_delta = interrupt
    journal = typing.answer("Count.", "More.")
    assert [event.ended.turn.interrupted for event in journal.of(TurnTaken)] == [True, False]
    assert [turn.reply for turn in typing.memory.session.turns] == ["One.", "Three."]
    assert journal.of(BargeIn)
    assert not typing.conversation.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_the_conversation() -> None:
    typing = Typing(FakeEngine([]))
    journal = typing.answer(KeyboardInterrupt(), KeyboardInterrupt(), "never read")
    assert typing.conversation.interrupted
    assert journal.of(SessionEnded)


def test_lines_of_a_pipe_are_text_whatever_they_hold() -> None:
    read = piped_lines(io.BytesIO("grün\r\n\n".encode() + b"\xff\xfe\n" + b"last"))
    assert [read(), read(), read(), read(), read()] == ["grün", "", "\ufffd\ufffd", "last", None]


def test_a_line_that_is_too_long_or_no_text_is_left_out_and_the_next_is_read() -> None:
    long = b"x" * (3 * LINE_BYTES)
    read = piped_lines(io.BytesIO(b"RIFF\0\0\n" + long + b"\nnext\n" + b"y" * LINE_BYTES + b"\n" + long))
    with pytest.raises(ConfigError, match="not text"):
        read()
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        read()
    assert read() == "next"
    assert read() == "y" * LINE_BYTES
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        read()
    assert read() is None


def test_a_reply_streams_to_stdout_and_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    utterance = Utterance(None, "Hi")
    view = TypedView(is_terminal=False)
    view.show(TurnStarted(utterance))
    view.show(ReplyDelta(" A\x1b[2J"))
    assert capsys.readouterr() == ("A\\x1b[2J", "")
    view.show(Notice("the\x07 reply"))
    view.show(ReplyDelta("B"))
    view.close()
    assert capsys.readouterr() == ("\nB", "the\\x07 reply\n")


def test_a_typed_line_is_erased_whatever_its_length() -> None:
    code = "from voxcli.chat.keyboard.keys import typed_line\nprint('above')\n" + (
        "print('got', len(typed_line('you: ', erase=True)))\n" * 3
    )
    process, user = _at_a_terminal(code)
    shown = b""
    for count, line in enumerate(("short", "x" * 75, "\u5b57" * 100), 1):  # 75: with the prompt, exactly a row
        while shown.count(b"you: ") < count:
            shown += _read(user)
        os.write(user, f"{line}\n".encode())
    shown += b"".join(iter(lambda: _read(user), b""))
    os.close(user)
    assert process.wait(30) == 0
    emulator = Emulator(80, 24, "cut", clusters=False)
    emulator.feed(shown.decode())
    assert emulator.logical_lines() == ["above", "got 5", "got 75", "got 100"]


# Tools.

SINGING = (calls(), "It sang.")


@pytest.mark.parametrize(("line", "allowed"), [("y", True), ("Yes.", True), ("N", False), ("no", False), ("", False)])
def test_a_typed_line_answers_the_question_whether_a_tool_may_run(line: str, allowed: bool) -> None:
    engine = FakeEngine([SINGING])
    typing = Typing(engine)
    journal = typing.answer("Sing!", line)
    assert journal.of(ApprovalAsked) == [ApprovalAsked(sing())]
    assert journal.of(ApprovalAnswered) == [ApprovalAnswered(sing(), allowed, "text")]
    assert typing.canary.sung == (["la"] if allowed else [])
    assert [event.utterance.prompt for event in journal.of(TurnStarted)] == ["Sing!"]
    (turn,) = typing.memory.session.turns
    assert (turn.reply, turn.tools[0].asked, turn.tools[0].allowed) == ("It sang.", True, allowed)


def test_another_line_refuses_and_is_answered_next() -> None:
    engine = FakeEngine([SINGING, ["Monday."]])
    typing = Typing(engine)
    typing.answer("Sing!", "yes, but what day is it?")
    assert typing.canary.sung == []
    assert [turn.user for turn in typing.memory.session.turns] == ["Sing!", "yes, but what day is it?"]
    assert typing.memory.session.turns[0].tools[0].decided_by == "text"


def raising_answer(error: BaseException) -> Callable[[float], str | None]:
    def read_answer(_seconds: float) -> str | None:
        raise error

    return read_answer


@pytest.mark.parametrize(
    ("read_answer", "decided_by"),
    [(lambda _seconds: None, "nobody"), (raising_answer(TimeoutError()), "timeout")],
)
def test_no_answer_is_a_refusal(read_answer: Callable[[float], str | None], decided_by: str) -> None:
    typing = Typing(FakeEngine([SINGING]), read_answer=read_answer)
    typing.answer("Sing!")
    assert typing.canary.sung == []
    assert [result.decided_by for result in typing.memory.session.turns[0].tools] == [decided_by]


def test_ctrl_c_at_the_question_interrupts_the_turn() -> None:
    typing = Typing(FakeEngine([SINGING, ["Next."]]), read_answer=raising_answer(KeyboardInterrupt()))
    typing.answer("Sing!", "Go on.")
    assert typing.canary.sung == []
    first, second = typing.memory.session.turns
    assert (first.interrupted, first.tools[0].status, second.reply) == (True, "interrupted", "Next.")


def test_a_question_that_can_not_be_read_is_no_permission() -> None:
    typing = Typing(FakeEngine([SINGING]), read_answer=raising_answer(ConfigError("a line that is not text")))
    typing.answer("Sing!")
    assert typing.canary.sung == []


def test_what_was_typed_before_the_question_is_no_answer() -> None:
    """At a terminal, where a line may have been typed while the reply was awaited."""
    code = """
import sys
from voxcli.chat.keyboard.lines import typed_answer
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.buffer.raw.name  # the terminal holds what was typed so far
import select; select.select([0], [], [], 20)
print(repr(typed_answer(20)))
"""
    process, user = _at_a_terminal(code)
    seen = b""
    try:
        while b"ready" not in seen:
            seen += _read(user)
        os.write(user, b"y\n")
        while b"y or n" not in seen:
            seen += _read(user)
        os.write(user, b"later\n")
        while b"'later'" not in seen:
            more = _read(user)
            assert more, seen
            seen += more
    finally:
        process.kill()
        process.wait()
        os.close(user)
    assert b"'y'" not in seen
