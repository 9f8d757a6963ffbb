"""Shows where the time from clip to first sentence goes in the embedded engine: `python -m benchmarks.first_token`.

Clips, windows of Whisper and runs alternate, so that a machine whose speed drifts slows all of them.
"""

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, publish, require_writable
from benchmarks.report import Figure
from voxcli.audio.clip import AudioClip, read_audio
from voxcli.config.paths import cache_folder
from voxcli.config.values import DEFAULT_INSTRUCTIONS
from voxcli.core.sentences import PieceCutter
from voxcli.core.session import Session
from voxcli.engines.embedded import weights
from voxcli.engines.embedded.answering import Answering, AnswerModel, open_answering
from voxcli.engines.embedded.whisper import NARROW, SHORT_SECONDS, Whisper

QUESTIONS = Path(__file__).resolve().parent.parent / "examples/questions"
STAGES = ("mel", "encode", "language", "decode", "first token", "first sentence")
SESSION = Session(instructions=DEFAULT_INSTRUCTIONS)
SAMPLING = {"max_tokens": 64, "temperature": 0, "top_p": 1}

WindowSeconds = float | None  # None for what the engine takes


def first_token(
    clips: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings of questions.")] = QUESTIONS,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Runs of each clip.")] = 3,
    window: Annotated[
        list[float] | None, typer.Option("--window", metavar="SECONDS", help="Another window to compare; repeatable.")
    ] = None,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure each stage of the embedded engine, from a clip to the first sentence of the reply."""
    require_writable(json, force=force)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # The engine does the same.
    folder = weights.prepare(cache_folder())
    recognizer = Whisper(folder / "whisper", os.cpu_count() or 1)
    answering = open_answering(AnswerModel(folder / "smollm2.gguf", is_shipped=True), SAMPLING, 8192)
    paths = sorted(path for path in clips.iterdir() if path.suffix in {".flac", ".wav"})
    short = [clip for clip in map(read_audio, paths) if clip.seconds <= SHORT_SECONDS]
    windows: list[WindowSeconds] = [None, *(window or [])]
    times: dict[WindowSeconds, list[list[float]]] = defaultdict(list)
    for _ in range(runs):
        for clip in short:
            for each in windows:
                if each is None or each > clip.seconds:
                    times[each].append(stages(recognizer, answering, clip, each))
    publish([figure(each, times[each], times[None]) for each in windows], json)


def stages(recognizer: Whisper, answering: Answering, clip: AudioClip, window: WindowSeconds) -> list[float]:
    """Return the seconds of each stage, in the order of STAGES."""
    answering.model.read_ahead(answering.prompts.history(SESSION))  # The engine does the same after each turn.
    marks = [time.perf_counter()]
    features = recognizer.features(clip, window or NARROW.seconds(clip.seconds))
    marks.append(time.perf_counter())
    encoded = recognizer.encode(features)
    marks.append(time.perf_counter())
    language = recognizer.language(encoded)
    marks.append(time.perf_counter())
    text = recognizer.decode(encoded, language)
    marks.append(time.perf_counter())
    cutter, is_first = PieceCutter(), True
    for delta in answering.model.answer(answering.prompts.prompt(SESSION, text or "Hello."), threading.Event()):
        if is_first:
            marks.append(time.perf_counter())
            is_first = False
        if any(cutter.feed(delta)):
            break
    marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


def figure(window: WindowSeconds, times: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Figure:
    """Return the medians of the stages with one window, and the ratio of the whole to the engine's own window."""
    by_stage = {stage: 1000 * statistics.median(run[number] for run in times) for number, stage in enumerate(STAGES)}
    to_token = [1000 * sum(run[:-1]) for run in times]
    ratio = statistics.median(to_token) / statistics.median(1000 * sum(run[:-1]) for run in base)
    shown = ", ".join(f"{stage} {milliseconds:.0f}" for stage, milliseconds in by_stage.items())
    name = "the engine's own window" if window is None else f"window of {window:g} s"
    measured = f"{statistics.median(to_token):.0f} ms to the first token ({min(to_token):.0f} at least): {shown}"
    return Figure(name, f"{measured}; {ratio:.2f} of the engine's own", values={"stages_ms": by_stage, "ratio": ratio})


app = command_line(first_token)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.first_token")
