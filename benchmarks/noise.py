"""Measures what noise suppression and gain control do to endpointing: `python -m benchmarks.noise FOLDER`.

Recordings of speech follow one another in noise. Silero and the endpointer find utterances in the sound as it is, and
as WebRTC's audio processing changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import ForceFlag, JsonFlag, command_line, publish, require_writable
from benchmarks.conversation.recordings import voiced_span
from benchmarks.report import Figure, median
from voxcli.audio.clip import SAMPLE_RATE, Samples, read_audio
from voxcli.audio.vad import FRAME_SAMPLES, Detector
from voxcli.chat.events import SpeechEnded, SpeechStarted
from voxcli.chat.speech.echo import EchoCanceller, Timeline
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.errors import ConfigError

PROCESSING = {  # whether noise is suppressed, and whether the level is adjusted
    "neither": (False, False),
    "noise suppression": (True, False),
    "gain control": (False, True),
    "both": (True, True),
}
LEVELS_DBFS = (-26.0, -46.0)  # Speech close to the microphone, and across the room.
RATIOS_DB = (10.0, 0.0)  # Speech relative to noise.
LEAD_SECONDS, GAP_SECONDS = 5.0, 2.0  # noise alone, before the first recording and after each
TALKERS = 4  # Voices that are mixed into the background.


@dataclass(frozen=True)
class Scene:
    """Recordings in a row, and where each has its first and last voiced sample."""

    samples: Samples
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Endpoints:
    """Utterances that were found in a scene."""

    missed: int  # recordings in which no utterance was found
    false_starts: int  # utterances outside of all recordings
    late_seconds: float  # median time from the last voiced sample of a recording to the end of its last utterance


def endpoints(spans: Sequence[tuple[int, int]], samples: Samples) -> Endpoints:
    """Find the utterances in the sound of a scene, and compare them with where its recordings are."""
    found = _utterances(samples)
    inside = [[each for each in found if each[0] <= stop and each[1] >= start] for start, stop in spans]
    false_starts = len([each for each in found if not any(each in some for some in inside)])
    late = [(some[-1][1] - stop) / SAMPLE_RATE for some, (_, stop) in zip(inside, spans, strict=True) if some]
    return Endpoints(sum(not some for some in inside), false_starts, median(late))


def _utterances(samples: Samples) -> list[tuple[int, int]]:
    """Return where utterances start and where their end was decided."""
    detector, endpointer = Detector(), Endpointer(EndpointingSettings())
    found: list[tuple[int, int]] = []
    start = 0
    for frame in samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES):
        for event in endpointer.push(frame, detector.probability(frame), playing=False):
            if isinstance(event, SpeechStarted):
                start = event.start
            elif isinstance(event, SpeechEnded):
                found.append((start, event.at))
                endpointer.commit()
    return found + [(start, event.at) for event in endpointer.flush() if isinstance(event, SpeechEnded)]


def scene_of(clips: Sequence[Samples], level_dbfs: float) -> Scene:
    """Put recordings in a row, each with its voiced part at a level."""
    parts = [np.zeros(round(LEAD_SECONDS * SAMPLE_RATE), np.float32)]
    spans, end = [], len(parts[0])
    for clip in clips:
        start, stop = voiced_span(clip) or (0, len(clip) - 1)
        level = np.sqrt(np.mean(np.square(clip[start : stop + 1])))
        spans.append((end + start, end + stop))
        parts += [clip / level * 10 ** (level_dbfs / 20), np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)]
        end += len(clip) + len(parts[-1])
    return Scene(np.concatenate(parts).astype(np.float32), spans)


def noises(clips: Sequence[Samples], count: int) -> dict[str, Samples]:
    """Return `count` samples of each noise, at 0 dBFS: a fan, and people who talk in the background."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    fan = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), count)  # pink
    row = np.concatenate(clips)
    babble = np.sum([np.resize(np.roll(row, int(rng.integers(len(row)))), count) for _ in range(TALKERS)], axis=0)
    return {name: sound / np.sqrt(np.mean(np.square(sound))) for name, sound in (("fan", fan), ("babble", babble))}


def _processed(samples: Samples, noise_suppression: bool, gain_control: bool) -> Samples:
    if not (noise_suppression or gain_control):
        return samples
    return EchoCanceller(Timeline(8), noise_suppression=noise_suppression, gain_control=gain_control).clean(samples)


def noise(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings of speech, an utterance each.")],
    json: JsonFlag = None,
    force: ForceFlag = False,
) -> None:
    """Measure what noise suppression and gain control do to endpointing."""
    require_writable(json, force=force)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))
    if not paths:
        raise ConfigError(f"{folder} has no recordings", hint="name a folder with .wav or .flac files")
    clips = [read_audio(path).samples for path in paths]
    figures = []
    for level_dbfs in LEVELS_DBFS:
        scene = scene_of(clips, level_dbfs)
        for (kind, sound), ratio_db in product(noises(clips, len(scene.samples)).items(), RATIOS_DB):
            noisy = np.clip(scene.samples + sound * 10 ** ((level_dbfs - ratio_db) / 20), -1, 1).astype(np.float32)
            figures += _figures(f"{level_dbfs:.0f} dBFS, {kind} {ratio_db:.0f} dB below", Scene(noisy, scene.spans))
    publish(figures, json)


def _figures(what: str, scene: Scene) -> list[Figure]:
    figures = []
    for name, settings in PROCESSING.items():
        found = endpoints(scene.spans, _processed(scene.samples, *settings))
        measured = (
            f"{found.missed} of {len(scene.spans)} missed, {found.false_starts} false starts, "
            f"end {found.late_seconds:.2f} s after speech"
        )
        figures.append(Figure(f"{what}: {name}", measured, values=vars(found)))
    return figures


app = command_line(noise)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.noise")
