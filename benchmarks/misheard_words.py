"""Words that a recognizer mishears when a voice speaks the table of texts that are hard to read aloud.

Each text becomes what a voice should say, a voice says it, and the embedded engine's Whisper writes it down.
Both sides are compared as words in lower case without punctuation; digits that Whisper writes become words.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, note, publish, require_writable
from benchmarks.report import Figure
from voxcli.audio.clip import SAMPLE_RATE, AudioClip
from voxcli.config.paths import cache_folder
from voxcli.core.protocols import Synthesizer
from voxcli.core.sentences import PieceCutter
from voxcli.core.speakable import speakable
from voxcli.engines.embedded.engine import Recognizer
from voxcli.engines.embedded.weights import prepare
from voxcli.engines.embedded.whisper import Whisper
from voxcli.tts.voices import open_synthesizer

TABLE = Path(__file__).parent.parent / "tests" / "core" / "speakable" / "texts.tsv"
MOST_MISHEARD = 0.05
SYNTHESIS_SECONDS = 30.0
_WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True)
class Comparison:
    """What a recognizer wrote down of a text, beside what the voice should say."""

    expected: list[str]
    transcript: list[str]

    @property
    def errors(self) -> int:
        """Words replaced, left out or added."""
        return distance(self.expected, self.transcript)


def texts(path: Path = TABLE) -> Iterator[tuple[str, str]]:
    r"""Yield the texts of a table and what a person would say for each; `\n` stands for a line break."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text, spoken = line.split("\t")
        yield text.replace("\\n", "\n"), spoken


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, numbers as words."""
    return _WORD.findall(speakable(text, "en").lower().replace("\u2019", "'"))


def readings(transcript: str) -> list[list[str]]:
    """Return the ways to read a transcript: Whisper also writes times as 3.30, and "twenty-four seven" as 24-7."""
    clock, separate = (
        re.sub(rf"(?<=[0-9]){mark}(?=[0-9])", other, transcript) for mark, other in (("[.]", ":"), ("-", " "))
    )
    return [words(transcript), words(clock), words(separate)]


def distance(expected: list[str], found: list[str]) -> int:
    """Return how many words have to be replaced, left out or added."""
    row = list(range(len(found) + 1))
    for index, word in enumerate(expected, start=1):
        above, row = row, [index]
        for column, other in enumerate(found, start=1):
            row.append(min(above[column - 1] + (word != other), above[column] + 1, row[-1] + 1))
    return row[-1]


def spoken_pieces(text: str) -> Iterator[str]:
    """Yield what a voice is given for a text, piece by piece, as in a turn."""
    cutter = PieceCutter()
    for piece in [*cutter.feed(text), *cutter.flush()]:
        if sentence := speakable(piece, "en"):
            yield sentence


def speech(text: str, synthesizer: Synthesizer) -> AudioClip:
    """Return a text spoken by a voice, at 16 kHz."""
    clips = [clip for sentence in spoken_pieces(text) for clip in synthesizer.synthesize(sentence)]
    samples = np.concatenate([clip.samples for clip in clips])
    return AudioClip(samples, clips[0].sample_rate).resampled(SAMPLE_RATE)


def compare(text: str, spoken: str, synthesizer: Synthesizer, recognizer: Recognizer) -> Comparison:
    """Let a recognizer hear a text that a voice speaks; of several readings, the nearest counts."""
    transcript = recognizer.transcribe(speech(text, synthesizer), threading.Event()).text
    expected = words(spoken)
    return Comparison(expected, min(readings(transcript), key=lambda found: distance(expected, found)))


def share_misheard(comparisons: list[Comparison]) -> float:
    """Return the share of words that the recognizer got wrong."""
    return sum(each.errors for each in comparisons) / sum(len(each.expected) for each in comparisons)


def measure(
    voice: Annotated[str, typer.Option(help="A voice, as in `voxcli chat --voice`.")] = "pyttsx3",
    words_per_minute: Annotated[int, typer.Option(help="The pace of the voice.")] = 180,
    table: Annotated[Path, typer.Option(help="Lines of a text, a tab and what to say.")] = TABLE,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Print what was misheard, and the share of all words."""
    require_writable(json, force=force)
    recognizer = Whisper(prepare(cache_folder(), notice=note) / "whisper", threads=2)
    with open_synthesizer(voice, words_per_minute=words_per_minute, timeout_seconds=SYNTHESIS_SECONDS) as synthesizer:
        publish([figure(list(_compared(table, synthesizer, recognizer)), voice)], json)


def _compared(table: Path, synthesizer: Synthesizer, recognizer: Recognizer) -> Iterator[Comparison]:
    for text, spoken in texts(table):
        result = compare(text, spoken, synthesizer, recognizer)
        if result.errors:
            print(f"{result.errors} of {len(result.expected)}: {' '.join(result.expected)}")
            print(f"   written: {' '.join(result.transcript)}")
        yield result


def figure(comparisons: list[Comparison], voice: str) -> Figure:
    """Return the share of misheard words beside its bar."""
    share, count = share_misheard(comparisons), sum(len(each.expected) for each in comparisons)
    return Figure(
        f"{voice}: words misheard, {len(comparisons)} texts",
        f"{share:.1%} of {count}",
        f"at most {MOST_MISHEARD:.0%}",
        share <= MOST_MISHEARD,
        {"share": share, "words": count},
    )


if __name__ == "__main__":
    command_line(measure)()
