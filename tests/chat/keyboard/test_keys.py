"""Keys: what the bytes of a terminal mean, and that the terminal is as it was afterwards."""

import io
import os
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxcli.chat.keyboard.keys import PENDING_CHARS, Key, KeyParser, TerminalReply
from voxcli.chat.keyboard.opening import open_keys
from voxcli.chat.keyboard.windows import WindowsKeys

MEANINGS = [  # what a terminal sends, and what it means
    (b" ", [Key(" ")]),
    (b"q", [Key("q")]),
    (b"Q", [Key("q", shift=True)]),
    ("é".encode(), [Key("é")]),
    (b"\r", [Key("\r")]),
    (b"\x1b[A", []),  # an arrow
    (b"\x1b[1;5C", []),  # with Ctrl
    (b"\x1b[15~", []),  # F5
    (b"\x1bOP", []),  # F1
    (b"\x1bq", []),  # Alt+q
    (b"\x1b[200~", []),  # a paste
    (b"\x1b]11;rgb:0000/q/0000\x1b\\", []),  # a colour
    (b"\x1bP1$r0q\x07", []),
    (b"\x1b[?62;22c", [TerminalReply("c", "62;22")]),
    (b"\x1b[?11u", [TerminalReply("u", "11")]),
    (b"\x1b[32u", [Key(" ")]),
    (b"\x1b[32;1u", [Key(" ")]),
    (b"\x1b[32;1:1u", [Key(" ")]),
    (b"\x1b[32;1:2u", [Key(" ", "repeat")]),
    (b"\x1b[32;1:3u", [Key(" ", "release")]),
    (b"\x1b[32::32;129:3;32u", [Key(" ", "release")]),  # alternates, Num Lock, text
    (b"\x1b[113:81;2u", [Key("q", shift=True)]),  # Shift
    (b"\x1b[113;65u", [Key("q")]),  # Caps Lock
    (b"\x1b[113;3u", []),  # Alt+q
    (b"\x1b[32;5:3u", [Key(" ", "release")]),  # Ctrl went down meanwhile
    (b"\x1b[99;5u", [Key("\x03")]),  # Ctrl-C
    (b"\x1b[92;5u", [Key("\x1c")]),
    (b"\x1b[53;5u", []),  # Ctrl+5
    (b"\x1b[57441;2u", []),  # Shift itself
    (b"\x1b[;u", []),
    (b"\x1b[32;?:3u", []),
    (b"\x1b[32;1:9u", []),
    (b"\x1b[55296u", []),  # a surrogate
    (b"\x1b[9999999u", []),
    (b"\x1b[" + b"9" * 5000 + b"u", []),
]


@pytest.mark.parametrize(("sent", "meant"), MEANINGS)
def test_what_is_sent_has_a_meaning(sent: bytes, meant: list[Key | TerminalReply]) -> None:
    parser = KeyParser()
    assert parser.feed(sent) == meant
    assert not parser.pending


@given(st.lists(st.sampled_from([case for case in MEANINGS if len(case[0]) < 100]), max_size=8), st.data())
def test_borders_do_not_matter(cases: list[tuple[bytes, list[Key | TerminalReply]]], data: st.DataObject) -> None:
    sent = b"".join(case[0] for case in cases)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    parser = KeyParser()
    found = [
        key for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True) for key in parser.feed(sent[start:end])
    ]
    assert found == [each for case in cases for each in case[1]]


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_noise_never_blocks_the_next_key(noise: list[bytes]) -> None:
    parser = KeyParser()
    for data in noise:
        parser.feed(data)
    assert len(parser.pending) <= PENDING_CHARS
    parser.discard_pending()
    assert parser.feed(b" ") == [Key(" ")]


@pytest.mark.parametrize(
    "broken", [b"\x1b[12\x00", b"\x1b[ 1", b"\x1b\x1b[A", b"\x1b[1\x1b[A", b"\x1b]0;t\x1b[A", b"\xff\xc3"]
)
def test_a_broken_sequence_swallows_no_key_after_it(broken: bytes) -> None:
    assert Key("q") in KeyParser().feed(broken + b"q")


def test_escape_waits_for_what_follows() -> None:
    parser = KeyParser()
    assert parser.feed(b"\x1b") == []
    assert parser.pending
    parser.discard_pending()
    assert parser.feed(b"q") == [Key("q")]


# The terminal.


@dataclass
class Terminal:
    """Both ends of a pseudo-terminal: what the user has, and what the program has."""

    user: int
    program: io.TextIOWrapper

    @property
    def is_cooked(self) -> bool:
        return bool(termios.tcgetattr(self.program.fileno())[3] & termios.ICANON)

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.program.fileno())[3] & termios.ECHO)

    def press(self, keys: bytes) -> None:
        os.write(self.user, keys)

    @contextmanager
    def typist(self, line: bytes) -> Iterator[None]:
        """Types a line as soon as the terminal takes lines."""

        def press() -> None:
            while not self.is_cooked:
                os.sched_yield()
            self.press(line)

        thread = threading.Thread(target=press)
        thread.start()
        yield
        thread.join()

    def shown(self) -> bytes:
        found = b""
        while select.select([self.user], [], [], 0)[0]:
            found += os.read(self.user, 1024)
        return found


@contextmanager
def new_terminal() -> Iterator[Terminal]:
    user, program = os.openpty()
    with open(program, encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor, not a path
        try:
            yield Terminal(user, stream)
        finally:
            with suppress(OSError):
                os.close(user)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with new_terminal() as terminal:
        yield terminal


def test_a_key_comes_at_once_and_unseen(terminal: Terminal) -> None:
    with open_keys(stdin=terminal.program) as keys:
        assert keys
        assert not terminal.is_cooked
        terminal.press(b" \x1b[Aq")
        assert [keys.read(1), keys.read(1), keys.read(0)] == [Key(" "), Key("q"), None]
        assert terminal.shown() == b""
        assert not keys.supports_release
    assert terminal.is_cooked
    assert terminal.echoes


def test_escape_alone_does_not_hide_the_next_key(terminal: Terminal) -> None:
    with open_keys(stdin=terminal.program) as keys:
        assert keys
        terminal.press(b"\x1b")
        assert keys.read(0.2) is None
        terminal.press(b"q")
        assert keys.read(1) == Key("q")


def test_an_error_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    with pytest.raises(ZeroDivisionError), open_keys(stdin=terminal.program):
        raise ZeroDivisionError
    assert terminal.is_cooked


def test_signals_are_given_back(terminal: Terminal) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT)}
    with open_keys(stdin=terminal.program):
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_terminal_that_hangs_up_is_silent(terminal: Terminal) -> None:
    with open_keys(stdin=terminal.program) as keys:
        assert keys
        os.close(terminal.user)
        assert keys.read(0.01) is None
        assert keys.read(0.01) is None


def test_there_are_no_keys_without_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("q")
    with (tmp_path / "input").open() as file, open_keys(stdin=file) as keys:
        assert keys is None
    with open_keys(stdin=io.StringIO("q")) as keys:
        assert keys is None


def test_a_line_is_typed_with_echo_and_then_keys_again(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    paused = []

    @contextmanager
    def pause() -> Iterator[None]:
        paused.append(terminal.is_cooked)
        yield
        paused.append(terminal.is_cooked)

    with open_keys(stdin=terminal.program, paused=pause) as keys:
        assert keys
        with terminal.typist(b"wje\x7f\x7fie geht's, q?\n"):  # Backspace mends it
            assert keys.read_line("you: ") == "wie geht's, q?"
        assert b"q?" in terminal.shown()
        with terminal.typist(b"\n"):
            assert keys.read_line("you: ") == ""
        terminal.press(b"q")
        assert keys.read(1) == Key("q")
    assert not any(paused)
    assert capsys.readouterr() == ("", "you: you: ")  # a prompt is no reply


def test_a_terminal_that_can_tells_releases(terminal: Terminal) -> None:
    terminal.press(b"i\x1b[?11u\x1b[?62c")
    with open_keys(releases=True, stdin=terminal.program) as keys:
        assert keys
        assert keys.supports_release
        assert b"\x1b[>11u" in terminal.shown()
        terminal.press(b"\x1b[32u\x1b[32;1:3u")
        assert [keys.read(1), keys.read(1), keys.read(1)] == [Key("i"), Key(" "), Key(" ", "release")]
    assert terminal.shown().count(b"\x1b[<u") == 1


@pytest.mark.parametrize("answer", [b"\x1b[?62c", b"\x1b[?1u\x1b[?62c", b""], ids=["unknown", "in part", "silent"])
def test_a_terminal_that_cannot_has_keys_still(terminal: Terminal, answer: bytes) -> None:
    terminal.press(answer)
    with open_keys(releases=True, stdin=terminal.program) as keys:
        assert keys
        assert not keys.supports_release
        terminal.press(b" ")
        assert keys.read(1) == Key(" ")
    assert terminal.shown().count(b"\x1b[<u") == (b"u" in answer)  # what was pushed is popped


def test_a_line_is_typed_in_the_usual_way_of_reporting(terminal: Terminal) -> None:
    terminal.press(b"\x1b[?11u\x1b[?62c")
    with open_keys(releases=True, stdin=terminal.program) as keys:
        assert keys
        terminal.shown()
        with terminal.typist(b"x\n"):
            assert keys.read_line("") == "x"
        shown = terminal.shown()
        assert shown.index(b"\x1b[<u") < shown.rindex(b"\x1b[>11u")


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_is_a_signal_however_it_is_reported(terminal: Terminal) -> None:
    terminal.press(b"\x1b[?11u\x1b[?62c")
    with open_keys(releases=True, stdin=terminal.program) as keys:
        assert keys
        terminal.press(b"\x1b[99;5u")
        with pytest.raises(KeyboardInterrupt):
            keys.read(5)


# Signals, in a program of its own.

PROGRAM = """
import fcntl, os, signal, termios
from voxcli.chat.keyboard.opening import open_keys

def is_cooked():
    return bool(termios.tcgetattr(0)[3] & termios.ICANON)

def talk():
    with open_keys() as keys:
        print("open" if keys else "none", is_cooked(), flush=True)
        char = ""
        while char != "q":
            if key := keys.read(0.1):  # as chat does: a signal just before the wait is taken after it
                char = key.char
                print("key", char, is_cooked(), flush=True)
    print("closed", is_cooked(), flush=True)

# As a shell does: the program runs in a group of processes of its own, in the foreground.
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
go, start = os.pipe()
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.read(go, 1)
    talk()
    raise SystemExit
os.setpgid(child, child)
os.tcsetpgrp(0, child)
os.write(start, b".")
while os.WIFSTOPPED((status := os.waitpid(child, os.WUNTRACED)[1])):
    print("stopped", is_cooked(), flush=True)
    os.kill(child, signal.SIGCONT)
print("ended", os.waitstatus_to_exitcode(status), is_cooked(), flush=True)
"""


class Program:
    """PROGRAM, at a terminal of its own; what it says comes through a pipe."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=terminal.program,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def says(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def press(self, keys: bytes) -> None:
        self._terminal.press(keys)

    def send(self, number: int) -> None:
        os.kill(os.tcgetpgrp(self._terminal.user), number)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def program(terminal: Terminal, usual_signals: None) -> Iterator[Program]:
    program = Program(terminal)
    yield program
    program.end()


def test_ctrl_z_gives_the_terminal_to_the_shell_and_takes_it_again(program: Program) -> None:
    assert program.says() == "open False"
    program.press(b"\x1a")
    assert program.says() == "stopped True"
    program.press(b"r")
    assert program.says() == "key r False"
    program.press(b"q")
    assert [program.says(), program.says(), program.says()] == ["key q False", "closed True", "ended 0 True"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_that_ends_the_program_leaves_the_terminal_as_it_was(program: Program, number: int) -> None:
    assert program.says() == "open False"
    program.press(b"i")
    assert program.says() == "key i False"
    program.send(number)
    assert program.says() == f"ended {128 + number} True"


# Windows.


class Console:
    """A console with these keys waiting."""

    def __init__(self, keys: str) -> None:
        self.keys = list(keys)

    def has_key(self) -> bool:
        return bool(self.keys)

    def get_char(self) -> str:
        return self.keys.pop(0)


def test_a_console_has_keys_too() -> None:
    console = Console("Q\xe0Hi\x00;")  # two of these are an arrow and F1
    keys = WindowsKeys(console.has_key, console.get_char)
    assert [keys.read(1), keys.read(1), keys.read(0)] == [Key("q", shift=True), Key("i"), None]
