"""`voxcli bench`: what voxcli measures of itself."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxcli.cli.common import JsonFlag, VerboseFlag, note
from voxcli.errors import AudioInputError, ConfigError, ModelError, missing_extra

if TYPE_CHECKING:
    from benchmarks.conversation.harness import Question

QUESTIONS = Path("examples/questions")
ANSWERS = ("answers.json", "questions.json")  # looked for beside the questions
LONGEST_SECONDS = 10.0  # of a question; longer recordings in a folder are left out
ALL = "all"

app = typer.Typer(no_args_is_help=True, help="Measure what a user waits for.")


@app.command()
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
    turns: Annotated[int | None, typer.Option("--turns", metavar="N", min=1, help="How many of each, fewer.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Of the conversation with an echo.")] = 10.0,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="What answers; instant for one that replies at once.")
    ] = "auto",
    voice: Annotated[str | None, typer.Option("--voice", metavar="NAME", help="Voice that speaks.")] = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Measure live conversations on a private sound card, by recordings of its devices. Linux, with PulseAudio."""
    from tempfile import TemporaryDirectory

    from benchmarks.conversation.scenarios import Plan, run
    from benchmarks.report import as_json, machine, markdown
    from benchmarks.conversation.sound_card import sound_card
    from benchmarks.conversation.harness import Studio

    names = _scenarios(scenario or [ALL])
    plan = Plan(_questions(questions or [QUESTIONS], answers), turns, minutes)
    with TemporaryDirectory(prefix="voxcli-bench-") as folder, sound_card() as card:
        studio = Studio(card, Path(folder), engine, ("--voice", voice) if voice else ())
        figures = run(names, plan, studio, note)
    if json:
        from json import dumps

        typer.echo(dumps(as_json(figures, machine())))
    else:
        typer.echo(markdown(figures, machine()))


@app.command(name="pass")
def one_pass(
    model: Annotated[
        str, typer.Option("--model", metavar="random:SHAPE|ID", help="SHAPE: mini, small, 150m, 200m, tiny.")
    ] = "",
    device: Annotated[str, typer.Option("--device", metavar="auto|cuda|mps|cpu", help="What to measure.")] = "auto",
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=1, help="Of the conversation.")] = 50,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Of each measured turn; 20, on a CPU 3.")
    ] = None,
    reply_tokens: Annotated[int, typer.Option("--reply-tokens", metavar="N", min=2, help="Of each reply.")] = 40,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME,...", help="Some of voxcli, generate, static, two-pass.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", metavar="int8|fp8", help="Measure voxcli with 8-bit weights, too.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where all figures go.")] = None,
    _verbose: VerboseFlag = False,
) -> None:
    """Measure one Voxtral pass beside transformers' `generate` and beside the floors of the device."""
    from json import dumps
    from shlex import join
    from shutil import get_terminal_size

    try:
        from benchmarks.baselines import NAMES, QUANTIZED
        from benchmarks.one_pass import Plan, bench
        from benchmarks.one_pass_report import table
    except ImportError as error:
        raise missing_extra(ModelError, "Measuring a pass", "voxtral") from error

    names = only.split(",") if only else list(NAMES)
    if unknown := next((name for name in names if name not in NAMES), None):
        raise ConfigError(f"there is no contender {unknown!r}", hint=f"--only takes {', '.join(NAMES)}, commas between")
    form = next((form for form in QUANTIZED if form == quantize), None)
    if quantize and form is None:
        raise ConfigError(f"there is no format {quantize!r}", hint=f"--quantize takes {' or '.join(QUANTIZED)}")
    if json:
        _write(json, "")  # refused now rather than when all is measured
    command = join(["voxcli", *sys.argv[1:]])
    found = bench(model, device, Plan(turns, samples, reply_tokens, names, form), command, note)
    if json:
        _write(json, dumps(found, indent=1) + "\n")
    typer.echo(table(found, get_terminal_size().columns if sys.stdout.isatty() else None))


@app.command()
def many(
    model: Annotated[
        str, typer.Option("--model", metavar="random:SHAPE|ID", help="SHAPE: mini, small, 150m, 200m, tiny.")
    ] = "",
    device: Annotated[str, typer.Option("--device", metavar="auto|cuda|mps|cpu", help="What to measure.")] = "auto",
    clips: Annotated[int, typer.Option("--clips", metavar="N", min=1, help="Answered together.")] = 64,
    singles: Annotated[int, typer.Option("--singles", metavar="N", min=1, help="Of these, one after the other.")] = 8,
    clip_seconds: Annotated[float, typer.Option("--clip-seconds", metavar="S", min=0.1, help="Of each clip.")] = 5.0,
    reply_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--reply-tokens", metavar="N", min=2, help="Of each reply; may be given again. 48, on a CPU 256 too."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=2, help="Replies at once; 64, on a CPU 32.")
    ] = None,
    json: JsonFlag = False,
    _verbose: VerboseFlag = False,
) -> None:
    """Measure the engine of `voxcli batch` beside the same clips one after the other, and transformers' `generate`."""
    from benchmarks.report import as_json, machine, markdown

    try:
        from benchmarks.batch import Plan, bench
    except ImportError as error:
        raise missing_extra(ModelError, "Measuring many replies", "voxtral") from error

    figures = bench(model, device, Plan(clips, singles, clip_seconds, reply_tokens or (), batch_size), note)
    if json:
        from json import dumps

        typer.echo(dumps(as_json(figures, machine())))
    else:
        typer.echo(markdown(figures, machine()))


def _write(path: Path, text: str) -> None:
    """Write a file; with no text, only try whether it can be written."""
    try:
        with path.open("w" if text else "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="choose another file for --json") from error


def _scenarios(wanted: list[str]) -> list[str]:
    from benchmarks.conversation.scenarios import SCENARIOS

    if unknown := next((name for name in wanted if name not in (*SCENARIOS, ALL)), None):
        raise ConfigError(f"there is no scenario {unknown}", hint=f"one of all, {', '.join(SCENARIOS)}")
    return list(SCENARIOS) if ALL in wanted else wanted


def _questions(sources: list[Path], answers: Path | None) -> "list[Question]":
    """Read the questions; of folders, all short WAV and FLAC files, by name."""
    from voxcli.audio import read_audio
    from benchmarks.conversation.harness import Question

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
    from json import loads

    path = given or next((folder / name for name in ANSWERS if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        listed = loads(path.read_text(encoding="utf-8"))
        return {name: tuple(str(answer).lower() for answer in entry["answers"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = 'it has to hold {"file.wav": {"answers": ["rome"]}, ...}'
        raise ConfigError(f"the answers in {path} can't be used: {error}", hint=hint) from error
