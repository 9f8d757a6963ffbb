"""Commands for a running chat from other programs: a desktop's hotkey, a script, `voxcli control`.

A chat listens at a Unix socket that only its owner can use, or at a named pipe on Windows. A client sends lines, each
a command, and gets a line for each: `ok` and the state of the chat, or `error` and what is wrong. In a pipe, each
message is a line.
"""

import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from voxcli.errors import ConfigError, VoxError
from voxcli.printable import printable

if TYPE_CHECKING:
    from multiprocessing.connection import Connection, Listener

Command = Literal["mute", "unmute", "toggle-mute", "talk", "send", "interrupt", "undo", "quit", "status"]
COMMANDS: tuple[Command, ...] = get_args(Command)

LINE_BYTES = 256  # A longer line ends its connection.
MOST_CLIENTS = 16  # Connections at once; each has a thread.
IDLE_SECONDS = 10.0  # A client that sends or reads nothing for so long is disconnected.
ANSWER_SECONDS = 5.0  # The chat may load a model, or wait for a line that is being typed.
RETRY_SECONDS = 0.1  # The wait after a client that could not be accepted.
CLOSE_SECONDS = 1.0  # The longest wait for the last answers when the chat ends.


@dataclass(frozen=True)
class Control:
    """A command from outside; `answer` tells the client the state of the chat."""

    command: Command
    answered: "Future[str]" = field(default_factory=Future, compare=False)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the command is void."""
        return self.answered.cancelled()

    def answer(self, state: str) -> None:
        self.answered.set_result(state)

    def withdraw(self) -> None:
        """Make the command void, unless it was answered."""
        self.answered.cancel()


class Channel(Protocol):
    """A connection that carries lines."""

    def receive(self) -> bytes:
        """Return the next line, as far as it has come: at most LINE_BYTES and some; b"" at the end.

        Raises:
            OSError: the other side is silent for too long, or the connection is broken.
            EOFError: the same, for a pipe.
        """
        ...

    def send(self, line: str) -> None: ...

    def shut(self) -> None:
        """Let `receive`, which another thread may be waiting in, return b""."""
        ...

    def close(self) -> None: ...


class SocketChannel:
    """Lines of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(IDLE_SECONDS)
        self._received = b""

    def receive(self) -> bytes:
        while b"\n" not in self._received and len(self._received) <= LINE_BYTES:
            data = self._socket.recv(LINE_BYTES)
            if not data:
                break
            self._received += data
        line, newline, self._received = self._received.partition(b"\n")
        return line + newline

    def send(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def shut(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._socket.close()


class PipeChannel:
    """Messages of a pipe."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def receive(self) -> bytes:
        return self._connection.recv_bytes(LINE_BYTES) if self._connection.poll(IDLE_SECONDS) else b""

    def send(self, line: str) -> None:
        self._connection.send_bytes(line.encode())

    def shut(self) -> None:
        """Do nothing: the thread that waits ends with the process."""

    def close(self) -> None:
        self._connection.close()


class ControlServer(threading.Thread):
    """Accepts clients; each is served on a thread of its own, one command after the other."""

    def __init__(self, accept: Callable[[], Channel], post: Callable[[Control], None]) -> None:
        """Connect the parts.

        Args:
            accept: waits for the next client.
            post: receives the commands; called on several threads.
        """
        super().__init__(name="control", daemon=True)
        self._accept = accept
        self._post = post
        self._closed = threading.Event()
        self._clients: dict[Channel, threading.Thread] = {}

    def run(self) -> None:
        while not self._closed.is_set():
            try:
                self._add_client(self._accept())
            except (OSError, EOFError):  # the client is gone already, or there are too many open files
                self._closed.wait(RETRY_SECONDS)

    def close(self, connect: Callable[[], Channel]) -> None:
        """Stop accepting, and wait until commands that were answered have been sent.

        Args:
            connect: connects to this server, which ends the wait for a client.
        """
        self._closed.set()
        with suppress(OSError), closing(connect()):
            self.join(CLOSE_SECONDS)
        for channel, thread in list(self._clients.items()):
            channel.shut()
            thread.join(CLOSE_SECONDS)

    def _add_client(self, channel: Channel) -> None:
        if self._closed.is_set() or len(self._clients) >= MOST_CLIENTS:
            with closing(channel), suppress(OSError):
                channel.send("error: too many clients")
            return
        self._clients[channel] = threading.Thread(target=self._serve, args=(channel,), name="control", daemon=True)
        self._clients[channel].start()

    def _serve(self, channel: Channel) -> None:
        with closing(channel), suppress(OSError, EOFError):
            while line := channel.receive():
                if len(line) > LINE_BYTES:
                    channel.send("error: the line is too long")
                    break
                channel.send(self._answer(line.decode(errors="replace").strip()))
        self._clients.pop(channel, None)

    def _answer(self, text: str) -> str:
        command = next((each for each in COMMANDS if each == text), None)
        if command is None:
            return f"error: there is no command {printable(text)[:40]}; there are {', '.join(COMMANDS)}"
        control = Control(command)
        self._post(control)
        try:
            return f"ok: {control.answered.result(ANSWER_SECONDS)}"
        except TimeoutError:
            return "error: the chat is still starting or busy; it will obey once it can"


@contextmanager
def commands_posted(address: str, post: Callable[[Control], None]) -> Iterator[None]:
    """Post commands that are sent to an address, for the time of the context.

    Args:
        address: path of a Unix socket, which is made, or the name of a pipe on Windows.

    Raises:
        ConfigError: another chat takes commands there, or it can't be opened.
    """
    accept, close = _open_pipe(address) if sys.platform == "win32" else _open_socket(Path(address))
    server = ControlServer(accept, post)
    server.start()
    try:
        yield
    finally:
        server.close(lambda: _connect(address))
        close()


def send_command(address: str, command: str) -> str:
    """Send a command to a chat; return the state of the chat.

    Raises:
        VoxError: no chat takes commands at the address, or it refuses this one.
    """
    try:
        with closing(_connect(address)) as channel:
            channel.send(command)
            answer = printable(channel.receive().decode(errors="replace").strip())
    except (FileNotFoundError, ConnectionRefusedError) as error:
        hint = "start one: voxcli chat --control auto"
        raise VoxError(f"no chat takes commands at {address}", hint=hint) from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VoxError(f"can't send a command to {address}: {reason}", hint="check --path") from error
    verdict, _, text = answer.partition(": ")
    if verdict != "ok":
        raise VoxError(text or "the chat has ended without an answer", hint="voxcli control status")
    return text


def _connect(address: str) -> Channel:
    if sys.platform == "win32":
        from multiprocessing.connection import Client

        return PipeChannel(Client(address, "AF_PIPE"))
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(IDLE_SECONDS)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return SocketChannel(connection)


def _open_socket(path: Path) -> tuple[Callable[[], Channel], Callable[[], None]]:
    """Return a function that accepts a client, and one that closes and removes the socket."""
    server = socket.socket(socket.AF_UNIX)
    try:
        _check_folder(path.parent)
        _remove_stale(path)
        server.bind(str(path))
        path.chmod(0o600)  # Nobody can connect before `listen`.
        server.listen()
        made = path.lstat()
    except OSError as error:
        server.close()
        reason = error.strerror or error
        raise ConfigError(f"can't take commands at {path}: {reason}", hint="--control PATH names another") from error
    except ConfigError:
        server.close()
        raise

    def close() -> None:
        server.close()
        with suppress(OSError):
            if os.path.samestat(path.lstat(), made):
                path.unlink()

    return lambda: SocketChannel(server.accept()[0]), close


def _check_folder(folder: Path) -> None:
    """Make the folder if it is missing; raise ConfigError if others may replace what is in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    others_may_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.geteuid()) or others_may_write:
        raise ConfigError(f"others can write in {folder}", hint="--control PATH names a socket in a folder of your own")


def _remove_stale(path: Path) -> None:
    """Remove the socket of a chat that was killed; raise ConfigError if there is anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} exists and is no socket", hint="--control PATH names another")
    try:
        _connect(str(path)).close()
    except ConnectionRefusedError:
        path.unlink()
    else:
        raise ConfigError(f"another chat takes commands at {path}", hint="end it, or name another --control PATH")


def _open_pipe(name: str) -> tuple[Callable[[], Channel], Callable[[], None]]:
    """Return a function that accepts a client of a named pipe, and one that closes the pipe."""
    from multiprocessing.connection import Listener

    try:
        listener = Listener(name, "AF_PIPE")
    except OSError as error:
        hint = "end the other chat, or name another --control PATH"
        raise ConfigError(f"can't take commands at {name}: {error}", hint=hint) from error
    return accept_messages(listener), listener.close


def accept_messages(listener: "Listener") -> Callable[[], Channel]:
    """Return a function that accepts a client of a listener."""
    return lambda: PipeChannel(listener.accept())
