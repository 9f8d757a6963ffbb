"""Makes a folder for `benchmarks.end_of_turn` from human speech in Debian packages.

`python -m benchmarks.turns.pocketsphinx OUT --root ROOT`, where ROOT is / or a folder into which `dpkg -x` unpacked
pocketsphinx-testdata and alsa-utils.

The labels come from the transcripts: each recording, or pair of them, is a whole command, name, number or sentence. The
silence after the last word is the end of the turn, and every silence before it is a pause inside the turn. LibriVox's
readings are cut at pauses, also within sentences, so parts of one sentence are joined again. Silences are found by
level. One beside a very short sound is the closure of a consonant, and no pause. The pauses of read speech are short,
so those of at least MIN_GAP_MS are lengthened with the recording's own background noise to a random length in
LENGTHENED_MS. The voice before the pause, which the model judges, is unchanged.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import command_line, note
from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples, read_audio
from voxcli.audio.wav import encode_wav
from voxcli.errors import ConfigError

TESTDATA, SOUNDS = "usr/share/pocketsphinx/test/data", "usr/share/sounds/alsa"
READING = "librivox/sense_and_sensibility_01_austen_64kb-"
TURNS: dict[str, tuple[str, ...]] = {  # Files of a turn by its name.
    **{f"card-{number}": (f"{TESTDATA}/cards/00{number}.wav",) for number in range(1, 6)},
    **{name: (f"{TESTDATA}/{name}.raw",) for name in ("goforward", "numbers", "something")},
    "digits": (f"{TESTDATA}/tidigits/dhd.2934z.raw",),
    "reading-1": (f"{TESTDATA}/{READING}0870.wav",),
    "reading-2": (f"{TESTDATA}/{READING}0880.wav", f"{TESTDATA}/{READING}0890.wav"),
    "reading-3": (f"{TESTDATA}/{READING}0920.wav", f"{TESTDATA}/{READING}0930.wav"),
    **{
        f"{side}-{place}".lower(): (f"{SOUNDS}/{side}_{place}.wav",)
        for side in ("Front", "Rear", "Side")
        for place in ("Left", "Right", "Center")
        if (side, place) != ("Side", "Center")
    },
}
BLOCK = SAMPLE_RATE // 100  # Samples of 10 ms, over which levels are measured.
VOICE_SHARE = 0.35  # Voice lies above this share of the way from the 5th to the 95th percentile of the levels, in dB.
MIN_VOICE_BLOCKS = 5  # Shorter sounds are clicks.
MIN_GAP_MS, LENGTHENED_MS = 100, (350, 900)
MIN_WORD_MS = 150  # Voice beside a pause; less is the release of a consonant.
END_MS = 1000  # Silence after the last word.
FADE = 80  # Samples over which inserted noise begins and ends.


def build(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Where the packages are unpacked.")] = Path("/"),
    seed: Annotated[int, typer.Option("--seed", help="For the lengths of the pauses.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pauses as long as they are.")] = False,
) -> None:
    """Make a folder of labelled recordings of human speech."""
    if out.exists():
        raise ConfigError(f"{out} exists", hint="name a new folder")
    turns = {name: [_read(root / path) for path in paths] for name, paths in TURNS.items()}
    out.mkdir(parents=True)
    lengths = np.random.default_rng(seed)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for name, parts in turns.items():
            samples, spans = labelled(np.concatenate(parts), None if keep else lengths)
            (out / f"{name}.wav").write_bytes(encode_wav(AudioClip(samples)))
            silences = [{"start": start / SAMPLE_RATE, "end": end / SAMPLE_RATE} for start, end in spans]
            row = {"file_name": f"{name}.wav", "id": name, "language": "en", "silence_spans": silences}
            lines.write(json.dumps(row) + "\n")
    note(f"{len(turns)} turns in {out}")


def labelled(samples: Samples, lengths: np.random.Generator | None) -> tuple[Samples, list[tuple[int, int]]]:
    """Return a recording with its silences, as pairs of samples; the last one is the end.

    Args:
        samples: mono at SAMPLE_RATE, shape (n,), with voice.
        lengths: draws the lengths of the pauses; None leaves them as they are.
    """
    runs = list(_voice(samples))
    quietest = samples[: runs[0][0]] if runs[0][0] > BLOCK else np.zeros(BLOCK, np.float32)
    parts, spans, position = [samples[: runs[0][1]]], [], runs[0][1]
    for (before, end), (start, next_end) in pairwise(runs):
        gap = samples[end:start]
        shortest_word = min(end - before, next_end - start)
        if len(gap) >= MIN_GAP_MS * SAMPLE_RATE // 1000 and shortest_word >= MIN_WORD_MS * SAMPLE_RATE // 1000:
            wanted = round(lengths.uniform(*LENGTHENED_MS) * SAMPLE_RATE / 1000) if lengths else 0
            gap = _lengthened(gap, wanted, quietest)
            spans.append((position, position + len(gap)))
        parts += [gap, samples[start:next_end]]
        position += len(gap) + next_end - start
    tail = _lengthened(samples[runs[-1][1] :], END_MS * SAMPLE_RATE // 1000, quietest)
    return np.concatenate([*parts, tail]), [*spans, (position, position + len(tail))]


def _read(path: Path) -> Samples:
    return read_audio(path, raw_rate=SAMPLE_RATE if path.suffix == ".raw" else None).samples


def _voice(samples: Samples) -> Iterator[tuple[int, int]]:
    """Yield stretches of voice, as pairs of samples."""
    blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
    levels = 10 * np.log10(np.mean(np.square(blocks), axis=1) + 1e-12)
    levels = np.convolve(levels, np.full(3, 1 / 3), "same")
    low, high = np.percentile(levels, [5, 95])
    loud = levels > low + VOICE_SHARE * (high - low)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start >= MIN_VOICE_BLOCKS:
            yield start * BLOCK, end * BLOCK


def _lengthened(gap: Samples, wanted: int, noise: Samples) -> Samples:
    """Return a silence of at least a length, with noise repeated forwards and backwards in its middle."""
    missing = wanted - len(gap)
    if missing <= 0:
        return gap
    there_and_back = np.concatenate([noise, noise[::-1]])
    inserted = np.resize(there_and_back, missing).astype(np.float32)
    ramp = np.linspace(0, 1, min(FADE, missing // 2), dtype=np.float32)
    inserted[: len(ramp)] *= ramp
    inserted[len(inserted) - len(ramp) :] *= ramp[::-1]
    middle = len(gap) // 2
    return np.concatenate([gap[:middle], inserted, gap[middle:]])


app = command_line(build)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.turns.pocketsphinx")
