"""The figures of a run: right answers with their interval, what is lost by speech, latency and tokens."""

from collections.abc import Sequence
from typing import Any

from benchmarks.answering.asking import WAYS, Asked, Way
from benchmarks.answering.intervals import CONFIDENCE, mcnemar, wilson
from benchmarks.report import Figure, median, percentile

LOST_BY_SPEECH = "what is lost by speech: the same questions"


def figures(asked: Sequence[Asked], load: str = "") -> list[Figure]:
    """Return the figures of a run. `load` is that of the machine meanwhile."""
    found = []
    for way in WAYS:
        if of_way := [each for each in asked if each.way == way]:
            found += [_accuracy(f"{way}: right answers", of_way), *_categories(way, of_way)]
            found += [_latency(way, of_way, load), _tokens(way, of_way)]
    return [*found, *_paired(asked)]


def _accuracy(what: str, asked: Sequence[Asked]) -> Figure:
    verdicts = [each.is_right for each in asked]
    failed = sum("error" in each.record for each in asked)
    right, unclear = sum(verdict is True for verdict in verdicts), verdicts.count(None) - failed
    low, high = wilson(right, len(asked))
    beside = [f"{count} {name}" for name, count in (("unclear", unclear), ("failed", failed)) if count]
    share = f"{right} of {len(asked)}, {right / len(asked):.1%} ({low:.1%} to {high:.1%})"
    values: dict[str, Any] = {"right": right, "questions": len(asked), "unclear": unclear, "failed": failed}
    values |= {"low": round(low, 4), "high": round(high, 4), "confidence": CONFIDENCE}
    return Figure(what, "; ".join([share, *beside]), values=values)


def _categories(way: Way, asked: Sequence[Asked]) -> list[Figure]:
    names = dict.fromkeys(each.question.category for each in asked)
    return [
        _accuracy(f"{way}, {name or 'other'}", [each for each in asked if each.question.category == name])
        for name in (names if len(names) > 1 else ())
    ]


def _latency(way: Way, asked: Sequence[Asked], load: str) -> Figure:
    timings = [each.record["timings"] for each in asked if "error" not in each.record]
    values: dict[str, Any] = {}
    shown = []
    for name, words in (("first_token_seconds", "first token"), ("total_seconds", "whole reply")):
        seconds = [timing[name] for timing in timings if timing.get(name) is not None]
        values[name] = seconds
        middle, tail = median(seconds), percentile(seconds, 0.95)
        shown.append(f"{words} median {middle:.2f} s, 95th percentile {tail:.2f} s")
    return Figure(f"{way}: latency", "; ".join(shown), values=values, load=load)


def _tokens(way: Way, asked: Sequence[Asked]) -> Figure:
    tokens = [each.record["tokens"] for each in asked if "error" not in each.record]
    sums = {name: sum(each[name] for each in tokens) for name in ("prompt", "cached", "reply")}
    each = {name: total / max(1, len(tokens)) for name, total in sums.items()}
    mean = f"{each['prompt']:.0f} prompt, {each['cached']:.0f} of them cached, {each['reply']:.0f} reply"
    total = f"{sums['prompt']} prompt, {sums['reply']} reply in all"
    return Figure(f"{way}: tokens a question", f"{mean}; {total}", values={**sums, "questions": len(tokens)})


def _paired(asked: Sequence[Asked]) -> list[Figure]:
    """Return the comparison of both ways, over the questions that were asked in both."""
    by_way: dict[Way, dict[str, bool]] = {
        way: {each.question.id: each.is_right is True for each in asked if each.way == way} for way in WAYS
    }
    pairs = [(right, by_way["text"][name]) for name, right in by_way["speech"].items() if name in by_way["text"]]
    if not pairs:
        return []
    counts = {
        "both": pairs.count((True, True)),
        "only_speech": pairs.count((True, False)),
        "only_text": pairs.count((False, True)),
        "neither": pairs.count((False, False)),
    }
    lost = 100 * (counts["only_text"] - counts["only_speech"]) / len(pairs)
    probability = mcnemar(counts["only_speech"], counts["only_text"])
    shown = (
        f"{lost:+.1f} points; right only as text {counts['only_text']}, only as speech {counts['only_speech']}, "
        f"in both {counts['both']}, in neither {counts['neither']}; McNemar p = {probability:.2g}"
    )
    return [Figure(LOST_BY_SPEECH, shown, values={**counts, "lost_points": round(lost, 2), "p": probability})]
