"""Commands from other programs: who may send them, what each does, and that no client does any harm."""

import socket
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.live_doubles import PATIENCE_SECONDS, HeldSpeaker, RunningConversation
from tests.support.turns import nothing_hangs
from voxcli.chat.control import (
    COMMANDS,
    LINE_BYTES,
    MOST_CLIENTS,
    Command,
    Control,
    ControlServer,
    PipeChannel,
    accept_messages,
    commands_posted,
    send_command,
)
from voxcli.chat.conversation import ConversationOptions
from voxcli.chat.events import SpeechStarted, StateChanged, TurnTaken, TurnUndone
from voxcli.chat.messages import SleepChanged, SpeechEvent
from voxcli.cli import app
from voxcli.config.paths import control_address
from voxcli.core.testing import FakeEngine
from voxcli.errors import ConfigError, VoxError

__all__ = ["nothing_hangs"]  # a fixture that is used by itself

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets in Python")

REPLY = ["It rains.", " Take a coat."]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runtime" / "control"


@contextmanager
def answered(path: Path, state: str = "listening") -> Iterator[list[str]]:
    """Take commands at a path and answer each; yield those that came."""
    came: list[str] = []

    def post(control: Control) -> None:
        came.append(control.command)
        control.answer(state)

    with commands_posted(str(path), post):
        yield came


@contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(path))
        yield connection


def answers(connection: socket.socket) -> list[str]:
    """Return the lines that come until the connection is closed."""
    with connection.makefile("rb") as lines:
        return [line.decode().rstrip("\n") for line in lines]


# The socket.


def test_only_the_owner_can_use_the_socket_and_it_is_removed_at_the_end(path: Path) -> None:
    with answered(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_a_command_gets_the_state(path: Path) -> None:
    with answered(path, "muted") as came:
        assert [send_command(str(path), command) for command in COMMANDS] == ["muted"] * len(COMMANDS)
    assert came == list(COMMANDS)


def test_one_connection_carries_many_commands(path: Path) -> None:
    with answered(path) as came, client(path) as connection:
        connection.sendall(b"mute\r\n\n  unmute \nfly\nstatus")
        connection.shutdown(socket.SHUT_WR)
        lines = answers(connection)
    assert came == ["mute", "unmute", "status"]
    assert [line.split(":")[0] for line in lines] == ["ok", "error", "ok", "error", "ok"]
    assert "there is no command fly; there are mute, unmute" in lines[3]


@pytest.mark.parametrize("data", [b"a" * (LINE_BYTES + 1), b"a" * 1_000_000 + b"\nmute\n", b"\0" * 5000 + b"\n"])
def test_a_long_line_ends_its_connection(path: Path, data: bytes) -> None:
    with answered(path) as came:
        with client(path) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            try:
                connection.sendall(data)
                assert answers(connection) == ["error: the line is too long"]
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was closed before all was sent
        assert send_command(str(path), "status") == "listening"
    assert came == ["status"]


def test_bytes_that_are_no_text_are_answered_safely(path: Path) -> None:
    with answered(path), client(path) as connection:
        connection.sendall(b"\xff\x1b]0;title\x07\n")
        connection.shutdown(socket.SHUT_WR)
        (line,) = answers(connection)
    assert line.isprintable()


def test_clients_that_send_nothing_keep_nobody_out_for_long_and_no_client_blocks_the_end(path: Path) -> None:
    with answered(path):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(MOST_CLIENTS)]
        for each in idle:
            each.connect(str(path))
        with client(path) as connection:
            assert answers(connection) == ["error: too many clients"]
        for each in idle:
            each.close()
        with ThreadPoolExecutor(4) as pool:  # their places are free again
            assert set(pool.map(lambda _: send_command(str(path), "status"), range(40))) == {"listening"}


def test_a_client_that_never_reads_holds_up_nobody(path: Path) -> None:
    with answered(path), client(path) as deaf:
        deaf.setblocking(False)
        with suppress(BlockingIOError):  # its commands are no longer read, because its answers are not
            while deaf.send(b"fly\n" * 100):
                pass
        assert send_command(str(path), "status") == "listening"


def test_the_socket_of_a_killed_chat_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with answered(path):
        assert send_command(str(path), "status") == "listening"


def test_that_of_a_running_chat_is_not(path: Path) -> None:
    with answered(path):
        with pytest.raises(ConfigError, match="another chat takes commands"), answered(path):
            pass
        assert send_command(str(path), "status") == "listening"


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_socket_is_never_removed(path: Path, tmp_path: Path, kind: str) -> None:
    path.parent.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("precious")
    {"file": path.touch, "link": lambda: path.symlink_to(tmp_path / "precious"), "folder": path.mkdir}[kind]()
    with pytest.raises(ConfigError, match="is no socket"), answered(path):
        pass
    assert path.is_symlink() or path.exists()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_in_which_others_can_write_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write"), answered(path):
        pass
    path.parent.chmod(0o1777)  # The rights of /tmp: nobody can replace a file of somebody else.
    with answered(path):
        assert send_command(str(path), "status") == "listening"


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't take commands"), answered(tmp_path / ("a" * 200)):
        pass


def test_a_file_that_another_chat_has_put_in_place_stays(path: Path) -> None:
    with answered(path):
        path.unlink()
        with answered(path):
            pass
        path.touch()
    assert path.exists()


def test_without_a_chat_the_error_says_how_to_start_one(path: Path) -> None:
    with pytest.raises(VoxError, match="no chat takes commands") as caught:
        send_command(str(path), "mute")
    assert "--control" in caught.value.hint


def test_a_chat_that_does_not_answer_yet_will_obey(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxcli.chat.control.ANSWER_SECONDS", 0.01)
    came: list[Command] = []
    chat = commands_posted(str(path), lambda control: came.append(control.command))
    with chat, pytest.raises(VoxError, match="starting or busy"):
        send_command(str(path), "mute")
    assert came == ["mute"]


def test_the_channel_of_windows_carries_messages(path: Path) -> None:
    """A named pipe has the same interface as a Unix socket in `multiprocessing.connection`."""
    path.parent.mkdir()
    with Listener(str(path), "AF_UNIX") as listener:
        server = ControlServer(accept_messages(listener), lambda control: control.answer("listening"))
        server.start()
        channel = PipeChannel(Client(str(path), "AF_UNIX"))
        channel.send("status")
        assert channel.receive() == b"ok: listening"
        channel.close()
        server.close(lambda: PipeChannel(Client(str(path), "AF_UNIX")))
        assert not server.is_alive()


# The command line.


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="voxcli")


def test_the_state_is_printed(path: Path) -> None:
    with answered(path, "muted"):
        done = invoke("control", "mute", "--path", path)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "muted\n", "")


def test_without_a_path_the_socket_in_the_runtime_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with answered(Path(control_address())):
        assert (tmp_path / "voxcli" / "control").is_socket()
        assert invoke("control", "status").stdout == "listening\n"
    done = invoke("control", "status")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "start one: voxcli chat --control auto" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["control", "fly"], "there is no command fly"),
        (["chat", "--wake-word", "hey_you"], "one of off, alexa, hey_jarvis, hey_mycroft, okay_nabu"),
        (["chat", "--wake-word", "hey_jarvis", "--push-to-talk", "toggle"], "exclude each other"),
        (["chat", "--text", "--control", "auto"], "--control is for a spoken chat"),
        (["chat", "--text", "--wake-word", "alexa"], "--wake-word is for a spoken chat"),
    ],
)
def test_what_can_not_be_is_refused(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


# What commands do.


def sent(live: RunningConversation, command: Command) -> str:
    control = Control(command)
    live.put(control)
    return control.answered.result(PATIENCE_SECONDS)


def test_commands_mute_and_unmute() -> None:
    with RunningConversation(FakeEngine([REPLY])) as live:
        assert [sent(live, command) for command in ("mute", "mute", "status", "unmute")] == ["muted"] * 3 + [
            "listening"
        ]
        assert [sent(live, "toggle-mute") for _ in range(2)] == ["muted", "listening"]
        assert live.fake_listener.calls[-1] == ("mute", False)


def test_talk_opens_an_utterance_and_send_ends_it() -> None:
    with RunningConversation(FakeEngine([REPLY])) as live:
        sent(live, "mute")
        sent(live, "talk")
        sent(live, "send")
        assert live.fake_listener.calls[-3:] == [("mute", False), ("push_to_talk", True), ("push_to_talk", False)]


def test_interrupt_stops_the_reply_and_undo_forgets_it() -> None:
    with RunningConversation(FakeEngine([REPLY]), HeldSpeaker()) as live:
        live.utterance()
        live.journal.wait(lambda: "speaking" in live.journal.states())
        assert sent(live, "mute") == "speaking, muted"
        assert sent(live, "interrupt") == "muted"
        live.journal.wait_for(TurnTaken)
        sent(live, "undo")
        live.journal.wait_for(TurnUndone)
        assert live.remembered == []


def test_a_command_that_was_withdrawn_changes_nothing() -> None:
    with RunningConversation(FakeEngine([REPLY])) as live:
        control = Control("mute")
        control.withdraw()
        live.put(control)
        assert sent(live, "status") == "listening"


def test_quit_ends_the_conversation() -> None:
    live = RunningConversation(FakeEngine([REPLY]))
    with live:
        assert sent(live, "quit") == "ending"
        live.join()
    assert not live.conversation.interrupted


def test_a_conversation_with_a_wake_word_begins_asleep() -> None:
    with RunningConversation(FakeEngine([REPLY]), options=ConversationOptions(asleep=True)) as live:
        assert sent(live, "mute") == "muted"
        assert sent(live, "unmute") == "asleep"
    assert live.journal.states() == ["asleep", "muted", "asleep"]


def test_sleep_is_a_state() -> None:
    with RunningConversation(FakeEngine([REPLY])) as live:
        live.put(SleepChanged(True))
        assert sent(live, "status") == "asleep"
        live.put(SleepChanged(False))
        assert sent(live, "status") == "listening"
    assert [each.state for each in live.journal.of(StateChanged)] == ["listening", "asleep", "listening"]


def test_an_utterance_that_is_open_when_the_chat_falls_asleep_is_discarded() -> None:
    with RunningConversation(FakeEngine([REPLY])) as live:
        live.put(SpeechEvent(SpeechStarted(0), time.monotonic()))
        assert sent(live, "status") == "hearing"
        live.put(SleepChanged(True))
        assert sent(live, "status") == "asleep"
