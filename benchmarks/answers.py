"""Measures how good the answers to spoken questions are: `python -m benchmarks.answers [FOLDER] --engine ...`.

FOLDER is a download of Big Bench Audio (ArtificialAnalysis/big_bench_audio) or VoiceBench (hlt-lab/voicebench), or has
`questions.json` like examples/questions; without one, a small set of our own is asked. Each question is asked aloud and
as text, so that what is lost by speech shows.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.answering.asking import WAYS, Way, ask_all
from benchmarks.answering.figures import figures
from benchmarks.answering.questions import SpokenQuestion, read_questions
from benchmarks.command import ForceFlag, JsonFlag, command_line, note, publish, require_writable
from benchmarks.misheard_words import SYNTHESIS_SECONDS, speech
from benchmarks.report import Figure
from voxcli.app.parts import load_settings, open_engine
from voxcli.audio.clip import AudioClip, read_audio
from voxcli.audio.wav import encode_wav
from voxcli.batch.results import Results
from voxcli.config.loading import Settings
from voxcli.config.paths import cache_folder
from voxcli.core.protocols import Engine, Synthesizer
from voxcli.errors import AudioInputError, ConfigError
from voxcli.tts.voices import open_synthesizer

OWN_SET = (Path(__file__).parent.parent / "examples/questions", Path(__file__).parent / "answering")
WORDS_PER_MINUTE = 180


class CachedVoice:
    """Says questions, and keeps the recordings; its voice is opened for the first one that is not kept."""

    def __init__(self, voice: str, folder: Path, stack: ExitStack) -> None:
        """Open nothing yet.

        Args:
            voice: as in `voxcli chat --voice`.
            stack: closes the voice.
        """
        self._voice = voice
        self._folder = folder
        self._stack = stack
        self._synthesizer: Synthesizer | None = None

    def say(self, text: str) -> AudioClip:
        """Return the recording of a text. Raises VoxError if there is no such voice."""
        key = hashlib.sha256(f"{self._voice}\n{WORDS_PER_MINUTE}\n{text}".encode()).hexdigest()[:24]
        path = self._folder / f"{key}.wav"
        if not path.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(encode_wav(speech(text, self._opened())))
            part.replace(path)
        return read_audio(path)

    def _opened(self) -> Synthesizer:
        if self._synthesizer is not None:
            return self._synthesizer
        note(f"questions without a recording are spoken by the voice {self._voice}")
        opened: AbstractContextManager[Synthesizer] = open_synthesizer(
            self._voice, words_per_minute=WORDS_PER_MINUTE, timeout_seconds=SYNTHESIS_SECONDS
        )
        synthesizer = self._synthesizer = self._stack.enter_context(opened)
        return synthesizer


def answers(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Big Bench Audio, VoiceBench, or one like our own set.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="auto|voxtral|embedded|remote", help="What answers.")
    ] = "auto",
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="As in `voxcli once`.")] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Server of the remote engine.")] = None,
    instructions: Annotated[
        str | None, typer.Option("--instructions", metavar="TEXT", help="What the model is told before each question.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Of sampling; 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Of each reply.")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings file.")] = None,
    way: Annotated[
        list[str] | None, typer.Option("--way", metavar="speech|text", help="How questions are asked; both by default.")
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option("--category", metavar="NAME", help="Only a category or subset; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first questions.")] = None,
    voice: Annotated[
        str, typer.Option("--voice", metavar="NAME", help="Says questions that have no recording.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Keep each reply, so that a run can go on.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the file of --out.")] = False,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure right answers, latency and tokens, for spoken questions and for the same ones as text."""
    flags: dict[str, Any] = {"engine": engine, "model": model, "url": url, "instructions": instructions}
    flags |= {"temperature": temperature, "reply.max_tokens": max_tokens}
    settings = load_settings(config, {name: value for name, value in flags.items() if value is not None})
    folders, ways = [folder] if folder else OWN_SET, _ways(way)
    require_writable(json, force=force, inputs=[str(path) for each in folders for path in each.rglob("*")])
    with ExitStack() as stack:
        results = stack.enter_context(_open_results(out, resume=resume, force=force, stack=stack))
        speaker = CachedVoice(voice, cache_folder() / "benchmarks" / "questions", stack)
        questions = _questions(folders, speaker, category, limit)
        opened = open_engine(settings, stack, note, _ignore, _ignore)
        setup = {**_setup(opened, settings), "voice": voice}
        before = _load()
        asked = list(ask_all(questions, opened, setup, ways, results, note))
    about = Figure("asked", "; ".join(f"{name} {value}" for name, value in setup.items()), values=setup)
    publish([about, *figures(asked, f"{before} to {_load()}" if before else "")], json)


def _ways(wanted: list[str] | None) -> list[Way]:
    if unknown := next((name for name in wanted or () if name not in WAYS), None):
        raise ConfigError(f"there is no way {unknown}", hint=f"--way is one of {', '.join(WAYS)}")
    return [way for way in WAYS if not wanted or way in wanted]


def _open_results(out: Path | None, *, resume: bool, force: bool, stack: ExitStack) -> Results:
    """Open the file of replies; one that is thrown away if none is named."""
    if out is None:
        out = Path(stack.enter_context(TemporaryDirectory(prefix="voxcli-answers-"))) / "replies.jsonl"
    return Results(out, resume=resume, force=force, count=lambda _record: None)


def _questions(
    folders: Iterable[Path], speaker: CachedVoice, categories: list[str] | None, limit: int | None
) -> Iterator[SpokenQuestion]:
    """Return the questions of some categories. Raises AudioInputError at once if there are none."""
    read = (question for folder in folders for question in read_questions(folder, speaker.say, note))
    chosen = islice((each for each in read if not categories or each.category in categories), limit)
    if (first := next(chosen, None)) is None:
        raise AudioInputError("no question is of that category", hint="leave out --category to see all")
    return chain([first], chosen)


def _setup(engine: Engine, settings: Settings) -> dict[str, Any]:
    """Return what the replies depend on, apart from the question."""
    return {
        "engine": engine.name,
        "model": engine.model,
        "temperature": settings.reply.temperature,
        "max_tokens": settings.reply.max_tokens,
        "instructions": settings.instructions,
    }


def _load() -> str:
    """Return the load of the machine; empty where the system does not tell it."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def _ignore(_done: int, _total: int) -> None:
    """Ignore progress."""


app = command_line(answers)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.answers")
