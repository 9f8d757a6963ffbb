"""Measures detection of the end of a turn on labelled recordings: `python -m benchmarks.end_of_turn FOLDER`."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, note, publish, require_writable
from benchmarks.report import Figure, percentile
from benchmarks.turns import detection
from benchmarks.turns.detection import Observed, Policy, Rate, TurnFrames
from benchmarks.turns.recordings import read_turns
from voxcli.audio.clip import AudioClip
from voxcli.chat.speech import turn_detector, turn_model
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.chat.speech.silence import TurnSilence
from voxcli.config.paths import cache_folder
from voxcli.errors import ConfigError, ModelError

SILENCE, ADAPTIVE, MODEL = "silence", "adaptive", turn_model.NAME
SETTINGS = ("silence:300", "silence:600", ADAPTIVE, MODEL)
DELAY_BUDGETS_MS, SHARE_BUDGET = (300, 600), 0.05  # Those of livekit/eot-bench.
LONGEST_SILENCE_MS = 5000
VERDICT_MS = 170.0  # The median on two cores of a Xeon at 2.0 GHz.


def end_of_turn(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Labelled recordings, also livekit/eot-bench-data.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--setting", metavar="silence:MS|adaptive|smart-turn", help="What ends a turn; may be repeated."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="CODE", help="Only turns of a language.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first turns.")] = None,
    verdict_ms: Annotated[
        float, typer.Option("--verdict-ms", min=0, max=1000, help="Time that the model is given for each pause.")
    ] = VERDICT_MS,
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure false cut-offs and delays of what ends a turn, on recordings whose pauses are labelled."""
    names = setting or list(SETTINGS)
    silences = {name: _silence(name) for name in names}
    require_writable(json, force=force, inputs=[str(path) for path in folder.rglob("*") if path.is_file()])
    turns = [detection.detect_speech(turn) for turn in read_turns(folder, language, limit)]
    note(f"{len(turns)} turns")
    model = TimedModel(_load_model()) if MODEL in names else None
    figures = [_about(turns)]
    for name in names:
        rate = _run_setting(turns, silences[name], model, verdict_ms)
        figures.append(_setting_figure(name, rate, silences[name]))
    figures += _operating_points("silence alone", [detection.observe(turn, None) for turn in turns], verdict_ms=None)
    if model:
        observed = [detection.observe(turn, model.probability) for turn in turns]
        figures += _operating_points(MODEL, observed, verdict_ms=verdict_ms)
        figures.append(_time_figure(model.seconds))
    publish(figures, json)


class TimedModel:
    """An end-of-turn model that remembers its answers and the processor time of each."""

    def __init__(self, probability: detection.Probability) -> None:
        self._probability = probability
        self._known: dict[bytes, float] = {}
        self.seconds: list[float] = []

    def probability(self, clip: AudioClip) -> float:
        """Return the probability that an utterance is complete."""
        key = clip.samples.tobytes()
        if key not in self._known:
            started = time.thread_time()
            self._known[key] = self._probability(clip)
            self.seconds.append(time.thread_time() - started)
        return self._known[key]

    def is_complete(self, clip: AudioClip) -> bool:
        """Tell whether an utterance is complete, at the threshold that a chat uses."""
        return self.probability(clip) > turn_detector.COMPLETE_PROBABILITY


def _silence(name: str) -> TurnSilence | None:
    """Return the silence of a setting such as "silence:600" or "adaptive"; None for the model."""
    kind, _, number = name.partition(":")
    if name == MODEL:
        return None
    if name == ADAPTIVE:
        return TurnSilence()
    if kind != SILENCE or not number.isascii() or not number.isdigit() or not 32 <= int(number) <= LONGEST_SILENCE_MS:
        hint = f"{MODEL}, {ADAPTIVE}, or silence:MS with 32 to {LONGEST_SILENCE_MS}"
        raise ConfigError(f"there is no setting {name}", hint=hint)
    return TurnSilence.fixed(int(number))


def _load_model() -> detection.Probability:
    path = turn_detector.find_model("smart-turn", cache_folder())
    if path is None:
        raise ModelError("the end-of-turn model is not here", hint=turn_model.PULL)
    return turn_detector.TurnDetector(path).probability


def _run_setting(
    turns: Sequence[TurnFrames], silence: TurnSilence | None, model: TimedModel | None, verdict_ms: float
) -> Rate:
    """Run all turns through the model, or through a silence that may follow their pauses as those of one user."""
    if silence is not None:
        settings = EndpointingSettings(speculative_replies=False)
        return detection.run(turns, lambda: Endpointer(settings, silence))
    is_complete: Callable[[AudioClip], bool] | None = model.is_complete if model else None
    return detection.run(turns, lambda: Endpointer(EndpointingSettings()), is_complete, verdict_ms)


def _about(turns: Sequence[TurnFrames]) -> Figure:
    seconds = sum(each.turn.clip.seconds for each in turns)
    values = {"turns": len(turns), "seconds": round(seconds, 1)}
    return Figure("recordings", f"{len(turns)} turns, {seconds / 60:.1f} minutes", values=values)


def _setting_figure(name: str, rate: Rate, silence: TurnSilence | None) -> Figure:
    delays_ms = rate.delays_ms
    words = (
        f"{_cuts(rate)}; delay mean {rate.mean_delay_ms:.0f} ms, 95th percentile {percentile(delays_ms, 0.95):.0f} ms"
    )
    if silence is None or name != ADAPTIVE:
        return Figure(name, words, values=_values(rate))
    words += f"; {silence.ms:.0f} ms after the last turn"
    return Figure(name, words, values={**_values(rate), "silence_ms": round(silence.ms, 1)})


def _operating_points(family: str, observed: Sequence[Observed], *, verdict_ms: float | None) -> list[Figure]:
    """Return the figures of livekit/eot-bench: the best policies of a family within a budget."""
    swept = detection.sweep(observed, model=verdict_ms is not None, verdict_ms=verdict_ms or 0.0)
    figures = []
    for budget_ms in DELAY_BUDGETS_MS:
        best = detection.fewest_cuts(swept, budget_ms)
        words = _cuts(best[1]) if best else "no policy is that fast"
        figures.append(_point(f"{family}, best policy: false cut-offs at a mean delay of {budget_ms} ms", words, best))
    best = detection.shortest_delay(swept, SHARE_BUDGET)
    words = f"{best[1].mean_delay_ms:.0f} ms" if best else "no policy cuts off so few"
    figures.append(_point(f"{family}, best policy: mean delay at {SHARE_BUDGET:.0%} false cut-offs", words, best))
    return figures


def _point(what: str, words: str, best: tuple[Policy, Rate] | None) -> Figure:
    if best is None:
        return Figure(what, words)
    policy, rate = best
    knobs: dict[str, Any] = {"delay_ms": policy.delay_ms, "timeout_ms": policy.timeout_ms}
    if policy.threshold <= 1:
        knobs["threshold"] = policy.threshold
    words += f" ({', '.join(f'{name} {value:g}' for name, value in knobs.items())})"
    return Figure(what, words, values={**_values(rate), "policy": knobs})


def _time_figure(seconds: Sequence[float]) -> Figure:
    times_ms = [each * 1000 for each in seconds]
    median_ms, p95_ms = statistics.median(times_ms or [0.0]), percentile(times_ms, 0.95)
    words = f"median {median_ms:.0f} ms, 95th percentile {p95_ms:.0f} ms of {len(times_ms)}"
    return Figure("the model's processor time for a pause, one thread", words, values={"all_ms": times_ms})


def _cuts(rate: Rate) -> str:
    elsewhere = f", and {rate.elsewhere} where no pause is labelled" if rate.elsewhere else ""
    return f"{rate.share:.1%} false cut-offs ({rate.cut} of {rate.pauses} pauses{elsewhere})"


def _values(rate: Rate) -> dict[str, Any]:
    return {
        "cut": rate.cut,
        "pauses": rate.pauses,
        "elsewhere": rate.elsewhere,
        "mean_delay_ms": round(rate.mean_delay_ms, 1),
        "delays_ms": [round(each, 1) for each in rate.delays_ms],
    }


app = command_line(end_of_turn)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.end_of_turn")
