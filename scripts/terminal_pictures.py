"""Draws the documentation's pictures of a terminal: `python -m scripts.terminal_pictures`. Linux, with PulseAudio.

Runs real commands in a pseudoterminal, with the embedded engine. Chats run on a virtual sound card: recorded questions
are spoken into its microphone, and the screen is written as SVG while the last reply plays. In the chats whose turn
fails, and whose model calls a tool, a server in this process answers.
"""

import argparse
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from benchmarks.conversation.sound_card import RATE, SoundCard, sound_card
from tests.engines.openai.test_tools import calling, piece
from tests.support.openai_server import OpenAIServer, refuses, says
from voxcli.audio.clip import read_audio

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
QUESTIONS = ("capital-of-france.flac", "our-galaxy.flac", "legs-of-a-horse.flac")
COLUMNS, ROWS = 80, 24
TALL_ROWS = 110  # Commands that print a page need them.
CHAT = ("voxcli", "chat")
# Pictures of chats by their names: columns, and flags.
CHATS: dict[str, tuple[int, tuple[str, ...]]] = {
    "chat": (80, ()),
    "chat-120": (120, ()),
    "chat-60": (60, ()),
    "chat-40": (40, ()),
    "chat-push-to-talk": (80, ("--push-to-talk", "toggle")),
}
FAILED_TURN, TOOL_QUESTION = "chat-failed-turn", "chat-tool"
TOOL_SETTINGS = """[tools.weather]
description = "Tells the weather of a city."
command = ["true"]
[tools.weather.parameters]
type = "object"
[tools.weather.parameters.properties.city]
type = "string"
"""
SERVED_MODEL = "voxtral-mini"
RESULTS = "results.jsonl"  # Git ignores it.
# Pictures of other commands, which run after the chats.
COMMANDS = {
    "help": ("voxcli", "chat", "-h"),
    "doctor": ("voxcli", "doctor"),
    "stats": ("voxcli", "stats"),
    "batch": ("voxcli", "batch", "examples/questions", "--engine", "embedded", "--out", RESULTS),
    "results": ("voxcli", "results", RESULTS),
}
READY_SECONDS = 300.0  # the weights may have to be unpacked
TURN_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # after "ready", until the latency of the devices is known
INTO_REPLY_SECONDS = 0.6  # from the first sound of the last reply to the picture
NOISE, NOISE_SECONDS = 0.0002, 600.0  # -74 dBFS; the time is longer than any chat.
LISTENING, SPEAKING, WAITING = "○ listening", "▶ speaking", "○ push space to talk"  # The view shows states so.
DIM, BRIGHT_BLACK = 2, 90  # parameters of SGR (ECMA-48, and aixterm's for bright colours)
EXTENDED = (38, 48)  # the parameters after these name a colour

NORMAL = ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4"]
BRIGHT = ["#7d8590", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff"]
BACKGROUND, FOREGROUND = "#0d1117", "#e6edf3"


class DimScreen(pyte.Screen):
    """A terminal's screen that shows dim text, which pyte leaves out, in bright black."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        colors = next((place for place, each in enumerate(attributes) if each in EXTENDED), len(attributes))
        shown = [BRIGHT_BLACK if each == DIM else each for each in attributes[:colors]]
        super().select_graphic_rendition(*shown, *attributes[colors:])


class Terminal(threading.Thread):
    """The screen of a program that runs in a pseudoterminal."""

    def __init__(self, first_line: str, columns: int = COLUMNS, rows: int = ROWS) -> None:
        """Open the pseudoterminal; `first_line` is shown above what the program prints."""
        super().__init__(name="terminal", daemon=True)
        self.screen = DimScreen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._stream.feed(f"{first_line}\r\n".encode())
        self._changed = threading.Condition()
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def run(self) -> None:
        with suppress(OSError):  # the program has ended
            while data := os.read(self._master, 65536):
                with self._changed:
                    self._stream.feed(data)
                    self._changed.notify_all()

    def wait_for(self, holds: Callable[[list[str]], bool], seconds: float) -> None:
        """Wait until the lines of the screen fulfil a condition; raises TimeoutError with the screen."""
        with self._changed:
            if not self._changed.wait_for(lambda: holds(self.screen.display), seconds):
                raise TimeoutError("\n".join(["the program shows something else:", *self.screen.display]))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def picture(self, title: str) -> str:
        """Return the screen as SVG."""
        with self._changed:
            return svg(self.screen, title)


def svg(screen: pyte.Screen, title: str) -> str:
    """Return a screen as SVG that loads nothing, its last empty lines left out."""
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), color_system="truecolor", legacy_windows=False
    )
    rows = [_row(screen, line) for line in range(screen.lines)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    for row in rows:
        console.print(row, no_wrap=True, crop=True)
    drawn = console.export_svg(title=title, theme=_theme(), unique_id="terminal")
    style, end = drawn.index("@font-face"), drawn.rindex("@font-face")
    return drawn[:style] + drawn[drawn.index("}", end) + 1 :].lstrip()


def _row(screen: pyte.Screen, line: int) -> Text:
    row = Text()
    cells = (screen.buffer[line][column] for column in range(screen.columns))
    for style, group in groupby(cells, _style):
        text = "".join(cell.data for cell in group)
        words = text.lstrip(" ")  # rsvg draws no spaces at the beginning of a text
        row.append(" " * (len(text) - len(words))).append(words, style)
    row.rstrip()
    return row


def _style(cell: pyte.screens.Char) -> Style:
    return Style(color=_color(cell.fg), bold=cell.bold, reverse=cell.reverse)


def _color(name: str) -> str | None:
    """Return rich's name of a pyte colour; None for the default one."""
    if name == "default":
        return None
    if name == "brown":  # pyte's name of the third colour
        return "yellow"
    if name.startswith("bright"):
        return f"bright_{name.removeprefix('bright')}"
    return f"#{name}" if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name) else name


def _theme() -> TerminalTheme:
    def rgb(text: str) -> tuple[int, int, int]:
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    return TerminalTheme(rgb(BACKGROUND), rgb(FOREGROUND), [*map(rgb, NORMAL)], [*map(rgb, BRIGHT)])


@contextmanager
def room_noise(card: SoundCard, folder: Path) -> Iterator[None]:
    """Let the microphone carry faint noise, as that of any room does."""
    noise = NOISE * np.random.default_rng(1).standard_normal(round(NOISE_SECONDS * RATE))
    path = folder / "noise.raw"
    path.write_bytes(noise.astype("<f4").tobytes())
    command = ["pacat", "--playback", "--raw", "--format=float32le", "--channels=1", f"--rate={RATE}", "--device=voice"]
    with subprocess.Popen([*command, str(path)], env=card.environment) as player:
        try:
            yield
        finally:
            player.kill()


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], terminal: Terminal) -> Iterator[Terminal]:
    """Run a command in a terminal; it is killed at the end of the context if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal.slave)
    terminal.start()
    try:
        yield terminal
        process.wait(READY_SECONDS)
        terminal.join(TURN_SECONDS)
    finally:
        process.kill()
        process.wait()


def draw_chat(
    card: SoundCard, environment: Mapping[str, str], columns: int, flags: Sequence[str], questions: Sequence[str]
) -> str:
    """Return the picture of a chat that is asked recorded questions, as SVG: speaking, or waiting for a key."""
    clips = [read_audio(ROOT / "examples" / "questions" / name) for name in questions]
    command = (*CHAT, "--engine", "embedded", *flags)
    terminal = Terminal(f"$ {' '.join(command)}", columns)
    with running(command, environment, terminal):
        waits_for_key = "--push-to-talk" in flags
        ready = WAITING if waits_for_key else LISTENING
        terminal.wait_for(lambda lines: any(line.startswith(ready) for line in lines), READY_SECONDS)
        time.sleep(SETTLE_SECONDS)
        for number, clip in enumerate(clips, start=1):
            if waits_for_key:
                terminal.type(" ")
                time.sleep(SETTLE_SECONDS)
            card.speak(clip)
            if waits_for_key:
                terminal.type(" ")
            if number < len(clips):
                terminal.wait_for(partial(_finished, number, ready), TURN_SECONDS)
                time.sleep(SETTLE_SECONDS)
        if waits_for_key:
            terminal.wait_for(partial(_finished, len(clips), ready), TURN_SECONDS)
        else:
            terminal.wait_for(lambda lines: any(line.startswith(SPEAKING) for line in lines), TURN_SECONDS)
            time.sleep(INTO_REPLY_SECONDS)
        drawn = terminal.picture("voxcli chat")
        terminal.type("q")
    return drawn


def draw_failed_turn(card: SoundCard, environment: Mapping[str, str], questions: Sequence[str]) -> str:
    """Return the picture of a chat with a server that answers the first of two questions and fails at the other."""
    first, second = (read_audio(ROOT / "examples" / "questions" / name) for name in questions[:2])
    with OpenAIServer(models=(SERVED_MODEL,), always=says("The capital of France", " is Paris.")) as server:
        command = (*CHAT, "--engine", "remote", "--url", server.url)
        terminal = Terminal(f"$ {' '.join(command)}")
        with running(command, {**environment, "VOXCLI_REMOTE__RETRIES": "0"}, terminal):
            terminal.wait_for(lambda lines: any(line.startswith(LISTENING) for line in lines), READY_SECONDS)
            time.sleep(SETTLE_SECONDS)
            card.speak(first)
            terminal.wait_for(partial(_finished, 1, LISTENING), TURN_SECONDS)
            server.always = refuses(500, {"error": {"message": "CUDA out of memory"}})
            time.sleep(SETTLE_SECONDS)
            card.speak(second)
            terminal.wait_for(lambda lines: any("CUDA out of memory" in line for line in lines), TURN_SECONDS)
            terminal.wait_for(partial(_finished, 2, LISTENING), TURN_SECONDS)
            drawn = terminal.picture("voxcli chat")
            terminal.type("q")
    return drawn


def draw_tool_question(card: SoundCard, environment: Mapping[str, str], question: str) -> str:
    """Return the picture of a chat that asks whether the tool that its model calls may run."""
    call = calling(piece(0, "call00001", "weather", '{"city": "Paris"}'))
    server = OpenAIServer(models=(SERVED_MODEL,), always=call)
    with server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "voxcli").mkdir()
        (Path(folder) / "voxcli" / "config.toml").write_text(TOOL_SETTINGS)
        command = (*CHAT, "--engine", "remote", "--url", server.url)
        terminal = Terminal(f"$ {' '.join(command)}")
        with running(command, {**environment, "XDG_CONFIG_HOME": folder}, terminal):
            terminal.wait_for(lambda lines: any(line.startswith(LISTENING) for line in lines), READY_SECONDS)
            time.sleep(SETTLE_SECONDS)
            card.speak(read_audio(ROOT / "examples" / "questions" / question))
            terminal.wait_for(lambda lines: any(line.startswith("May I") for line in lines), TURN_SECONDS)
            drawn = terminal.picture("voxcli chat")
            terminal.type("n")
            terminal.type("q")
    return drawn


def draw_command(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the picture of what a command prints, as SVG."""
    terminal = Terminal(f"$ {' '.join(command)}", rows=TALL_ROWS)
    with running(command, environment, terminal):
        pass
    return terminal.picture(" ".join(command[:2]))


def draw_all(folder: Path) -> Iterator[Path]:
    """Write all pictures, and yield the path of each."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as noise, sound_card() as card:
        ours = {name: value for name, value in card.environment.items() if not name.startswith(("VOXCLI_", "NO_COLOR"))}
        devices = {"VOXCLI_LIVE__INPUT_DEVICE": "default", "VOXCLI_LIVE__OUTPUT_DEVICE": "default"}
        environment = {**ours, **devices, "VOXCLI_HOME": home, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        with room_noise(card, Path(noise)):
            for name, (columns, flags) in CHATS.items():
                yield _written(folder / f"{name}.svg", draw_chat(card, environment, columns, flags, QUESTIONS))
            yield _written(folder / f"{FAILED_TURN}.svg", draw_failed_turn(card, environment, QUESTIONS))
            yield _written(folder / f"{TOOL_QUESTION}.svg", draw_tool_question(card, environment, QUESTIONS[0]))
            (ROOT / RESULTS).unlink(missing_ok=True)
            for name, command in COMMANDS.items():
                yield _written(folder / f"{name}.svg", draw_command(command, environment))


def _written(path: Path, drawn: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
    return path


def _finished(turns: int, ready: str, lines: Sequence[str]) -> bool:
    """Return whether `turns` turns are finished and the chat waits for the next."""
    over = sum(line.startswith("you  ") for line in lines)
    return over >= turns and any(line.startswith(ready) for line in lines)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Draw the documentation's pictures of a terminal.")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder to write to")
    for path in draw_all(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
