"""Tests of the level gate: what the detector still processes, and that no utterance changes."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from voxcli.audio.clip import SAMPLE_RATE, Samples, read_audio
from voxcli.audio.vad import FRAME_SAMPLES, Detector
from voxcli.chat.events import EndpointEvent, SpeechEnded, SpeechStarted
from voxcli.chat.speech.endpointing import Endpointer, EndpointingSettings
from voxcli.chat.speech.level_gate import KEPT_FRAMES, LevelGate

QUESTIONS = Path(__file__).parent.parent.parent.parent / "examples" / "questions"


def frame(value: float) -> Samples:
    return np.full(FRAME_SAMPLES, value, np.float32)


class RecordingDetector:
    """A detector that records the frames it processes; each frame is its number."""

    def __init__(self) -> None:
        self.processed: list[int] = []

    def probability(self, samples: Samples) -> float:
        self.processed.append(int(samples[0]))
        return 0.7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_every_loud_frame_is_processed_after_the_quiet_ones_before_it(loud: list[bool]) -> None:
    detector = RecordingDetector()
    gate = LevelGate(detector.probability, lambda samples: loud[int(samples[0])])
    probabilities = [gate.probability(frame(number)) for number in range(len(loud))]
    assert probabilities == [0.7 if each else 0.0 for each in loud]
    quiet = 0
    expected: list[int] = []
    for number, each in enumerate(loud):
        if each:
            expected += range(number - min(quiet, KEPT_FRAMES), number + 1)
        quiet = 0 if each else quiet + 1
    assert detector.processed == expected


def events(stream: Samples, detector: Detector | LevelGate, end_pointer: Endpointer) -> list[EndpointEvent]:
    """Return the events of a stream; the end of each utterance is final."""
    found: list[EndpointEvent] = []
    for each in stream[: len(stream) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES):
        for event in end_pointer.push(each, detector.probability(each), playing=False):
            found.append(event)
            if isinstance(event, SpeechEnded):
                end_pointer.commit()
    return found


class LevelDetector(Detector):
    """A detector without memory: a frame's probability is coded in its samples."""

    def __init__(self) -> None:
        pass

    def probability(self, samples: Samples) -> float:
        return float(abs(samples[0]) * 1e4 % 1)


stretches = st.lists(st.tuples(st.floats(-90, -10), st.integers(1, 30)), max_size=20)


@settings(max_examples=50, deadline=None)
@given(stretches, st.integers(0, 1000))
def test_with_a_detector_without_memory_nothing_changes(levels: list[tuple[float, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = [rng.normal(0, 10 ** (dbfs / 20), frames * FRAME_SAMPLES) for dbfs, frames in levels]
    stream = np.concatenate([np.zeros(0), *noise]).astype(np.float32)
    plain, gated = Endpointer(EndpointingSettings()), Endpointer(EndpointingSettings())
    expected = events(stream, LevelDetector(), plain)
    found = events(stream, LevelGate(LevelDetector().probability, gated.is_loud), gated)
    assert [repr(event) for event in found] == [repr(event) for event in expected]


def test_faint_questions_in_a_quiet_room_start_where_they_do_without_a_gate() -> None:
    """Speech at -30 dBFS, noise at -60 dBFS."""
    rng = np.random.default_rng(0)
    parts: list[Samples] = []
    for path in sorted(QUESTIONS.glob("*.flac"))[:6]:
        samples = read_audio(path).samples
        spoken = samples[np.abs(samples) > 0.02 * np.abs(samples).max()]
        scale = 10 ** (-30 / 20) / np.sqrt(np.square(spoken).mean())
        parts += [np.zeros(round(rng.uniform(2, 3) * SAMPLE_RATE), np.float32), samples * scale]
    stream = np.concatenate([*parts, np.zeros(SAMPLE_RATE, np.float32)])
    stream = (stream + rng.normal(0, 10 ** (-60 / 20), len(stream))).astype(np.float32)
    gated, processed = Endpointer(EndpointingSettings()), RecordingDetector()
    silero = Detector()

    def detect(samples: Samples) -> float:
        processed.probability(samples)
        return silero.probability(samples)

    expected = events(stream, Detector(), Endpointer(EndpointingSettings()))
    found = events(stream, LevelGate(detect, gated.is_loud), gated)
    starts, gated_starts = (
        [event.start for event in each if isinstance(event, SpeechStarted)] for each in (expected, found)
    )
    assert len(gated_starts) == len(starts) == 6
    assert np.abs(np.array(gated_starts) - starts).max() <= 2 * FRAME_SAMPLES
    assert len(processed.processed) < 0.8 * len(stream) / FRAME_SAMPLES
