"""Measures live conversations on a virtual sound card: `python -m benchmarks.live`. Linux, with PulseAudio."""

from json import loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, note, publish, require_writable
from benchmarks.conversation.fixed_reply import FIXED_REPLY
from benchmarks.conversation.harness import Harness, Question
from benchmarks.conversation.scenarios import SCENARIOS, Plan, run
from benchmarks.conversation.sound_card import sound_card
from voxcli.audio.clip import read_audio
from voxcli.errors import AudioInputError, ConfigError

QUESTIONS = Path("examples/questions")
ANSWERS = ("answers.json", "questions.json")  # looked for beside the questions
LONGEST_SECONDS = 10.0  # of a question; longer recordings in a folder are left out
ALL = "all"


def live(
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", metavar="FILE|DIR", help="Spoken questions; may be repeated."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", metavar="FILE", help="JSON with the answers that count as right, by file name."),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", metavar="all|NAME", help="What to measure; may be repeated. An unknown name lists."),
    ] = None,
    turns: Annotated[int | None, typer.Option("--turns", metavar="N", min=1, help="Turns per scenario.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.1, help="Length of the conversation with echo, and of each idle one."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help=f"What answers; {FIXED_REPLY} does so at once.")
    ] = "auto",
    voice: Annotated[str | None, typer.Option("--voice", metavar="NAME", help="Voice that speaks.")] = None,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure live conversations by recordings of their devices."""
    names = _scenarios(scenario or [ALL])
    plan = Plan(_questions(questions or [QUESTIONS], answers), turns, minutes)
    read = [path for source in questions or [QUESTIONS] for path in (source.iterdir() if source.is_dir() else [source])]
    require_writable(json, force=force, inputs=[str(path) for path in (*read, answers) if path])
    with TemporaryDirectory(prefix="voxcli-live-") as folder, sound_card() as card:
        harness = Harness(card, Path(folder), engine, ("--voice", voice) if voice else ())
        publish(run(names, plan, harness, note), json)


def _scenarios(wanted: list[str]) -> list[str]:
    if unknown := next((name for name in wanted if name not in (*SCENARIOS, ALL)), None):
        raise ConfigError(f"there is no scenario {unknown}", hint=f"one of all, {', '.join(SCENARIOS)}")
    return list(SCENARIOS) if ALL in wanted else wanted


def _questions(sources: list[Path], answers: Path | None) -> list[Question]:
    """Read the questions; from folders, all short WAV and FLAC files by name."""
    found: list[Question] = []
    for source in sources:
        within = source.is_dir()
        paths = sorted(path for path in source.iterdir() if path.suffix in (".wav", ".flac")) if within else [source]
        known = _answers(answers, source if within else source.parent)
        for path in paths:
            clip = read_audio(path)
            if clip.seconds <= LONGEST_SECONDS or not within:
                found.append(Question(path.name, clip, known.get(path.name, ())))
    if not found:
        raise AudioInputError(f"there are no questions in {sources[0]}", hint="put WAV or FLAC files there")
    return found


def _answers(given: Path | None, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the accepted answers by file name; none where there is no file of them."""
    path = given or next((folder / name for name in ANSWERS if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        listed = loads(path.read_text(encoding="utf-8"))
        return {name: tuple(str(answer).lower() for answer in entry["answers"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = 'it has to hold {"file.wav": {"answers": ["rome"]}, ...}'
        raise ConfigError(f"the answers in {path} can't be used: {error}", hint=hint) from error


app = command_line(live)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.live")
