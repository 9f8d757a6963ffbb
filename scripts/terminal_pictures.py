"""Draws the documentation's picture of a chat: `python -m scripts.terminal_pictures`. Linux, with PulseAudio.

Runs a real `voxcli chat --engine embedded` in a pseudoterminal, on a virtual sound card, and speaks recorded questions
into its microphone. The screen is written as SVG while the last reply plays.
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
from voxcli.audio.clip import read_audio

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "chat.svg"
QUESTIONS = ("capital-of-france.flac", "our-galaxy.flac", "legs-of-a-horse.flac")
COLUMNS, ROWS = 80, 24
COMMAND = ("voxcli", "chat", "--engine", "embedded")
READY_SECONDS = 300.0  # the weights may have to be unpacked
TURN_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # after "ready", until the latency of the devices is known
INTO_REPLY_SECONDS = 0.6  # from the first sound of the last reply to the picture
NOISE, NOISE_SECONDS = 0.0002, 600.0  # of full scale, -74 dBFS; longer than the conversation
LISTENING, SPEAKING = "○ listening", "▶ speaking"  # as the view shows these states
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

    def __init__(self, first_line: str) -> None:
        """Open the pseudoterminal; `first_line` is shown above what the program prints."""
        super().__init__(name="terminal", daemon=True)
        self.screen = DimScreen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._stream.feed(f"{first_line}\r\n".encode())
        self._changed = threading.Condition()
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

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
def chat(environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a chat in a terminal; end it with the context."""
    terminal = Terminal(f"$ {' '.join(COMMAND)}")
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMAND],
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal.slave)
    terminal.start()
    try:
        yield terminal
        terminal.type("q")
        process.wait(TURN_SECONDS)
    finally:
        process.kill()
        process.wait()


def draw(questions: Sequence[str]) -> str:
    """Return the picture of a chat that is asked recorded questions, as SVG."""
    clips = [read_audio(ROOT / "examples" / "questions" / name) for name in questions]
    with tempfile.TemporaryDirectory() as home, sound_card() as card:
        ours = {name: value for name, value in card.environment.items() if not name.startswith(("VOXCLI_", "NO_COLOR"))}
        devices = {"VOXCLI_LIVE__INPUT_DEVICE": "default", "VOXCLI_LIVE__OUTPUT_DEVICE": "default"}
        with (
            room_noise(card, Path(home)),
            chat({**ours, **devices, "VOXCLI_HOME": home, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}) as terminal,
        ):
            terminal.wait_for(lambda lines: any(line.startswith(LISTENING) for line in lines), READY_SECONDS)
            time.sleep(SETTLE_SECONDS)
            for number, clip in enumerate(clips, start=1):
                card.speak(clip)
                if number < len(clips):
                    terminal.wait_for(partial(_finished, number), TURN_SECONDS)
                    time.sleep(SETTLE_SECONDS)
            terminal.wait_for(lambda lines: any(line.startswith(SPEAKING) for line in lines), TURN_SECONDS)
            time.sleep(INTO_REPLY_SECONDS)
            return terminal.picture("voxcli chat")


def _finished(turns: int, lines: Sequence[str]) -> bool:
    """Return whether `turns` turns are finished and the chat listens again."""
    over = sum(line.startswith("you  ") for line in lines)
    return over >= turns and any(line.startswith(LISTENING) for line in lines)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw the documentation's picture of a chat.")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    out: Path = parser.parse_args().out
    drawn = draw(QUESTIONS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(drawn, encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
