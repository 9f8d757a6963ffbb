"""What a terminal holds after a conversation: each line once, whatever was written and however its window changed."""

import io
import os
import random
import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("pyte")

from tests.support.emulator import Emulator, Resizing
from voxcli.audio.clip import AudioClip
from voxcli.chat.events import (
    InputLevel,
    Latency,
    LiveEvent,
    Notice,
    Ready,
    SentenceSpoken,
    StateChanged,
    TurnFailed,
    TurnStarted,
    TurnTaken,
)
from voxcli.chat.views.terminal import TerminalView
from voxcli.core.protocols import PassReport, Transcript, Utterance
from voxcli.core.session import Turn
from voxcli.core.speaking import Timings
from voxcli.core.turn import ReplyDelta, TurnEnded
from voxcli.errors import VoxError

SCRIPTS = 50  # Each kind of terminal runs as many.
CLIP = AudioClip(np.zeros(35_200, np.float32))
READY = Ready("embedded", "smol", "pyttsx3", "Microphone", "Headphones", None, "cancelled", keys=True)
COLUMNS, LINES = (20, 200), (14, 45)
WORDS: tuple[str, ...] = (
    "what",
    "a",
    "Donaudampfschifffahrtsgesellschaft" * 2,
    "東京は日本の首都です",
    "한국어",
    "مرحبا بالعالم",
)
WORDS += (
    "naïve",
    "e\u0301te\u0301",
    "👍🏽",
    "👩‍👩‍👧‍👦",
    "🇫🇷🇯🇵",
    "❤️",
    "नमस्ते",
    "…",
    "ｆｕｌｌ",  # noqa: RUF001 - wide letters
    "https://example.org/" + "x" * 90,
)


class TerminalStream(io.StringIO):
    """Passes output on to an emulator, whose window may become wider or narrower just before the output arrives."""

    encoding = "utf-8"

    def __init__(self, emulator: Emulator, chance: random.Random) -> None:
        super().__init__()
        self._emulator = emulator
        self._chance = chance

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._chance.random() < 0.1:
            self._emulator.resize(columns=self._chance.randint(*COLUMNS))
        self._emulator.feed(text)
        return len(text)


class Script:
    """A random conversation on a terminal, and the text that must stay there."""

    def __init__(self, seed: int, resizing: Resizing, *, clusters: bool) -> None:
        self.chance = random.Random(seed)
        self.emulator = Emulator(
            self.chance.randint(*COLUMNS), self.chance.randint(*LINES), resizing, clusters=clusters
        )
        self.expected: list[str] = []
        self._words = 0
        self.emulator.feed("$ voxcli chat\r\n")
        self.view = TerminalView(
            TerminalStream(self.emulator, self.chance),
            lambda: self._words / 7,
            painter=False,
            size=lambda: os.terminal_size((self.emulator.columns, self.emulator.lines)),
        )

    def text(self, words: int) -> str:
        """Return random words, each with a number of its own in front."""
        found = []
        for _ in range(self.chance.randint(1, words)):
            self._words += 1
            found.append(f"<{self._words}>{self.chance.choice(WORDS)}" + self.chance.choice(("", "", ".", ",", "\n")))
        return " ".join(found)

    def show(self, *events: LiveEvent) -> None:
        for event in events:
            self.view.show(event)
            if self.chance.random() < 0.5:
                self.view.paint()
            assert self.emulator.cursor.x == 0
            if self.chance.random() < 0.3:
                self.emulator.resize(columns=self.chance.randint(*COLUMNS))
            elif self.chance.random() < 0.2:
                self.emulator.resize(lines=self.chance.randint(*LINES))
                self.view.paint()

    def note(self) -> None:
        text = self.text(6).replace("\n", " ")
        self.expected.append(text)
        self.show(Notice(text))

    def turn(self) -> None:
        question, reply = self.text(6), self.text(self.chance.choice((3, 8, 40))).strip()
        spoken = Utterance(CLIP)
        self.show(StateChanged("hearing"), InputLevel(-20, 1.0), StateChanged("thinking"), TurnStarted(spoken))
        self.show(Transcript(question), StateChanged("speaking"))
        sentences = [part for part in re.split(r"(?<=[.,\n] )", reply) if part]
        for sentence in sentences:
            self.show(ReplyDelta(sentence))
        for sentence in sentences:
            self.show(SentenceSpoken(sentence))
            if self.chance.random() < 0.1:
                self.note()
        if self.chance.random() < 0.2:
            self.expected += [f"you {question} {reply}", "no answer: it failed"]
            self.show(TurnFailed(VoxError("it failed"), spoken), StateChanged("listening"))
            return
        ended = TurnEnded(Turn("", reply), PassReport(1, 1, 1, 1, question), Timings(0, 0, 0))
        self.expected.append(f"you {question} {reply} 0.7 s")
        self.show(TurnTaken(ended, 1, Latency(1, 2, 700, "none", 0), CLIP), StateChanged("listening"))


def played(seed: int, resizing: Resizing, *, clusters: bool) -> Script:
    script = Script(seed, resizing, clusters=clusters)
    script.show(StateChanged("starting"), READY, StateChanged("listening"))
    for _ in range(script.chance.randint(1, 2)):
        script.note()
        script.turn()
    script.view.close()
    return script


def without_blanks(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("resizing", ["cut", "cursor", "bottom"])
def test_each_line_is_there_once_after_any_resizing(resizing: Resizing, clusters: bool) -> None:
    for seed in range(SCRIPTS):
        script = played(seed, resizing, clusters=clusters)
        emulator = script.emulator
        lines = emulator.logical_lines()
        text = "\n".join(lines[1:])
        assert lines[0] == "$ voxcli chat"
        if resizing == "cut":  # what was cut off is missing, nothing is there twice
            numbers = Counter(re.findall(r"<\d+>", text))
            assert max(numbers.values()) == 1, seed
            firsts = [found[0] for each in script.expected if (found := re.findall(r"<\d+>", each))]
            assert set(firsts) <= set(numbers), seed
        else:
            kept = without_blanks(text).partition("evenduringareply")[2]
            assert kept == without_blanks("".join(script.expected)), seed
        assert emulator.shows_cursor
        assert emulator.wraps
        assert emulator.cursor.x == 0
        assert not any(row.text for row in emulator.rows[emulator.cursor.y :])
        assert any(row.text for row in emulator.rows[max(0, emulator.cursor.y - 2) : emulator.cursor.y])
